//! What the ledger and the journal know of an incident.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use lastgood::certificate::{Certificate, PublicKey};
use lastgood::journal::history::everything;
use lastgood::journal::read::{Filter, JournalReader};
use lastgood::journal::{Kind as EventKind, Lane};
use lastgood::ledger::{Checkpoint, History, Ledger};
use lastgood::preflight::Report;
use lastgood::replay::compare::{Comparison, compare};
use lastgood::replay::window::Window;
use lastgood::restore::choose;
use lastgood::{Error, ErrorKind, Hash, Repository, RunName};
use lastgood_format::ledger::{Entry, Kind};

use super::faults::faults;

/// How many checkpoints are shown that were not taken.
const CANDIDATES_MAX: usize = 12;

/// An incident.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) store: String,
    pub(crate) repository: String,
    pub(crate) run: RunName,
    /// The attempt that ended.
    pub(crate) failed: Attempt,
    /// The one that went on.
    pub(crate) next: Attempt,
    /// What the ledger says of the end.
    pub(crate) causes: Vec<String>,
    /// The checkpoint that was taken; `None` for a fresh start.
    pub(crate) chosen: Option<Checkpoint>,
    /// Those that were there, the newest first, each with what was thought of it.
    pub(crate) candidates: Vec<(Checkpoint, String)>,
    /// Steps that were done twice: what both say of them.
    pub(crate) again: Option<Comparison>,
    /// What the ranks of the next attempt found before they restored.
    pub(crate) preflights: Vec<(Lane, Report)>,
    /// Everything that has a time, in its order.
    pub(crate) moments: Vec<Moment>,
    pub(crate) certificate: Option<(Certificate, PublicKey)>,
}

/// What is known of one attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) number: u64,
    pub(crate) world_size: u32,
    pub(crate) from: Option<Hash>,
    /// When it was started, in milliseconds since 1970.
    pub(crate) started: u64,
    /// The first and the last step that it recorded, and when.
    pub(crate) first: Option<(u64, u64)>,
    pub(crate) last: Option<(u64, u64)>,
    /// When it recorded each step first.
    reached: BTreeMap<u64, u64>,
    /// The last that is known of it.
    pub(crate) ended: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    /// Milliseconds since 1970, by the clock of whoever did it.
    pub(crate) at: u64,
    pub(crate) attempt: u64,
    pub(crate) what: String,
    pub(crate) mark: Mark,
}

/// How a moment is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    Attempt,
    Checkpoint,
    Step,
    Fault,
    Decision,
}

impl Facts {
    /// The facts of the end of `attempt`, or of the newest attempt that was followed by another one.
    pub(crate) fn read(
        repository: &Repository,
        ledger: &Ledger,
        attempt: Option<u64>,
        certificate: Option<(Certificate, PublicKey)>,
    ) -> Result<Self> {
        let newest = ledger.history().newest_attempt();
        let number = attempt.unwrap_or(newest.saturating_sub(1));
        if number == 0 || number >= newest {
            bail!(
                Error::not_found(match (attempt, newest) {
                    (Some(number), _) =>
                        format!("attempt {number} was not followed by another one"),
                    (None, 0) => "the run has no attempt".to_owned(),
                    (None, _) => "the run has one attempt: nothing has happened to it".to_owned(),
                })
                .with_remedy(format!("the newest attempt is {newest}; `lastgood log` lists all"))
            );
        }
        let entries = entries(repository, ledger)?;
        let next = number + 1;
        let begin = entries.iter().position(|e| started(e) == Some(number)).unwrap_or(0);
        let turn = entries.iter().position(|e| started(e) == Some(next));
        let turn = turn.ok_or_else(|| Error::corrupt(format!("no entry starts attempt {next}")))?;
        let end = entries.iter().position(|e| started(e) == Some(next + 1));
        let shown = &entries[begin..end.unwrap_or(entries.len())];
        let before = history_before(ledger, &entries[..turn])?;
        let reader = repository.journal(ledger.run())?;
        let mut failed = attempt_of(repository, &reader, &entries[begin])?;
        let mut after = attempt_of(repository, &reader, &entries[turn])?;
        let told = shown.iter().filter(|entry| entry.attempt == failed.number).map(at_of).max();
        failed.ended = failed.ended.max(told.unwrap_or(0)).min(after.started.max(failed.started));
        let told = shown.iter().filter(|entry| entry.attempt == after.number).map(at_of).max();
        after.ended = after.ended.max(told.unwrap_or(0));
        let chosen = after.from.and_then(|id| before.checkpoint(&id)).cloned();
        let again = again(repository, &reader, &failed, &after, chosen.as_ref())?;
        let preflights = match repository.preflights_in(&reader, next) {
            // What is said of the incident is worth more than what is not.
            Err(error) if error.kind() == ErrorKind::Corrupt => Vec::new(),
            found => found?,
        };
        let mut moments: Vec<Moment> = shown.iter().filter_map(moment).collect();
        moments.extend(steps(&failed, &after));
        for attempt in [failed.number, next] {
            moments.extend(faults(repository, &reader, attempt)?);
        }
        moments.sort();
        Ok(Self {
            store: repository.store().location().clone(),
            repository: repository.id().to_owned(),
            run: ledger.run().clone(),
            causes: causes(&entries[begin..=turn]),
            candidates: candidates(&before, chosen.as_ref()),
            failed,
            next: after,
            chosen,
            again,
            preflights,
            moments,
            certificate,
        })
    }

