//! What an earlier attempt recorded after the checkpoint that this one goes on from.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_format::journal::{Frame, Kind, Lane, LaneName, Position};
use lastgood_format::{Error, Hash, Result};

use crate::journal::history;
use crate::journal::read::{Filter, JournalReader, LaneReader};
use crate::ledger::Ledger;
use crate::replay::compare::compare;
use crate::replay::external::{Reads, read_of};
use crate::replay::state::Table;
use crate::replay::window::Window;
use crate::repository::Repository;

/// What one earlier attempt recorded in some lanes, from a checkpoint to where it ended.
#[derive(Debug)]
pub(super) struct Record {
    /// The attempt.
    pub(super) attempt: u64,
    /// The checkpoint; `None` for a fresh start.
    pub(super) from: Option<Hash>,
    /// The step of that checkpoint; 0 without one.
    pub(super) from_step: u64,
    /// The last step.
    pub(super) to: u64,
    /// The last step of each lane.
    pub(super) ends: BTreeMap<Lane, u64>,
    /// Its steps, and the events between them.
    pub(super) window: Window,
    /// What a process read from outside, by key.
    pub(super) reads: BTreeMap<String, Reads>,
}

/// The lanes of a process: all, and the one that events stand in.
pub(super) type Lanes<'l> = (&'l [Lane], Lane);

impl Record {
    /// The record of `lanes` by the newest attempt before `attempt` that went on from the checkpoint `from`, or of an
    /// older one that did the same as that one and came further. One that was ended because it came to something else
    /// than its own record counts for nothing. `None` if nothing is recorded.
    pub(super) async fn find(
        repository: &Repository,
        ledger: &Ledger,
        (lanes, own): Lanes<'_>,
        from: Option<Hash>,
        attempt: u64,
    ) -> Result<Option<Self>> {
        let reader = repository.journal_reader(ledger.run()).await?;
        let start = Start::of(ledger, from).await?;
        let attempts: BTreeSet<u64> = reader.lanes().map(|lane| lane.attempt).collect();
        let mut best: Option<Self> = None;
        for earlier in attempts.range(start.attempt..attempt).rev() {
            let found = start.read(&reader, *earlier, (lanes, own)).await?;
            let goes_further = |best: &Self| best.is_beginning_of(&found);
            if found.is_something()
                && best.as_ref().is_none_or(goes_further)
                && !start.has_diverged(&reader, *earlier).await?
            {
                best = Some(found);
            }
        }
        Ok(best)
    }

    /// Takes what a process of the attempt that saved the checkpoint said when it began: one that begins again may ask
    /// for the same.
    async fn begin(&mut self, frames: &mut LaneReader, own: Lane, until: u64) -> Result<()> {
        while let Some(frame) = frames.next().await? {
            if frame.kind == Kind::STEP || frame.sequence >= until {
                break;
            }
            self.take(&frame, own, false)?;
        }
        Ok(())
    }

    /// True if something was done that a program does again.
    fn is_something(&self) -> bool {
        !self.ends.is_empty() || self.reads.values().any(|reads| !reads.next.is_empty())
    }

    /// True if `other` did the same, and then more.
    fn is_beginning_of(&self, other: &Self) -> bool {
        let mut same = other.window.clone();
        same.steps.retain(|(step, lane), _| self.ends.get(lane).is_some_and(|end| step <= end));
        other.to > self.to && compare(&self.window, &same).divergences.is_empty()
    }

    /// Takes a frame; `is_since`: what stands before led from the checkpoint to it.
    fn take(&mut self, frame: &Frame, own: Lane, is_since: bool) -> Result<()> {
        match frame.kind {
            Kind::ENVIRONMENT => {
                self.window.environments.insert((frame.attempt, frame.lane), frame.value()?);
                return Ok(());
            }
            Kind::EXTERNAL_READ if frame.lane == own => {
                if let Some((key, value)) = read_of(frame)? {
                    let reads = self.reads.entry(key).or_default();
                    match is_since {
                        true => reads.next.push_back(value),
                        false => reads.before = Some(value),
                    }
                }
            }
            Kind::STEP if is_since && frame.step > self.from_step => {
                self.ends.insert(frame.lane, frame.step);
                self.to = self.to.max(frame.step);
            }
            Kind::EXTERNAL_READ | Kind::EVENT => {}
            _ => return Ok(()),
        }
        if !is_since {
            return Ok(());
        }
        self.window.add(&mut Table::default(), &(self.from_step + 1..=u64::MAX), frame)
    }

    /// The state went back to where the record begins: what the lane says since is overtaken.
    fn clear(&mut self, lane: Lane, own: Lane) {
        self.ends.remove(&lane);
        self.to = self.ends.values().copied().max().unwrap_or(self.from_step);
        self.window.steps.retain(|(_, of), _| *of != lane);
        self.window.events.retain(|(_, of), _| *of != lane);
        if lane == own {
            self.reads.values_mut().for_each(|reads| reads.next.clear());
        }
    }
}

/// Where records begin.
struct Start {
    from: Option<Hash>,
    step: u64,
    /// The attempt that saved it, or the first one.
    attempt: u64,
    /// What of that attempt led to it.
    cut: BTreeMap<LaneName, Position>,
}

impl Start {
    async fn of(ledger: &Ledger, from: Option<Hash>) -> Result<Self> {
        let Some(id) = from else {
            return Ok(Self { from, step: 0, attempt: 0, cut: BTreeMap::new() });
        };
        let checkpoint = ledger.history().checkpoint(&id);
        let checkpoint =
            checkpoint.ok_or_else(|| Error::not_found(format!("there is no checkpoint {id}")))?;
        let cut = history::cut_of(ledger, checkpoint).await?.lanes;
        Ok(Self { from, step: checkpoint.step, attempt: checkpoint.attempt, cut })
    }

    /// True if a rank of `attempt` was ended because it came to something else than what it did again.
    async fn has_diverged(&self, reader: &JournalReader, attempt: u64) -> Result<bool> {
        let (steps, kinds) = (Some(self.step..=u64::MAX), vec![Kind::DIVERGED]);
        let filter = Filter { steps, kinds, ..Filter::default() };
        let mut told = reader.merged(&history::everything([attempt]), filter);
        Ok(told.next().await?.is_some())
    }

    async fn read(
        &self,
        reader: &JournalReader,
        attempt: u64,
        (lanes, own): Lanes<'_>,
    ) -> Result<Record> {
        let mut record = Record {
            attempt,
            from: self.from,
            from_step: self.step,
            to: self.step,
            ends: BTreeMap::new(),
            window: Window::default(),
            reads: BTreeMap::new(),
        };
        for lane in lanes {
            let cut = self.cut.get(&LaneName(*lane)).filter(|_| attempt == self.attempt);
            let mut frames = reader.lane(attempt, *lane);
            if let Some(cut) = cut {
                record.begin(&mut frames, own, cut.next).await?;
                frames = reader.lane_from(attempt, *lane, *cut);
            } else if attempt == self.attempt && self.from.is_some() {
                // The checkpoint was saved without this lane.
                continue;
            }
            // Behind the cut the state is that of the checkpoint, and before a restore that of a fresh start.
            let mut at = cut.and(self.from);
            while let Some(frame) = frames.next().await? {
                if !matches!(frame.kind, Kind::RESTORED | Kind::REWOUND) {
                    record.take(&frame, own, at == self.from)?;
                    continue;
                }
                at = Some(history::restored(&frame)?);
                if at == self.from {
                    record.clear(*lane, own);
                }
            }
        }
        Ok(record)
    }
}
