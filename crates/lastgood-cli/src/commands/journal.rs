//! `lastgood log --journal`: the events of a run, filtered and counted, one segment of each lane at a time.

use std::collections::BTreeMap;

use lastgood::journal::{Frame, Value};
use lastgood_format::journal::frame::FRAME_BYTES_MIN;
use serde_json::json;

use crate::args::{Journal, RunArgs};
use crate::events::Events;
use crate::events::plain::Plain;
use crate::exit::Exit;
use crate::{output, session};

pub(super) fn run(args: &RunArgs, journal: &Journal, as_json: bool) -> anyhow::Result<Exit> {
    let (repository, ledger) = session::ledger(args)?;
    let mut events = Events::open(&repository, &ledger, &journal.which, journal.count && !as_json)?;
    let mut counts: BTreeMap<(u64, String), Count> = BTreeMap::new();
    if !as_json && !journal.count {
        line(&["STEP", "RANK", "ATTEMPT", "N", "KIND", "WHAT"].map(str::to_owned));
    }
    while let Some(mut event) = events.next()? {
        if journal.count {
            let frame = &event.frame;
            let count = counts.entry((frame.attempt, frame.kind.to_string())).or_default();
            count.add(frame);
            continue;
        }
        let (frame, value) = event.parts()?;
        if as_json {
            output::json(&as_object(frame, value))?;
        } else {
            let Frame { step, lane, attempt, sequence, kind, .. } = frame;
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
    if journal.count {
        show_counts(&counts, as_json)?;
    }
    Ok(Exit::Done)
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
        "event": Plain::new(value),
    })
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
