//! What a journal says of some steps of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use lastgood_format::journal::{Cut, Frame, Kind, Lane, LaneName, Value};
use lastgood_format::{Error, Hash, Result};

use super::state::{State, Table};
use crate::journal::history::{self, Part, everything};
use crate::journal::read::{Filter, JournalReader, Merged};
use crate::ledger::{Checkpoint, History, Ledger};
use crate::repository::Repository;

/// What is recorded of some steps.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// What each step of each logical rank says.
    pub steps: BTreeMap<(u64, Lane), Value>,
    /// Events of the user's own kinds and what was read from outside, in order, by the step that they led to and
    /// the lane.
    pub events: BTreeMap<(u64, Lane), Vec<(Kind, Value)>>,
    /// The states that were digested by all ranks, by step.
    pub states: BTreeMap<u64, State>,
    /// The environment of each process of each attempt, by the lane that says it.
    pub environments: BTreeMap<(u64, Lane), Value>,
    /// The attempt that each step was done by.
    pub attempts: BTreeMap<u64, u64>,
}

/// The journal, and the parts of the history that led to step `to`: those that led to now, if step `to` is one of theirs, and
/// otherwise those that led to the newest checkpoint of that step.
///
/// What is told of a checkpoint after its capture, such as the digest of its state, stands behind its cut: so the
/// longer history is the better one.
///
/// # Errors
/// As [`history::parts`].
pub async fn history_to(
    source: &Repository,
    ledger: &Ledger,
    to: u64,
) -> Result<(JournalReader, Vec<Part>)> {
    let reader = source.journal_reader(ledger.run()).await?;
    let usable = |c: &&Checkpoint| c.step == to && !c.expired;
    let checkpoint = ledger.history().checkpoints().iter().rev().find(usable);
    let now = history::parts(ledger, &reader, None).await?;
    let led = |checkpoint| now.iter().any(|part| part.holds(ledger.history(), checkpoint));
    let parts = match checkpoint {
        Some(checkpoint) if !led(checkpoint) => {
            history::parts(ledger, &reader, Some(&checkpoint.id)).await?
        }
        _ => now,
    };
    Ok((reader, parts))
}

/// The events that `filter` wants of the history that led to step `to`.
///
/// # Errors
/// As [`history_to`].
pub async fn events(
    source: &Repository,
    ledger: &Ledger,
    to: u64,
    filter: Filter,
) -> Result<Merged> {
    let (reader, parts) = history_to(source, ledger, to).await?;
    Ok(reader.merged(&parts, filter))
}

/// What led to the checkpoint `from`, and is no part of what is done after it; nothing without one.
///
/// # Errors
/// As [`history::cut_of`].
pub(crate) async fn cut_of(ledger: &Ledger, from: Option<&Hash>) -> Result<Cut> {
    match from.and_then(|id| ledger.history().checkpoint(id)) {
        Some(checkpoint) => history::cut_of(ledger, checkpoint).await,
        None => Ok(Cut::default()),
    }
}

/// True of an event that a checkpoint with `cut` includes.
pub(crate) fn is_before(cut: &Cut, frame: &Frame) -> bool {
    let position = cut.lanes.get(&LaneName(frame.lane));
    frame.attempt == cut.attempt && position.is_some_and(|position| frame.sequence < position.next)
}

impl Window {
    /// What is recorded of `steps` in the history that led to the last of them, after the checkpoint `from`.
    ///
    /// # Errors
    /// As [`JournalReader`]; `Corrupt` if an event says what none says.
    pub fn read(
        source: &Repository,
        ledger: &Ledger,
        steps: RangeInclusive<u64>,
        from: Option<&Hash>,
    ) -> Result<Self> {
        source.block_on(async {
            let cut = cut_of(ledger, from).await?;
            let (reader, parts) = history_to(source, ledger, *steps.end()).await?;
            Self::of_parts(&reader, &parts, steps, &cut).await
        })
    }

