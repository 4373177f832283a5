//! Which steps are run again.

use std::collections::BTreeSet;

use lastgood_format::{Error, Hash, Result};

use super::window::{Window, history_to};
use crate::journal::history::Part;
use crate::ledger::{Checkpoint, History, Ledger, Standing};
use crate::repository::Repository;
use crate::restore::{Selector, resolve};

/// What is run again.
#[derive(Clone, Debug)]
pub struct Span {
    /// The checkpoint that it begins with; `None` for a fresh start.
    pub from: Option<Hash>,
    /// The step of that checkpoint; 0 without one.
    pub from_step: u64,
    /// The last step.
    pub to: u64,
    /// The checkpoint of the last step, if there is one.
    pub end: Option<Hash>,
    /// The ranks that run it.
    pub ranks: u32,
    /// The ranks that the run had.
    pub recorded_ranks: u32,
}

impl Span {
    /// The steps between two checkpoints of the run that follow each other, chosen by `choice` among those that led to
    /// the newest one and whose ends are not in `seen`; `None` if there is none, or nothing is recorded of the steps.
    ///
    /// # Errors
    /// As [`led_to`].
    pub fn sample(
        repository: &Repository,
        ledger: &Ledger,
        seen: &BTreeSet<Hash>,
        choice: u64,
    ) -> Result<Option<Self>> {
        let usable = |c: &&Checkpoint| c.standing != Standing::Bad && !c.expired;
        let Some(newest) = ledger.history().checkpoints().iter().rev().find(usable) else {
            return Ok(None);
        };
        let led = led_to(repository, ledger, newest.step)?;
        let fresh = [None].into_iter().chain(led.iter().copied().map(Some)).zip(led.iter());
        let mut windows: Vec<(Option<&Checkpoint>, &Checkpoint)> =
            fresh.map(|(from, to)| (from, *to)).filter(|(_, to)| !seen.contains(&to.id)).collect();
        // What an import or another tool saved at first has no steps that could be run.
        windows.retain(|(from, to)| from.map_or(0, |from| from.step) < to.step);
        if windows.is_empty() {
            return Ok(None);
        }
        let (from, to) = windows[(choice % windows.len() as u64) as usize];
        Ok(Some(Self {
            from: from.map(|checkpoint| checkpoint.id),
            from_step: from.map_or(0, |checkpoint| checkpoint.step),
            to: to.step,
            end: Some(to.id),
            ranks: to.world_size,
            recorded_ranks: to.world_size,
        }))
    }

    /// Says whether `recorded` holds the record of all of the steps.
    ///
    /// # Errors
    /// `NotFound` if it does not.
    pub fn check_recorded(&self, recorded: &Window) -> Result<()> {
        let last = recorded.steps.keys().map(|(step, _)| *step).max();
        if last == Some(self.to) {
            return Ok(());
        }
        let what = match last {
            Some(last) => format!("the journal of these steps ends with step {last}"),
            None => match self.from {
                Some(_) => format!("the journal ends with step {} or before", self.from_step),
                None => "nothing is recorded of them".to_owned(),
            },
        };
        Err(Error::not_found(format!("steps {} to {}: {what}", self.from_step + 1, self.to))
            .with_remedy(
                "`lastgood log --journal --count` says what is recorded; the job must open the run with \
                 a journal and call step",
            ))
    }

    /// The steps from the checkpoint `from`, `start`, or the last one before the end, to the step or checkpoint `to`.
    ///
    /// # Errors
    /// `NotFound` if there is no such checkpoint; `Invalid` if it begins at or after its end; as [`led_to`].
    pub fn find(
        repository: &Repository,
        ledger: &Ledger,
        (from, to): (Option<&str>, &Selector),
        ranks: Option<u32>,
    ) -> Result<Self> {
        let history = ledger.history();
        let end = match (resolve(history, to), to) {
            (Ok(checkpoint), _) => Some(checkpoint),
            (Err(_), Selector::Step(_)) => None,
            (Err(error), _) => return Err(error),
        };
        let last = match (end, to) {
            (Some(checkpoint), _) => checkpoint.step,
            (None, Selector::Step(step)) => *step,
            _ => return Err(Error::internal("no step to end with")),
        };
        let from = match from {
            Some("start") => None,
            Some(text) => Some(resolve(history, &text.parse::<Selector>()?)?),
            None => before(repository, ledger, last)?,
        };
        if let Some(from) = from
            && from.step >= last
        {
            return Err(Error::invalid(format!("step {} is not before step {last}", from.step))
                .with_remedy("begin earlier, or end later"));
        }
        let newest = history.attempt().map(|attempt| attempt.world_size);
        let recorded_ranks = end.or(from).map(|c| c.world_size).or(newest).unwrap_or(1);
        Ok(Self {
            from: from.map(|checkpoint| checkpoint.id),
            from_step: from.map_or(0, |checkpoint| checkpoint.step),
            to: last,
            end: end.map(|checkpoint| checkpoint.id),
            ranks: ranks.unwrap_or(recorded_ranks),
            recorded_ranks,
        })
    }
}

/// The newest checkpoint before step `to` that led to it.
fn before<'l>(
    repository: &Repository,
    ledger: &'l Ledger,
    to: u64,
) -> Result<Option<&'l Checkpoint>> {
    let led = led_to(repository, ledger, to)?;
    Ok(led.into_iter().rev().find(|checkpoint| checkpoint.step < to))
}

/// The checkpoints that led to step `to`, that of the step itself among them, by step; of one step the newest.
///
/// # Errors
/// `Corrupt`, `Incompatible` if the journal or a checkpoint on the way is damaged; `Unavailable`, `Denied`.
pub fn led_to<'l>(
    repository: &Repository,
    ledger: &'l Ledger,
    to: u64,
) -> Result<Vec<&'l Checkpoint>> {
    let (_, parts) = repository.block_on(history_to(repository, ledger, to))?;
    let mut led: Vec<&Checkpoint> =
        led_by(ledger.history(), &parts).filter(|checkpoint| checkpoint.step <= to).collect();
    led.sort_by_key(|checkpoint| (checkpoint.step, std::cmp::Reverse(checkpoint.entry)));
    led.dedup_by_key(|checkpoint| checkpoint.step);
    Ok(led)
}

/// The checkpoints of these parts of the history that can be restored, in the order of commit.
pub(crate) fn led_by<'h>(
    history: &'h History,
    parts: &[Part],
) -> impl Iterator<Item = &'h Checkpoint> {
    history.checkpoints().iter().filter(|checkpoint| {
        let is_usable = checkpoint.standing != Standing::Bad && !checkpoint.expired;
        is_usable && parts.iter().any(|part| part.holds(history, checkpoint))
    })
}

#[cfg(test)]
mod tests;