    /// The step that it went back to; 0 for a fresh start.
    pub(crate) fn base_step(&self) -> u64 {
        self.chosen.as_ref().map_or(0, |checkpoint| checkpoint.step)
    }

    /// How many steps had been done that the checkpoint lacks, if the journal says so.
    pub(crate) fn lost(&self) -> Option<u64> {
        Some(self.failed.last?.0.saturating_sub(self.base_step()))
    }

    /// How many of them were done again.
    pub(crate) fn done_again(&self) -> u64 {
        let (Some((lost, _)), Some((reached, _))) = (self.failed.last, self.next.last) else {
            return 0;
        };
        reached.min(lost).saturating_sub(self.base_step())
    }

    /// From the last sign of life of the attempt that ended to the first step of the next one, in milliseconds.
    pub(crate) fn down(&self) -> Option<u64> {
        let (_, again) = self.next.first?;
        Some(again.saturating_sub(self.failed.last.map_or(self.failed.ended, |(_, at)| at)))
    }

    /// From there to when the work that was lost was done again.
    pub(crate) fn behind(&self) -> Option<u64> {
        let (lost, at) = self.failed.last?;
        Some(self.next.reached.get(&lost)?.saturating_sub(at))
    }
}

fn entries(repository: &Repository, ledger: &Ledger) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for n in 1..=ledger.history().entries() {
        let Some((entry, _)) = repository.block_on(ledger.read_entry(n))? else { break };
        entries.push(entry);
    }
    Ok(entries)
}

fn started(entry: &Entry) -> Option<u64> {
    match entry.kind {
        Kind::AttemptStarted { number, .. } => Some(number),
        _ => None,
    }
}

/// The history that the decision was made by.
fn history_before(ledger: &Ledger, entries: &[Entry]) -> Result<History> {
    let mut history = History::new(ledger.run().clone());
    for entry in entries {
        let hash = Hash::of(&entry.encode()?);
        history.apply(entry, hash)?;
    }
    Ok(history)
}

fn at_of(entry: &Entry) -> u64 {
    let since = entry.at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn attempt_of(repository: &Repository, reader: &JournalReader, entry: &Entry) -> Result<Attempt> {
    let Kind::AttemptStarted { number, world_size, from, .. } = entry.kind else {
        return Ok(Attempt::default());
    };
    let filter = Filter { kinds: vec![EventKind::STEP], ..Filter::default() };
    let mut events = reader.merged(&everything([number]), filter);
    let mut attempt =
        Attempt { number, world_size, from, started: at_of(entry), ..Attempt::default() };
    attempt.ended = attempt.started;
    loop {
        let frame = match repository.block_on(events.next()) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(attempt),
            // An attempt that was killed may lack its end; what there is, is told.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(attempt),
            Err(error) => return Err(error.into()),
        };
        let at = frame.clock >> 16;
        attempt.reached.entry(frame.step).or_insert(at);
        attempt.first = attempt.first.or(Some((frame.step, at)));
        if attempt.last.is_none_or(|(step, _)| frame.step > step) {
            attempt.last = Some((frame.step, at));
        }
        attempt.ended = attempt.ended.max(at);
    }
}

/// What both say of the steps that were done twice.
fn again(
    repository: &Repository,
    reader: &JournalReader,
    failed: &Attempt,
    next: &Attempt,
    chosen: Option<&Checkpoint>,
) -> Result<Option<Comparison>> {
    let from = chosen.map_or(0, |checkpoint| checkpoint.step);
    let (Some((lost, _)), Some((reached, _))) = (failed.last, next.last) else { return Ok(None) };
    let steps = from + 1..=lost.min(reached);
    if steps.is_empty() {
        return Ok(None);
    }
    let window =
        |attempt: &Attempt| Window::of_attempt(repository, reader, attempt.number, steps.clone());
    let (mut one, mut other) = (window(failed)?, window(next)?);
    // A rank that was killed may not have come as far as the others: what only one says is no difference.
    one.steps.retain(|at, _| other.steps.contains_key(at));
    other.steps.retain(|at, _| one.steps.contains_key(at));
    for (window, steps) in [(&mut one.events, &other.steps), (&mut other.events, &one.steps)] {
        window.retain(|at, _| steps.contains_key(at));
    }
    Ok(Some(compare(&one, &other)))
}

