//! The failures that an attempt has recorded, its own and those of the recovery before it.

use anyhow::Result;
use lastgood::journal::history::everything;
use lastgood::journal::read::{Filter, JournalReader};
use lastgood::journal::{Frame, Kind, Value};
use lastgood::{ErrorKind, Repository};

use super::facts::{Mark, Moment};

/// What attempt `attempt` says of failures, as far as its journal can be read.
pub(super) fn faults(
    repository: &Repository,
    reader: &JournalReader,
    attempt: u64,
) -> Result<Vec<Moment>> {
    let filter = Filter { kinds: vec![Kind::FAULT, Kind::TAIL_CUT], ..Filter::default() };
    let mut events = reader.merged(&everything([attempt]), filter);
    let mut moments = Vec::new();
    loop {
        match repository.block_on(events.next()) {
            Ok(Some(frame)) => moments.push(moment(&frame, &frame.value()?)),
            Ok(None) => return Ok(moments),
            // What there is of an attempt that was killed, is told.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(moments),
            Err(error) => return Err(error.into()),
        }
    }
}

fn moment(frame: &Frame, value: &Value) -> Moment {
    let (mark, what) = match frame.kind {
        Kind::TAIL_CUT => tail_cut(value),
        _ => (Mark::Fault, fault(value)),
    };
    let what = format!("rank {}: {what}", frame.lane);
    Moment { at: frame.clock >> 16, attempt: frame.attempt, what, mark }
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or("?")
}

fn number(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_u64).map_or_else(|| "?".to_owned(), |n| n.to_string())
}

fn fault(value: &Value) -> String {
    let cause = text(value, "cause");
    match text(value, "what") {
        "save" => format!("the save of step {} failed: {cause}", number(value, "step")),
        "seal" => format!("the journal could not be sealed: {cause}"),
        "recover" => format!("the journal of an earlier attempt could not be recovered: {cause}"),
        other => format!("{other} failed: {cause}"),
    }
}

fn tail_cut(value: &Value) -> (Mark, String) {
    let [attempt, bytes] = ["attempt", "bytes"].map(|name| number(value, name));
    let cause = text(value, "cause");
    match value.get("aside") {
        None => {
            let what =
                format!("{bytes} bytes that attempt {attempt} was writing are cut off: {cause}");
            (Mark::Decision, what)
        }
        Some(aside) => {
            let place = aside.as_str().map_or_else(
                || "the file could not be set aside".to_owned(),
                |aside| format!("the file was set aside as {aside}"),
            );
            let what = format!(
                "{bytes} bytes of the journal of attempt {attempt} are damaged: {cause}; {place}"
            );
            (Mark::Fault, what)
        }
    }
}
