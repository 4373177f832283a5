//! The events of a run's journal that the arguments choose: one after the other, and as a table of SQLite.
//!
//! | module | what it does |
//! |---|---|
//! | [`plain`] | what an event says, as JSON |
//! | [`table`] | the columns, and how a row is filled |
//! | [`database`] | the table in a temporary file, or in a file for other tools |
//! | [`query`] | what may be asked of it, and what to say of a mistake |

pub(crate) mod database;
pub(crate) mod plain;
pub(crate) mod query;
pub(crate) mod table;

use anyhow::Result;
use indicatif::ProgressBar;
use lastgood::Repository;
use lastgood::journal::history::{everything, parts};
use lastgood::journal::read::{Filter, JournalReader, Merged};
use lastgood::journal::{Frame, Value};
use lastgood::ledger::Ledger;

use crate::args::Which;
use crate::output;

/// How many frames go by between two looks at the progress.
const LOOK_EVERY: u64 = 1024;

/// The events that are chosen, in the canonical order. One segment of each lane is in memory at a time.
#[derive(Debug)]
pub(crate) struct Events<'a> {
    repository: &'a Repository,
    which: &'a Which,
    merged: Merged,
    bar: ProgressBar,
    seen: u64,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) frame: Frame,
    value: Option<Value>,
}

impl Event {
    /// What it says; decoded when it is asked for.
    pub(crate) fn value(&mut self) -> Result<&Value> {
        Ok(self.parts()?.1)
    }

    /// The frame, and what it says.
    pub(crate) fn parts(&mut self) -> Result<(&Frame, &Value)> {
        let value = match self.value.take() {
            Some(value) => value,
            None => self.frame.value()?,
        };
        Ok((&self.frame, self.value.insert(value)))
    }
}

impl<'a> Events<'a> {
    /// Those that `which` chooses. With `tells`, a bar shows how far they are.
    pub(crate) fn open(
        repository: &'a Repository,
        ledger: &Ledger,
        which: &'a Which,
        tells: bool,
    ) -> Result<Self> {
        let reader = repository.journal(ledger.run())?;
        let parts = if which.all {
            let mut attempts: Vec<u64> = reader.lanes().map(|lane| lane.attempt).collect();
            attempts.dedup();
            everything(attempts)
        } else {
            repository.block_on(parts(ledger, &reader, None))?
        };
        let attempts: Vec<u64> = parts.iter().map(|part| part.attempt).collect();
        let bytes = bytes_of(&reader, &attempts, which);
        let filter = Filter {
            steps: which.steps.clone(),
            lanes: which.ranks.clone(),
            kinds: which.kinds.clone(),
        };
        let bar = output::bar("reading", bytes, !tells);
        Ok(Self { repository, which, merged: reader.merged(&parts, filter), bar, seen: 0 })
    }

    /// The next one; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Event>> {
        loop {
            let Some(frame) = self.repository.block_on(self.merged.next())? else {
                self.bar.finish_and_clear();
                return Ok(None);
            };
            self.seen += 1;
            if self.seen.is_multiple_of(LOOK_EVERY) {
                self.bar.set_position(self.merged.bytes_done());
            }
            let mut event = Event { frame, value: None };
            let by_value = self.which.tensor.is_some() || self.which.cause.is_some();
            if !by_value || wants(self.which, event.value()?) {
                return Ok(Some(event));
            }
        }
    }
}

/// The stored bytes of the lanes that are chosen.
fn bytes_of(reader: &JournalReader, attempts: &[u64], which: &Which) -> u64 {
    let wants_lane = |lane| which.ranks.is_empty() || which.ranks.contains(&lane);
    let lanes = reader.lanes().filter(|l| wants_lane(l.lane) && attempts.contains(&l.attempt));
    lanes.map(|lane| lane.bytes).sum()
}

/// True if the event names the tensor and the cause that are wanted.
fn wants(which: &Which, value: &Value) -> bool {
    let names = |tensor: &String| names(value, tensor);
    let has_cause = |text: &String| {
        value.get("cause").is_some_and(|cause| cause.to_string().contains(text.as_str()))
    };
    which.tensor.as_ref().is_none_or(names) && which.cause.as_ref().is_none_or(has_cause)
}

/// True if a member's name or a text in `value` is `tensor`.
fn names(value: &Value, tensor: &str) -> bool {
    match value {
        Value::Text(text) => text == tensor,
        Value::Array(values) => values.iter().any(|value| names(value, tensor)),
        Value::Map(members) => {
            members.iter().any(|(name, value)| name == tensor || names(value, tensor))
        }
        _ => false,
    }
}
