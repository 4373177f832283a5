//! The table `events`: its columns, what the kinds of events hold, and how a row is filled.

use anyhow::Result;
use lastgood::journal::{Kind, Value};
use rusqlite::{Connection, Statement, params};
use serde::Serialize;

use super::Event;
use super::plain::Plain;

/// A column.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    /// Its type, and how it is computed if it is not stored.
    #[serde(rename = "type")]
    pub(crate) sql_type: &'static str,
    #[serde(skip)]
    generated: &'static str,
    pub(crate) what: &'static str,
}

const fn column(name: &'static str, sql_type: &'static str, what: &'static str) -> Column {
    Column { name, sql_type, generated: "", what }
}

/// The columns in their order. A row is filled in the same one.
pub(crate) const COLUMNS: &[Column] = &[
    column("attempt", "integer", "the attempt"),
    column("step", "integer", "the steps that were finished"),
    column("rank", "integer", "the logical rank; null for the control lane"),
    column("lane", "text", "the lane: control, or the logical rank"),
    column("seq", "integer", "the number in its lane, from 0: the N of `lastgood log`"),
    column("at_ms", "integer", "when, by the writer's clock: milliseconds since 1970"),
    Column {
        name: "at",
        sql_type: "text",
        generated: " generated always as (strftime('%Y-%m-%dT%H:%M:%fZ', at_ms / 1000.0, 'unixepoch')) virtual",
        what: "the same as UTC, RFC 3339",
    },
    column("kind", "text", "the kind of event"),
    column("loss", "real", "the member loss, if it is a number; null for NaN, which `event` tells"),
    column("lr", "real", "the member lr; of several groups the first"),
    column("tensor", "text", "the member tensor, if it is text"),
    column("cause", "text", "the member cause, if it is text"),
    column("event", "text", "what the event says, as JSON: event ->> '$.loss'"),
];

/// What events of a kind hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holds {
    pub(crate) kind: Kind,
    /// The members that it has, or may have.
    pub(crate) members: &'static [&'static str],
    pub(crate) what: &'static str,
}

const fn holds(kind: Kind, members: &'static [&'static str], what: &'static str) -> Holds {
    Holds { kind, members, what }
}

/// Every kind that this version knows.
pub(crate) const KINDS: &[Holds] = &[
    holds(
        Kind::ATTEMPT_BEGUN,
        &["world", "rank", "logical", "from"],
        "a lane begins: of which ranks, from which checkpoint",
    ),
    holds(Kind::ENVIRONMENT, &[], "the environment of a process, by its own names"),
    holds(Kind::RESTORED, &["checkpoint", "step"], "the state was restored, before any step"),
    holds(
        Kind::STEP,
        &["loss", "lr", "rng", "data"],
        "a step is done; and whatever else the program tells of it",
    ),
    holds(
        Kind::STATE_DIGEST,
        &["at", "layout", "sums", "part", "parts", "source"],
        "fingerprints of what a rank holds after step `at`",
    ),
    holds(Kind::SAVE_CAPTURED, &["step", "generation"], "a save was captured"),
    holds(Kind::CHECKPOINT_SEEN, &["checkpoint", "step"], "a save became a checkpoint"),
    holds(Kind::EXTERNAL_READ, &["key", "value"], "something from outside of the run was read"),
    holds(Kind::EVENT, &["kind", "data"], "an event of the program's own kind"),
    holds(
        Kind::FAULT,
        &["what", "step", "error", "cause", "object"],
        "a save failed, or the journal could not be sealed or recovered",
    ),
    holds(Kind::PREFLIGHT, &[], "what a preflight found"),
    holds(
        Kind::TAIL_CUT,
        &["attempt", "file", "bytes", "cause", "aside"],
        "a torn or damaged end was cut off when an earlier attempt's journal was recovered",
    ),
    holds(
        Kind::DIVERGED,
        &["attempt", "at", "code", "rank", "what", "recorded", "found"],
        "a step that is done again differs from what an earlier attempt recorded",
    ),
    holds(Kind::REWOUND, &["checkpoint", "step"], "the attempt went back to a checkpoint"),
    holds(
        Kind::STATE_LAYOUT,
        &["layout", "part", "parts", "tensors"],
        "the tensors of the digests that name this layout",
    ),
    holds(
        Kind::RESUMED,
        &["attempt", "from", "from_step", "to"],
        "steps were done again as an earlier attempt recorded them",
    ),
];

