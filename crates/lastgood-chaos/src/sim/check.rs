//! Judging what a simulation, or a crash, left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lastgood::ledger::{History, Ledger, Rules};
use lastgood::restore::Contents;
use lastgood_format::ledger::{Entry, Kind};
use lastgood_format::{Error, Hash, Result, RunName};
use lastgood_store::{Env, Store};

use crate::ranks::{Told, content};
use crate::violation::{Invariant, Violation};

/// Runs work that never has to wait.
///
/// # Errors
/// `Internal` if it waits after all.
pub fn at_once<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => Err(Error::internal("a store without delays made somebody wait")),
    }
}

/// What an honest reader finds in a store without faults.
#[derive(Debug)]
pub struct Found {
    /// The ledger.
    pub ledger: Ledger,
    /// Its entries, from the first, with their hashes.
    pub entries: Vec<(Entry, Hash)>,
}

impl Found {
    fn is_incident(&self, n: u64, told: &str) -> bool {
        let entry = n.checked_sub(1).and_then(|i| self.entries.get(i as usize));
        entry.is_some_and(
            |(entry, _)| matches!(&entry.kind, Kind::IncidentOpened { reason, .. } if reason == told),
        )
    }
}

/// Reads the ledger twice, once from its newest head and once from its first entry.
///
/// # Errors
/// A violation of one history.
pub fn read(
    store: Arc<dyn Store>,
    env: Arc<dyn Env>,
    run: &RunName,
    rules: Arc<dyn Rules>,
) -> std::result::Result<Found, Violation> {
    let forked = |error: Error| Violation::new(Invariant::OneHistory, error.to_string());
    let ledger = at_once(Ledger::open_with(store, env, run.clone(), rules)).map_err(forked)?;
    at_once(ledger.audit()).map_err(forked)?;
    let mut entries = Vec::new();
    for n in 1..=ledger.history().entries() {
        let entry = at_once(ledger.read_entry(n)).map_err(forked)?;
        let missing = || Violation::new(Invariant::OneHistory, format!("entry {n} is missing"));
        entries.push(entry.ok_or_else(missing)?);
    }
    Ok(Found { ledger, entries })
}

/// Checks the entries against each other: fences, abandoned saves, expired bases.
///
/// # Errors
/// The first violation.
pub fn check_entries(found: &Found) -> std::result::Result<(), Violation> {
    let mut history = History::new(found.ledger.run().clone());
    let mut names = BTreeSet::new();
    for (entry, hash) in &found.entries {
        match &entry.kind {
            Kind::AttemptStarted { incarnation, .. } if !names.insert(incarnation.clone()) => {
                return Err(Violation::new(
                    Invariant::OneAttemptAnIncarnation,
                    format!("entry {} starts {incarnation:?} again", entry.n),
                ));
            }
            Kind::CheckpointCommitted { .. } => check_commit(&history, entry)?,
            _ => {}
        }
        let applied = history.apply(entry, *hash);
        applied.map_err(|error| Violation::new(Invariant::OneHistory, error.to_string()))?;
    }
    Ok(())
}

fn check_commit(history: &History, entry: &Entry) -> std::result::Result<(), Violation> {
    let Kind::CheckpointCommitted { step, generation, reuses, .. } = &entry.kind else {
        return Ok(());
    };
    let (n, attempt) = (entry.n, entry.attempt);
    let broken =
        |invariant, why: String| Err(Violation::new(invariant, format!("entry {n} {why}")));
    if attempt != history.newest_attempt() {
        let newest = history.newest_attempt();
        return broken(
            Invariant::FencedCommitsNothing,
            format!("commits a save of attempt {attempt} after attempt {newest} began"),
        );
    }
    if history.is_abandoned(attempt, *step, *generation) {
        return broken(
            Invariant::AbandonedStaysAbandoned,
            format!("commits step {step} of attempt {attempt}, which was abandoned"),
        );
    }
    if history.committed(attempt, *step, *generation).is_some() {
        return broken(
            Invariant::OneCommitASave,
            format!("commits step {step} of attempt {attempt} again"),
        );
    }
    for base in reuses {
        let Some(found) = history.checkpoint(base).filter(|found| !found.expired) else {
            return broken(Invariant::NoReuseOfExpired, format!("reuses {}", base.short()));
        };
        if found.was_bad {
            return broken(Invariant::NoReuseOfBad, format!("reuses {}", base.short()));
        }
    }
    Ok(())
}

