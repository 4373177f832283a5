//! Whether every event is there and unchanged: chains, segments, and the cuts that checkpoints name.

use std::collections::BTreeMap;

use lastgood_format::journal::{Lane, LaneName, Position};
use lastgood_format::{Error, ErrorKind, Hash, Result};

use super::history;
use super::read::JournalReader;
use crate::ledger::Ledger;

/// What an audit found.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// Frames that are there and unchanged.
    pub frames: u64,
    /// The bytes of all segments.
    pub bytes: u64,
    /// Checkpoints whose cut is in the journal as they name it.
    pub cuts: u64,
    /// What is wrong, each naming the object or the frame.
    pub findings: Vec<Error>,
}

/// Reads every segment of the run, and compares the cuts of all checkpoints that can be read.
///
/// # Errors
/// `Unavailable`, `Denied`: what could not be looked at. What is wrong with the journal is no error but a
/// finding.
pub async fn audit(ledger: &Ledger, reader: &JournalReader) -> Result<Audit> {
    let mut audit = Audit::default();
    let wanted = cuts(ledger, &mut audit).await?;
    let mut lanes: Vec<(u64, Lane)> =
        reader.lanes().map(|lane| (lane.attempt, lane.lane)).collect();
    lanes.extend(wanted.keys().copied());
    lanes.sort_unstable();
    lanes.dedup();
    for (attempt, lane) in lanes {
        let mut wanted = wanted.get(&(attempt, lane)).cloned().unwrap_or_default();
        if let Err(error) = audit_lane(reader, (attempt, lane), &mut wanted, &mut audit).await {
            if !is_finding(&error) {
                return Err(error);
            }
            audit.findings.push(error);
            continue;
        }
        for (position, checkpoint) in wanted {
            audit.findings.push(Error::corrupt(format!(
                "lane {lane} of attempt {attempt} does not reach frame {}, which checkpoint {} includes: \
                 its last segments are missing",
                position.next,
                checkpoint.short()
            )));
        }
    }
    audit.bytes = reader.lanes().map(|lane| lane.bytes).sum();
    Ok(audit)
}

fn is_finding(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible | ErrorKind::NotFound)
}

/// The positions that checkpoints name, by lane.
type Wanted = BTreeMap<(u64, Lane), Vec<(Position, Hash)>>;

async fn cuts(ledger: &Ledger, audit: &mut Audit) -> Result<Wanted> {
    let mut wanted: Wanted = BTreeMap::new();
    for checkpoint in ledger.history().checkpoints().iter().filter(|c| !c.expired) {
        let cut = match history::cut_of(ledger, checkpoint).await {
            Ok(cut) => cut,
            Err(error) if is_finding(&error) => {
                audit.findings.push(error.context(format!("checkpoint {}", checkpoint.id)));
                continue;
            }
            Err(error) => return Err(error),
        };
        audit.cuts += u64::from(!cut.lanes.is_empty());
        for (LaneName(lane), position) in cut.lanes {
            wanted.entry((cut.attempt, lane)).or_default().push((position, checkpoint.id));
        }
    }
    Ok(wanted)
}

/// Reads a lane to its end; those of `wanted` that it passes are taken out.
async fn audit_lane(
    reader: &JournalReader,
    (attempt, lane): (u64, Lane),
    wanted: &mut Vec<(Position, Hash)>,
    audit: &mut Audit,
) -> Result<()> {
    let mut frames = reader.lane(attempt, lane);
    loop {
        let at = frames.position();
        let mut other = None;
        wanted.retain(|(position, checkpoint)| {
            if position.next == at.next && position.head != at.head {
                other = Some((*position, *checkpoint));
            }
            position.next != at.next
        });
        if let Some((position, checkpoint)) = other {
            return Err(Error::corrupt(format!(
                "lane {lane} of attempt {attempt}: checkpoint {} includes {} frames that end with {}, the \
                 journal's end with {}: it is another journal, or was written anew",
                checkpoint.short(),
                position.next,
                position.head.short(),
                at.head.short()
            )));
        }
        let Some(frame) = frames.next().await? else { return Ok(()) };
        frame.value()?;
        audit.frames += 1;
    }
}