    /// Every number of ranks that the attempts had that did these steps.
    #[must_use]
    pub fn world_sizes(&self, history: &History) -> BTreeSet<u32> {
        let attempts: BTreeSet<u64> = self.attempts.values().copied().collect();
        let newest = history.attempt().map(|attempt| (attempt.number, attempt.world_size));
        // Of an earlier attempt only what led to a checkpoint of its own is history.
        let saved = history.checkpoints().iter().map(|c| (c.attempt, c.world_size));
        let all = saved.chain(newest);
        all.filter(|(attempt, _)| attempts.contains(attempt)).map(|(_, ranks)| ranks).collect()
    }

    /// What attempt `attempt` recorded of `steps`, whether it is part of the history or was overtaken.
    ///
    /// # Errors
    /// As [`Window::read`].
    pub fn of_attempt(
        source: &Repository,
        reader: &JournalReader,
        attempt: u64,
        steps: RangeInclusive<u64>,
    ) -> Result<Self> {
        let parts = everything([attempt]);
        source.block_on(Self::of_parts(reader, &parts, steps, &Cut::default()))
    }

    async fn of_parts(
        reader: &JournalReader,
        parts: &[Part],
        steps: RangeInclusive<u64>,
        cut: &Cut,
    ) -> Result<Self> {
        let mut window = Self::default();
        let mut table = Table::default();
        // These stand at the beginning of an attempt, wherever in it the steps are.
        let kinds = vec![Kind::ATTEMPT_BEGUN, Kind::ENVIRONMENT, Kind::STATE_LAYOUT];
        let mut beginnings = reader.merged(parts, Filter { kinds, ..Filter::default() });
        while let Some(frame) = beginnings.next().await? {
            window.begin(&mut table, &frame)?;
        }
        let kinds = vec![Kind::STEP, Kind::STATE_DIGEST, Kind::EVENT, Kind::EXTERNAL_READ];
        // What led to the first step stands behind the one before; a digest is told after its step.
        let first = steps.start().saturating_sub(1);
        let filter = Filter { steps: Some(first..=u64::MAX), kinds, ..Filter::default() };
        let mut events = reader.merged(parts, filter);
        while let Some(frame) = events.next().await? {
            // A digest is of its step, wherever it is told.
            if frame.kind == Kind::STATE_DIGEST || !is_before(cut, &frame) {
                window.add(&mut table, &steps, &frame)?;
            }
        }
        window.states = table.finish();
        Ok(window)
    }

    /// True if a process of the attempt that did `step` has told in `lane` what its environment is.
    pub(crate) fn is_of_process(&self, (step, lane): (u64, Lane)) -> bool {
        let attempt = self.attempts.get(&step);
        attempt.is_some_and(|attempt| self.environments.contains_key(&(*attempt, lane)))
    }

    fn begin(&mut self, table: &mut Table, frame: &Frame) -> Result<()> {
        let value = frame.value()?;
        match frame.kind {
            Kind::ATTEMPT_BEGUN => table.begin(frame, &value),
            Kind::STATE_LAYOUT => table.layout(frame, &value)?,
            _ => drop(self.environments.insert((frame.attempt, frame.lane), value)),
        }
        Ok(())
    }

    pub(super) fn add(
        &mut self,
        table: &mut Table,
        steps: &RangeInclusive<u64>,
        frame: &Frame,
    ) -> Result<()> {
        let value = frame.value()?;
        if frame.kind == Kind::STATE_DIGEST {
            let at = value.get("at").and_then(Value::as_u64);
            let at =
                at.ok_or_else(|| Error::corrupt(format!("{} names no step", frame.place())))?;
            return if steps.contains(&at) { table.digest(frame, &value, at) } else { Ok(()) };
        }
        // What happens after a step belongs to the next one.
        let is_step = frame.kind == Kind::STEP;
        let step = if is_step { frame.step } else { frame.step.saturating_add(1) };
        if !steps.contains(&step) {
            return Ok(());
        }
        let at = (step, frame.lane);
        if is_step {
            self.steps.insert(at, value);
            self.attempts.insert(step, frame.attempt);
        } else {
            self.events.entry(at).or_default().push((frame.kind, value));
        }
        Ok(())
    }
}