/// Reads every byte of every checkpoint that has not expired.
///
/// # Errors
/// A violation naming the checkpoint.
pub fn check_checkpoints(found: &Found) -> std::result::Result<(), Violation> {
    for checkpoint in found.ledger.history().checkpoints().iter().filter(|c| !c.expired) {
        read_checkpoint(&found.ledger, &checkpoint.id).map_err(|error| {
            Violation::new(
                Invariant::CommittedIsReadable,
                format!("step {} of attempt {}: {error}", checkpoint.step, checkpoint.attempt),
            )
        })?;
    }
    Ok(())
}

/// Reads every byte of one checkpoint; gives its tables.
///
/// # Errors
/// As [`Contents::load`] and [`content::verify`].
pub fn read_checkpoint(ledger: &Ledger, id: &Hash) -> Result<Contents> {
    let contents = at_once(Contents::load(ledger, id))?;
    at_once(content::verify(ledger.store().as_ref(), &contents))?;
    Ok(contents)
}

/// Checks that everything that anybody was told still holds.
///
/// # Errors
/// The first violation.
pub fn check_told(found: &Found, told: &[Told]) -> std::result::Result<(), Violation> {
    let history = found.ledger.history();
    let mut attempts: BTreeMap<u64, &str> = BTreeMap::new();
    for (entry, _) in &found.entries {
        if let Kind::AttemptStarted { number, incarnation, .. } = &entry.kind {
            attempts.insert(*number, incarnation);
        }
    }
    for (i, told_now) in told.iter().enumerate() {
        match told_now {
            Told::Attempt { number, incarnation } => {
                if attempts.get(number) != Some(&incarnation.as_str()) {
                    let detail = format!("attempt {number} of {incarnation:?} is gone");
                    return Err(Violation::new(Invariant::AcknowledgedStays, detail));
                }
            }
            Told::Committed { save, id } => {
                if history.checkpoint(id).is_none() {
                    let detail = format!("{save} was committed as {} and is gone", id.short());
                    return Err(Violation::new(Invariant::AcknowledgedStays, detail));
                }
            }
            Told::Appended { n, reason } => {
                if !found.is_incident(*n, reason) {
                    let detail = format!("entry {n} was appended and is gone");
                    return Err(Violation::new(Invariant::AcknowledgedStays, detail));
                }
            }
            Told::NotAppended { reason } => check_not_appended(found, reason)?,
            Told::Tail { entries, tail } => check_tail(found, *entries, *tail)?,
            Told::Opened { told_before, checkpoints } => {
                check_opened(&told[..(*told_before).min(i)], checkpoints)?;
            }
            Told::Unreadable { id, error } => {
                if history.checkpoint(id).is_none_or(|checkpoint| !checkpoint.expired) {
                    let detail = format!("{}: {error}", id.short());
                    return Err(Violation::new(Invariant::CommittedIsReadable, detail));
                }
            }
            Told::Collided { save, error } => {
                let detail = format!("{save}: {error}");
                return Err(Violation::new(Invariant::SavingAgainIsFree, detail));
            }
        }
    }
    Ok(())
}

fn check_not_appended(found: &Found, reason: &str) -> std::result::Result<(), Violation> {
    match (1..=found.entries.len() as u64).find(|n| found.is_incident(*n, reason)) {
        None => Ok(()),
        Some(n) => {
            let detail = format!("an append was told as certainly not done, and is entry {n}");
            Err(Violation::new(Invariant::UnknownIsNotRefused, detail))
        }
    }
}

fn check_tail(
    found: &Found,
    entries: u64,
    tail: Option<Hash>,
) -> std::result::Result<(), Violation> {
    let now = match entries.checked_sub(1) {
        Some(i) => found.entries.get(i as usize).map(|(_, hash)| *hash),
        None => None,
    };
    if now == tail {
        return Ok(());
    }
    let detail = format!("somebody relied on entry {entries}, which is gone or another one now");
    Err(Violation::new(Invariant::OneHistory, detail))
}

fn check_opened(before: &[Told], seen: &[Hash]) -> std::result::Result<(), Violation> {
    for told in before {
        if let Told::Committed { save, id } = told
            && !seen.contains(id)
        {
            let detail =
                format!("{save} was committed, and who opened the run then did not see it");
            return Err(Violation::new(Invariant::ReadersSeeAcknowledged, detail));
        }
    }
    Ok(())
}
