//! The open segment: a local file of one process, to which frames of its lanes are appended
//! (`FORMAT.md`, "Open segment").
//!
//! A crash may leave its last frames torn. What is read of it is the longest run of whole frames from its
//! beginning, each lane's a chain; everything behind that was never acknowledged, or the disk has damaged it.

use std::collections::BTreeMap;

use super::frame::Next;
use super::{Frame, Lane, Position};
use crate::wire::{Reader, Writer};
use crate::{Error, FORMAT_VERSION, Hash, Result, RunName};

/// What every open segment begins with.
pub const MAGIC: [u8; 8] = *b"LGJTAIL\0";

/// Whose frames an open segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The id of the repository.
    pub repository: String,
    /// The run.
    pub run: RunName,
    /// The attempt.
    pub attempt: u64,
}

impl Owner {
    /// The bytes that an open segment begins with.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(MAGIC.to_vec());
        writer.u32(FORMAT_VERSION);
        writer.text(&self.repository);
        writer.text(self.run.as_str());
        writer.u64(self.attempt);
        let seal = Hash::of(&writer.0);
        writer.hash(&seal);
        writer.0
    }

    /// Reads the front of an open segment, and gives the bytes behind it.
    ///
    /// # Errors
    /// `Corrupt` if it is torn or damaged; `Incompatible` if its version is newer.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let mut reader = Reader::new(bytes);
        if reader.bytes(8)? != MAGIC {
            return Err(Error::corrupt("an open segment does not begin with its magic"));
        }
        let version = reader.u32()?;
        let repository = reader.text(RunName::BYTES_MAX)?.to_owned();
        let run = reader.text(RunName::BYTES_MAX)?.to_owned();
        let attempt = reader.u64()?;
        let covered = bytes.len() - reader.left();
        let seal = reader.hash()?;
        if seal != Hash::of(&bytes[..covered]) {
            return Err(Error::corrupt("the head of an open segment is damaged"));
        }
        crate::descriptor::check_version(version)?;
        let run = run.parse().map_err(|error: Error| Error::corrupt(error.message()))?;
        Ok((Self { repository, run, attempt }, &bytes[covered + Hash::BYTES..]))
    }
}

/// The frames of one lane in an open segment, encoded, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Where the first one stands.
    pub begin: Position,
    /// Where the last one ends.
    pub end: Position,
    /// The stored bytes of each.
    pub frames: Vec<Vec<u8>>,
}

/// What was read of an open segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The whole frames, by lane.
    pub lanes: BTreeMap<Lane, Stretch>,
    /// What stands behind them, if anything does.
    pub left: Option<Left>,
}

/// Bytes behind the last whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// How many.
    pub bytes: usize,
    /// Why they are no frame that follows.
    pub why: String,
    /// True if there is a whole frame among them: a torn write leaves one there seldom, damage often.
    pub holds_frames: bool,
}

/// Reads the frames of an open segment of `attempt`, as far as they are whole and follow each other.
///
/// # Errors
/// `Incompatible` if a frame's version is newer.
pub fn scan(attempt: u64, mut bytes: &[u8]) -> Result<Scan> {
    let mut lanes: BTreeMap<Lane, Stretch> = BTreeMap::new();
    let why = loop {
        let (frame, hash, taken) = match Frame::next(bytes) {
            Next::Frame(frame, hash, taken) => (frame, hash, taken),
            Next::End => return Ok(Scan { lanes, left: None }),
            Next::Torn(why) => break why,
            Next::Newer(version) => {
                crate::descriptor::check_version(version)?;
                break "its version is not understood".into();
            }
        };
        let begin = Position { next: frame.sequence, head: frame.prev };
        let stretch = lanes.entry(frame.lane).or_insert_with(|| Stretch {
            begin,
            end: begin,
            frames: Vec::new(),
        });
        if let Err(error) = frame.check_follows(attempt, frame.lane, &stretch.end) {
            break error.message().to_owned();
        }
        stretch.frames.push(bytes[..taken].to_vec());
        stretch.end = Position { next: frame.sequence.saturating_add(1), head: hash };
        bytes = &bytes[taken..];
    };
    lanes.retain(|_, stretch| !stretch.frames.is_empty());
    let holds_frames = holds_frame(bytes);
    Ok(Scan { lanes, left: Some(Left { bytes: bytes.len(), why, holds_frames }) })
}

/// True if a whole frame begins anywhere behind the first byte.
fn holds_frame(bytes: &[u8]) -> bool {
    let magic = super::frame::MAGIC;
    let starts =
        (1..bytes.len().saturating_sub(magic.len())).filter(|i| bytes[*i..].starts_with(&magic));
    starts.into_iter().any(|i| matches!(Frame::next(&bytes[i..]), Next::Frame(..)))
}
