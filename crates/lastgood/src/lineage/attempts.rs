//! When attempts began, and with which processes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::SystemTime;

use lastgood_format::ledger::Kind as Decision;
use lastgood_format::{Hash, Result};

use crate::journal::history::everything;
use crate::journal::read::{Filter, JournalReader};
use crate::journal::{Kind, Value};
use crate::ledger::Ledger;

/// One attempt, as the ledger and its processes tell of it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its number.
    pub number: u64,
    /// When it began, by the clock of who wrote the ledger's entry.
    pub at: SystemTime,
    /// The same, as the ledger has it.
    pub at_text: String,
    /// The name of its incarnation.
    pub incarnation: String,
    /// The ranks that it ran.
    pub world_size: u32,
    /// The checkpoint that it went on from.
    pub from: Option<Hash>,
    /// Its processes, by rank; those of which the journal tells.
    pub processes: BTreeMap<u32, Process>,
}

/// One process of an attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its rank.
    pub rank: u32,
    /// The logical ranks that it had.
    pub logical: Range<u32>,
    /// Its environment; empty if it told none.
    pub environment: BTreeMap<String, String>,
}

impl Process {
    /// The name of its host.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.environment.get("host.name").map(String::as_str)
    }
}

impl Attempt {
    /// The process that had a logical rank.
    #[must_use]
    pub fn process_of(&self, logical: u32) -> Option<&Process> {
        self.processes.values().find(|process| process.logical.contains(&logical))
    }

    /// The hosts of its processes, without duplicates.
    #[must_use]
    pub fn hosts(&self) -> BTreeSet<&str> {
        self.processes.values().filter_map(Process::host).collect()
    }
}

/// Every attempt of the run, without its processes.
pub(super) async fn all(ledger: &Ledger) -> Result<BTreeMap<u64, Attempt>> {
    let mut attempts = BTreeMap::new();
    for n in 1..=ledger.history().entries() {
        let Some((entry, _)) = ledger.read_entry(n).await? else { continue };
        let (at, at_text) = (entry.at, entry.at_text());
        if let Decision::AttemptStarted { number, world_size, from, incarnation } = entry.kind {
            let processes = BTreeMap::new();
            let attempt = Attempt { number, at, at_text, incarnation, world_size, from, processes };
            attempts.insert(number, attempt);
        }
    }
    Ok(attempts)
}

/// Those with these numbers, with what their processes tell.
pub(super) async fn read(
    reader: &JournalReader,
    begun: &BTreeMap<u64, Attempt>,
    numbers: &BTreeSet<u64>,
) -> Result<BTreeMap<u64, Attempt>> {
    let mut attempts: BTreeMap<u64, Attempt> = BTreeMap::new();
    attempts.extend(numbers.iter().filter_map(|n| Some((*n, begun.get(n)?.clone()))));
    // Each lane begins with these, before any step.
    let kinds = vec![Kind::ATTEMPT_BEGUN, Kind::ENVIRONMENT];
    let filter = Filter { steps: Some(0..=0), kinds, ..Filter::default() };
    let mut events = reader.merged(&everything(attempts.keys().copied()), filter);
    let mut rank_of = BTreeMap::new();
    while let Some(frame) = events.next().await? {
        let Some(attempt) = attempts.get_mut(&frame.attempt) else { continue };
        let value = frame.value()?;
        let place = (frame.attempt, frame.lane);
        if frame.kind == Kind::ATTEMPT_BEGUN {
            let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
            let Some(rank) = value.get("rank").and_then(number) else { continue };
            let logical = match value.get("logical").and_then(Value::as_array) {
                Some([first, end]) => number(first).zip(number(end)),
                _ => None,
            };
            let logical = logical.map_or(rank..rank + 1, |(first, end)| first..end);
            let process = attempt.processes.entry(rank).or_default();
            (process.rank, process.logical) = (rank, logical);
            rank_of.insert(place, rank);
        } else if let Some(rank) = rank_of.get(&place)
            && let Some(process) = attempt.processes.get_mut(rank)
        {
            let members = value.as_map().into_iter().flatten();
            let texts = members.filter_map(|(name, value)| Some((name, value.as_str()?)));
            process.environment = texts.map(|(k, v)| (k.clone(), v.to_owned())).collect();
        }
    }
    Ok(attempts)
}