/// Which columns are filled; the others stay null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needed([bool; COLUMNS.len()]);

impl Needed {
    pub(crate) const ALL: Self = Self([true; COLUMNS.len()]);

    /// Those of which `is_needed` is true, and what they are computed from.
    pub(crate) fn those(is_needed: impl Fn(&str) -> bool) -> Self {
        let mut needed = Self([false; COLUMNS.len()]);
        for (i, column) in COLUMNS.iter().enumerate() {
            needed.0[i] = is_needed(column.name) || column.name == "at_ms" && is_needed("at");
        }
        needed
    }

    fn has(&self, name: &str) -> bool {
        COLUMNS.iter().zip(self.0).any(|(column, needed)| column.name == name && needed)
    }
}

/// The statement that makes the table.
pub(crate) fn create() -> String {
    let columns: Vec<String> = COLUMNS
        .iter()
        .map(|Column { name, sql_type, generated, .. }| format!("  {name} {sql_type}{generated}"))
        .collect();
    format!("create table events (\n{}\n)", columns.join(",\n"))
}

/// Fills rows.
#[derive(Debug)]
pub(crate) struct Filler<'c> {
    insert: Statement<'c>,
    lane: bool,
    seq: bool,
    at: bool,
    kind: bool,
    loss: bool,
    lr: bool,
    tensor: bool,
    cause: bool,
    event: bool,
}

impl<'c> Filler<'c> {
    pub(crate) fn new(connection: &'c Connection, needed: &Needed) -> rusqlite::Result<Self> {
        let stored = COLUMNS.iter().filter(|column| column.generated.is_empty());
        let names: Vec<&str> = stored.map(|column| column.name).collect();
        let places = vec!["?"; names.len()].join(", ");
        let insert = format!("insert into events ({}) values ({places})", names.join(", "));
        Ok(Self {
            insert: connection.prepare(&insert)?,
            lane: needed.has("lane"),
            seq: needed.has("seq"),
            at: needed.has("at_ms"),
            kind: needed.has("kind"),
            loss: needed.has("loss"),
            lr: needed.has("lr"),
            tensor: needed.has("tensor"),
            cause: needed.has("cause"),
            event: needed.has("event"),
        })
    }

    /// Adds the row of `event`.
    pub(crate) fn fill(&mut self, event: &mut Event) -> Result<()> {
        let frame = &event.frame;
        let (attempt, step) = (integer(frame.attempt), integer(frame.step));
        let rank = frame.lane.rank();
        let lane = self.lane.then(|| frame.lane.to_string());
        let seq = self.seq.then(|| integer(frame.sequence));
        let at = self.at.then(|| integer(frame.clock >> 16));
        let kind = self.kind.then(|| frame.kind.to_string());
        let mut said = Said::default();
        if self.loss || self.lr || self.tensor || self.cause || self.event {
            said = self.said(event.value()?)?;
        }
        let Said { loss, lr, tensor, cause, event } = said;
        self.insert
            .execute(params![
                attempt, step, rank, lane, seq, at, kind, loss, lr, tensor, cause, event
            ])
            .map_err(super::query::loading_failed)?;
        Ok(())
    }

    fn said(&self, value: &Value) -> Result<Said> {
        let text = |name| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let rate = |value: &Value| match value {
            Value::Array(groups) => groups.first().and_then(number),
            one => number(one),
        };
        Ok(Said {
            loss: value.get("loss").filter(|_| self.loss).and_then(number),
            lr: value.get("lr").filter(|_| self.lr).and_then(rate),
            tensor: if self.tensor { text("tensor") } else { None },
            cause: if self.cause { text("cause") } else { None },
            event: match self.event {
                true => Some(serde_json::to_string(&Plain::for_sql(value))?),
                false => None,
            },
        })
    }
}

/// What a row has of what the event says.
#[derive(Debug, Default)]
struct Said {
    loss: Option<f64>,
    lr: Option<f64>,
    tensor: Option<String>,
    cause: Option<String>,
    event: Option<String>,
}

/// A counter as SQLite has it. None comes to 2^63 by counting.
fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Uint(number) => Some(*number as f64),
        Value::Negative(number) => Some(*number as f64),
        Value::F32(number) => Some(f64::from(*number)),
        Value::F64(number) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
