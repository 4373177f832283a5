//! When the bytes of a tensor changed, as far as fingerprints of it were recorded.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_format::{Fingerprint, Result};

use crate::journal::history::{Part, everything};
use crate::journal::read::{Filter, JournalReader};
use crate::journal::{Frame, Kind, Value};
use crate::ledger::Checkpoint;
use crate::replay::state::Table;

/// What the journal says of a tensor's bytes up to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// How many states up to the step have a fingerprint of it.
    pub states: u64,
    /// The step of the first of them.
    pub first: u64,
    /// The step of the last of them.
    pub last: u64,
    /// The fingerprint then.
    pub sum: Fingerprint,
    /// The step of the first state that had this fingerprint without a change since.
    pub since: u64,
    /// The step and the fingerprint of the state before that, which was another; `None` if it never changed.
    pub before: Option<(u64, Fingerprint)>,
}

/// The fingerprints of `tensor` up to `step`; and the first and the last step that the history tells of. `led` are the
/// checkpoints that led there.
pub(super) async fn read(
    reader: &JournalReader,
    (parts, led): (&[Part], &[&Checkpoint]),
    tensor: (String, String),
    step: u64,
) -> Result<(Option<Digests>, Option<(u64, u64)>)> {
    let (mut sums, recorded) = in_history(reader, parts, &tensor, step).await?;
    let missing: Vec<&Checkpoint> = led
        .iter()
        .copied()
        .filter(|checkpoint| checkpoint.step <= step && !sums.contains_key(&checkpoint.step))
        .collect();
    if !missing.is_empty() {
        sums.extend(behind_cuts(reader, &missing, &tensor).await?);
    }
    Ok((follow(&sums), recorded))
}

/// The fingerprints by step.
type Sums = BTreeMap<u64, Fingerprint>;

fn sums(table: Table, tensor: &(String, String)) -> Sums {
    let states = table.finish().into_iter();
    states.filter_map(|(at, state)| Some((at, state.tensors.get(tensor)?.sum))).collect()
}

async fn in_history(
    reader: &JournalReader,
    parts: &[Part],
    tensor: &(String, String),
    step: u64,
) -> Result<(Sums, Option<(u64, u64)>)> {
    let kinds = vec![Kind::ATTEMPT_BEGUN, Kind::STATE_LAYOUT, Kind::STATE_DIGEST, Kind::STEP];
    let mut events = reader.merged(parts, Filter { kinds, ..Filter::default() });
    let mut table = Table::of(tensor.clone());
    let mut recorded: Option<(u64, u64)> = None;
    while let Some(frame) = events.next().await? {
        if frame.kind == Kind::STEP {
            let (first, last) = recorded.unwrap_or((frame.step, frame.step));
            recorded = Some((first.min(frame.step), last.max(frame.step)));
            continue;
        }
        let value = frame.value()?;
        match frame.kind {
            Kind::ATTEMPT_BEGUN => table.begin(&frame, &value),
            Kind::STATE_LAYOUT => table.layout(&frame, &value)?,
            _ => match told_of(&value) {
                Some(at) if at <= step => table.digest(&frame, &value, at)?,
                _ => {}
            },
        }
    }
    Ok((sums(table, tensor), recorded))
}

/// The fingerprints of checkpoints that an attempt went on from. They are told after the capture, so behind the cut, and so
/// what tells them is no part of the history, though the state is. Of a step that was saved twice the last telling counts.
async fn behind_cuts(
    reader: &JournalReader,
    checkpoints: &[&Checkpoint],
    tensor: &(String, String),
) -> Result<Sums> {
    let wanted: BTreeSet<(u64, u64)> = checkpoints.iter().map(|c| (c.attempt, c.step)).collect();
    let attempts: BTreeSet<u64> = wanted.iter().map(|(attempt, _)| *attempt).collect();
    let kinds = vec![Kind::ATTEMPT_BEGUN, Kind::STATE_LAYOUT, Kind::STATE_DIGEST];
    let filter = Filter { kinds, ..Filter::default() };
    let mut events = reader.merged(&everything(attempts), filter);
    let mut table = Table::of(tensor.clone());
    let mut told: Vec<(Frame, Value, u64)> = Vec::new();
    while let Some(frame) = events.next().await? {
        let value = frame.value()?;
        match frame.kind {
            Kind::ATTEMPT_BEGUN => table.begin(&frame, &value),
            Kind::STATE_LAYOUT => table.layout(&frame, &value)?,
            _ => {
                let at = told_of(&value).filter(|at| wanted.contains(&(frame.attempt, *at)));
                told.extend(at.map(|at| (frame, value, at)));
            }
        }
    }
    // The first that a table is told counts.
    for (frame, value, at) in told.iter().rev() {
        table.digest(frame, value, *at)?;
    }
    Ok(sums(table, tensor))
}

/// The step that a digest is of.
fn told_of(value: &Value) -> Option<u64> {
    value.get("at").and_then(Value::as_u64)
}

fn follow(sums: &Sums) -> Option<Digests> {
    let mut digests: Option<Digests> = None;
    for (&at, &sum) in sums {
        let next = match digests {
            None => Digests { states: 1, first: at, last: at, sum, since: at, before: None },
            Some(old) if old.sum == sum => Digests { states: old.states + 1, last: at, ..old },
            Some(old) => Digests {
                states: old.states + 1,
                last: at,
                sum,
                since: at,
                before: Some((old.last, old.sum)),
                ..old
            },
        };
        digests = Some(next);
    }
    digests
}
