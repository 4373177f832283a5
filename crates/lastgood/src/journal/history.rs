//! Which frames are part of the history: those that led to a checkpoint, or to now.
//!
//! An attempt goes on from a checkpoint. What an earlier attempt wrote after the cut of that checkpoint has been
//! overtaken: the steps were done again, or the attempt was fenced and did not know it. Such frames stay, as
//! evidence, and are shown when they are asked for.

use lastgood_format::journal::{
    CUT, Cut, Frame, Kind as JournalKind, Lane, LaneName, Position, Value,
};
use lastgood_format::ledger::Kind;
use lastgood_format::{Error, Hash, Result};

use super::read::JournalReader;
use crate::ledger::{Checkpoint, History, Ledger};
use crate::restore::Contents;

/// The part of a history that one attempt wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The attempt.
    pub attempt: u64,
    /// What it wrote before it went back so many times is overtaken.
    pub rewinds: u64,
    /// The checkpoint that the next part goes on from; `None` for the newest attempt.
    pub checkpoint: Option<Hash>,
    /// Where it ends: with the cut of that checkpoint; `None` if all of it counts.
    pub until: Option<Cut>,
}

impl Part {
    /// True if `checkpoint` was saved in this part.
    #[must_use]
    pub fn holds(&self, history: &History, checkpoint: &Checkpoint) -> bool {
        let last = self.checkpoint.and_then(|id| history.checkpoint(&id));
        self.attempt == checkpoint.attempt && last.is_none_or(|last| checkpoint.entry <= last.entry)
    }
}

/// The parts that led to the checkpoint `to`, or with `None` to what the newest attempt is doing, oldest first.
///
/// # Errors
/// `NotFound` if there is no such checkpoint; `Corrupt` if an object on the way is damaged or missing;
/// `Unavailable`, `Denied`.
pub async fn parts(
    ledger: &Ledger,
    reader: &JournalReader,
    to: Option<&Hash>,
) -> Result<Vec<Part>> {
    let attempts = attempts(ledger).await?;
    let mut parts = Vec::new();
    let mut next = match to {
        Some(id) => Some(*id),
        None => {
            let Some((attempt, from)) = attempts.last() else { return Ok(parts) };
            let begun = begin_of(reader, *attempt, None, *from).await?;
            parts.push(Part {
                attempt: *attempt,
                rewinds: begun.rewinds,
                checkpoint: None,
                until: None,
            });
            begun.from
        }
    };
    while let Some(id) = next {
        let Some(checkpoint) = ledger.history().checkpoint(&id) else {
            if to == Some(&id) {
                return Err(Error::not_found(format!("there is no checkpoint {id}")));
            }
            // It is of another run, of which this one is a replay.
            break;
        };
        let attempt = checkpoint.attempt;
        let until = cut_of(ledger, checkpoint).await?;
        let started = attempts.iter().find(|(number, _)| *number == attempt);
        let from = started.and_then(|(_, from)| *from);
        let begun = begin_of(reader, attempt, Some(&until), from).await?;
        parts.push(Part {
            attempt,
            rewinds: begun.rewinds,
            checkpoint: Some(id),
            until: Some(until),
        });
        // Each goes on from one that was committed before it; a journal that says otherwise would not end.
        next = begun.from.filter(|id| {
            let before = ledger.history().checkpoint(id);
            before.is_none_or(|before| before.entry < checkpoint.entry)
        });
    }
    parts.reverse();
    Ok(parts)
}

/// How the state at some point of an attempt came about.
struct Begun {
    /// The checkpoint that it goes on from.
    from: Option<Hash>,
    /// The rewinds before it.
    rewinds: u64,
}

/// What the control lane says of how the state before `until` came about; `from` if nothing is recorded.
async fn begin_of(
    reader: &JournalReader,
    attempt: u64,
    until: Option<&Cut>,
    from: Option<Hash>,
) -> Result<Begun> {
    let mut lane = reader.lane(attempt, Lane::CONTROL);
    let control = |cut: &Cut| cut.lanes.get(&LaneName(Lane::CONTROL)).map(|p| p.next);
    let until = until.map(|cut| control(cut).unwrap_or(0));
    let mut begun = Begun { from: None, rewinds: 0 };
    let mut is_recorded = false;
    while until.is_none_or(|until| lane.position().next < until) {
        let Some(frame) = lane.next().await? else { break };
        is_recorded = true;
        if !matches!(frame.kind, JournalKind::RESTORED | JournalKind::REWOUND) {
            continue;
        }
        begun.rewinds += u64::from(frame.kind == JournalKind::REWOUND);
        begun.from = Some(restored(&frame)?);
    }
    if !is_recorded {
        begun.from = from;
    }
    Ok(begun)
}

/// The checkpoint that the state became the one of.
///
/// # Errors
/// `Corrupt` if the event names none.
pub(crate) fn restored(frame: &Frame) -> Result<Hash> {
    let value = frame.value()?;
    let id = value.get("checkpoint").and_then(Value::as_bytes).unwrap_or_default();
    let id = <[u8; Hash::BYTES]>::try_from(id)
        .map_err(|_| Error::corrupt(format!("{} names no checkpoint", frame.place())))?;
    Ok(Hash::from_bytes(id))
}

/// Every attempt that is in the journal, whole: what led to now, and what was overtaken.
#[must_use]
pub fn everything(attempts: impl IntoIterator<Item = u64>) -> Vec<Part> {
    attempts
        .into_iter()
        .map(|attempt| Part { attempt, rewinds: 0, checkpoint: None, until: None })
        .collect()
}

/// Every attempt with the checkpoint that it went on from.
///
/// # Errors
/// As [`Ledger::open`].
pub async fn attempts(ledger: &Ledger) -> Result<Vec<(u64, Option<Hash>)>> {
    let mut attempts = Vec::new();
    for n in 1..=ledger.history().entries() {
        if let Some((entry, _)) = ledger.read_entry(n).await?
            && let Kind::AttemptStarted { number, from, .. } = entry.kind
        {
            attempts.push((number, from));
        }
    }
    Ok(attempts)
}

/// The cut that a checkpoint includes: those of its ranks together. Without lanes if it was saved without a
/// journal.
///
/// # Errors
/// As [`Contents::load`]; `Corrupt` if two ranks name the same lane.
pub async fn cut_of(ledger: &Ledger, checkpoint: &Checkpoint) -> Result<Cut> {
    let contents = Contents::load(ledger, &checkpoint.id).await?;
    cut_in(&contents)
}

/// As [`cut_of`], of a checkpoint whose tables are read.
///
/// # Errors
/// `Corrupt` if two ranks name the same lane.
pub fn cut_in(contents: &Contents) -> Result<Cut> {
    let manifest = contents.manifest();
    let mut cut = Cut { attempt: manifest.attempt, ..Cut::default() };
    for index in contents.indexes() {
        let Some(text) = index.metadata.get(CUT) else { continue };
        let of_rank = Cut::decode(text)?;
        if of_rank.attempt != manifest.attempt {
            return Err(Error::corrupt(format!(
                "rank {} of a save of attempt {} names a cut of attempt {}",
                index.rank, manifest.attempt, of_rank.attempt
            )));
        }
        for (lane, position) in of_rank.lanes {
            let before: Option<Position> = cut.lanes.insert(lane, position);
            if before.is_some() {
                return Err(Error::corrupt(format!(
                    "two ranks of checkpoint {} wrote lane {}",
                    contents.id(),
                    lane.0
                )));
            }
        }
    }
    Ok(cut)
}
