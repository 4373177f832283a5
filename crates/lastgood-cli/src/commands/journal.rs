//! `lastgood log --journal`: the events of a run, filtered and counted, one segment of each lane at a time.

use std::collections::BTreeMap;

use lastgood::journal::history::{everything, parts};
use lastgood::journal::read::{Filter, JournalReader, Merged};
use lastgood::journal::{Frame, Value};
use lastgood::ledger::Ledger;
use lastgood::{Repository, Result};
use lastgood_format::journal::frame::FRAME_BYTES_MIN;
use serde_json::json;

use crate::args::{Journal, RunArgs};
use crate::exit::Exit;
use crate::{output, session};

pub(super) fn run(args: &RunArgs, which: &Journal, as_json: bool) -> anyhow::Result<Exit> {
    let (repository, ledger) = session::ledger(args)?;
    let reader = repository.journal(&args.run)?;
    let mut events = merged(&repository, &ledger, &reader, which)?;
    let mut counts: BTreeMap<(u64, String), Count> = BTreeMap::new();
    if !as_json && !which.count {
        line(&["STEP", "RANK", "ATTEMPT", "N", "KIND", "WHAT"].map(str::to_owned));
    }
    while let Some(frame) = repository.block_on(events.next())? {
        let value = frame.value()?;
        if !wants(which, &value) {
            continue;
        }
        if which.count {
            let count = counts.entry((frame.attempt, frame.kind.to_string())).or_default();
            count.add(&frame);
        } else if as_json {
            output::json(&as_object(&frame, &value))?;
        } else {
            let Frame { step, lane, attempt, sequence, kind, .. } = &frame;
            line(&[
                step.to_string(),
                lane.to_string(),
                attempt.to_string(),
                sequence.to_string(),
                kind.to_string(),
                value.to_string(),
            ]);
        }
    }
    if which.count {
        show_counts(&counts, as_json)?;
    }
    Ok(Exit::Done)
}

fn merged(
    repository: &Repository,
    ledger: &Ledger,
    reader: &JournalReader,
    which: &Journal,
) -> Result<Merged> {
    let parts = if which.all {
        let mut attempts: Vec<u64> = reader.lanes().map(|lane| lane.attempt).collect();
        attempts.dedup();
        everything(attempts)
    } else {
        repository.block_on(parts(ledger, reader, None))?
    };
    let filter = Filter {
        steps: which.steps.clone(),
        lanes: which.ranks.clone(),
        kinds: which.kinds.clone(),
    };
    Ok(reader.merged(&parts, filter))
}

/// True if the event names the tensor and the cause that are wanted.
fn wants(which: &Journal, value: &Value) -> bool {
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

/// A line of columns that are wide enough for most, so that lines can be printed as they are read.
fn line([step, rank, attempt, n, kind, what]: &[String; 6]) {
    const SHOWN: usize = 160;
    let mut shown: String = what.chars().take(SHOWN).collect();
    if what.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    let text = format!("{step:>8}  {rank:<7}  {attempt:>7}  {n:>8}  {kind:<16}  {shown}");
    output::line(text.trim_end());
}

fn as_object(frame: &Frame, value: &Value) -> serde_json::Value {
    json!({
        "step": frame.step,
        "rank": frame.lane.rank(),
        "attempt": frame.attempt,
        "n": frame.sequence,
        "kind": frame.kind.to_string(),
        "at_ms": frame.clock >> 16,
        "event": plain(value),
    })
}

/// As JSON: bytes as hexadecimal digits, and numbers that JSON lacks as text.
fn plain(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => json!(value),
        Value::Uint(value) => json!(value),
        Value::Negative(value) => json!(value),
        Value::F32(value) if value.is_finite() => json!(value),
        Value::F64(value) if value.is_finite() => json!(value),
        Value::F32(_) | Value::F64(_) => json!(value.to_string()),
        Value::Bytes(bytes) => json!(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()),
        Value::Text(text) => json!(text),
        Value::Array(values) => values.iter().map(plain).collect(),
        Value::Map(members) => {
            members.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
        }
    }
}

/// The events of one kind of one attempt.
#[derive(Default)]
struct Count {
    events: u64,
    bytes: u64,
    first: Option<u64>,
    last: u64,
}

impl Count {
    fn add(&mut self, frame: &Frame) {
        self.events += 1;
        self.bytes += (FRAME_BYTES_MIN + frame.payload.len()) as u64;
        self.first.get_or_insert(frame.step);
        self.last = frame.step;
    }
}

fn show_counts(counts: &BTreeMap<(u64, String), Count>, as_json: bool) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for ((attempt, kind), Count { events, bytes, first, last }) in counts {
        let first = first.unwrap_or(0);
        if as_json {
            output::json(&json!({"attempt": attempt, "kind": kind, "events": events,
                "bytes": bytes, "first_step": first, "last_step": last}))?;
        }
        rows.push(vec![
            attempt.to_string(),
            kind.clone(),
            events.to_string(),
            output::size(*bytes),
            format!("{first} to {last}"),
        ]);
    }
    if !as_json {
        output::table(&["ATTEMPT", "KIND", "EVENTS", "SIZE", "STEPS"], &rows);
    }
    Ok(())
}