fn causes(entries: &[Entry]) -> Vec<String> {
    let cause = |entry: &Entry| match &entry.kind {
        Kind::IncidentOpened { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    entries.iter().filter_map(cause).collect()
}

fn candidates(history: &History, chosen: Option<&Checkpoint>) -> Vec<(Checkpoint, String)> {
    let by_rule = choose(history).map(|checkpoint| checkpoint.id);
    let why = |checkpoint: &Checkpoint| {
        let taken = chosen.is_some_and(|chosen| chosen.id == checkpoint.id);
        let reason = checkpoint.reason.as_ref().map_or(String::new(), |r| format!(": {r}"));
        match (taken, checkpoint.expired) {
            (true, _) if by_rule == Some(checkpoint.id) => {
                format!("taken: the newest {}{reason}", checkpoint.standing)
            }
            (true, _) => format!("taken; {}{reason}", checkpoint.standing),
            (false, true) => "expired".to_owned(),
            (false, false) => match chosen {
                Some(chosen) if chosen.entry > checkpoint.entry => {
                    format!("older; {}{reason}", checkpoint.standing)
                }
                _ => format!("{}{reason}", checkpoint.standing),
            },
        }
    };
    let all = history.checkpoints().iter().rev();
    all.take(CANDIDATES_MAX).map(|checkpoint| (checkpoint.clone(), why(checkpoint))).collect()
}

fn moment(entry: &Entry) -> Option<Moment> {
    let (mark, what) = match &entry.kind {
        Kind::AttemptStarted { number, world_size, from, .. } => {
            let from = from.map_or_else(|| "fresh".into(), |id| format!("from {}", id.short()));
            (Mark::Attempt, format!("attempt {number} of {world_size} ranks starts, {from}"))
        }
        Kind::CheckpointCommitted { checkpoint, step, .. } => {
            (Mark::Checkpoint, format!("checkpoint {} of step {step}", checkpoint.short()))
        }
        Kind::CheckpointGood { checkpoint, reason }
        | Kind::CheckpointVerified { checkpoint, reason } => {
            (Mark::Decision, format!("{} is {}: {reason}", checkpoint.short(), entry.kind.name()))
        }
        Kind::CheckpointBad { checkpoint, reason } => {
            (Mark::Fault, format!("{} is bad: {reason}", checkpoint.short()))
        }
        Kind::SaveAbandoned { step, reason, .. } => {
            (Mark::Fault, format!("the save of step {step} is given up: {reason}"))
        }
        Kind::IncidentOpened { reason, .. } => (Mark::Fault, reason.clone()),
        Kind::AttemptEnded { how, reason } => {
            (Mark::Attempt, format!("it ended ({how}): {reason}"))
        }
        Kind::SaveRequested { step: Some(step), reason, .. } => {
            (Mark::Decision, format!("a save of step {step} is asked for: {reason}"))
        }
        Kind::PolicyChosen { from_step, every, .. } => {
            (Mark::Decision, format!("a save every {every} steps from step {from_step} on"))
        }
        Kind::PreflightAccepted { differences, reason } => {
            let keys: Vec<&str> = differences.iter().map(|d| d.key.as_str()).collect();
            (Mark::Decision, format!("accepted: {}: {reason}", keys.join(", ")))
        }
        Kind::RunCreated {} => return None,
        other => (Mark::Decision, other.name().to_owned()),
    };
    Some(Moment { at: at_of(entry), attempt: entry.attempt, what, mark })
}

/// The steps that say how the incident went.
fn steps(failed: &Attempt, next: &Attempt) -> Vec<Moment> {
    let of = |attempt: u64, (step, at): (u64, u64), what: &str| Moment {
        at,
        attempt,
        what: format!("step {step}: {what}"),
        mark: Mark::Step,
    };
    let last = failed.last.map(|last| of(failed.number, last, "the last one of the attempt"));
    let first = next.first.map(|first| of(next.number, first, "the first one after it"));
    let caught = failed.last.and_then(|(step, _)| {
        let at = *next.reached.get(&step)?;
        Some(of(next.number, (step, at), "everything that was lost is done again"))
    });
    [last, first, caught].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
