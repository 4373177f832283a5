//! Sealed frames of one lane: an object of the repository (`FORMAT.md`, "Journal segment").

use std::ops::RangeInclusive;

use super::frame::{FRAME_BYTES_MIN, Next, PAYLOAD_BYTES_MAX};
use super::{Frame, Kind, Lane, Position};
use crate::wire::{Reader, Writer};
use crate::{Error, FORMAT_VERSION, Hash, Result};

/// What every segment begins with.
pub const MAGIC: [u8; 8] = *b"LGJSEGM\0";

/// The bytes before the first frame.
pub const HEADER_BYTES: usize = 168;

/// A writer seals a lane before its open frames are more than this, but for one frame.
pub const FRAMES_BYTES: usize = 1 << 20;

/// The largest stored segment.
pub const BYTES_MAX: u64 =
    (HEADER_BYTES + FRAMES_BYTES + FRAME_BYTES_MIN + PAYLOAD_BYTES_MAX) as u64;

/// What the header of a segment says, which is enough to know whether its frames are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The lane.
    pub lane: Lane,
    /// The attempt.
    pub attempt: u64,
    /// Where it begins: the number of its first frame, and what that one's `prev` is.
    pub begin: Position,
    /// Where it ends.
    pub end: Position,
    /// The least and the greatest step of its frames.
    pub steps: RangeInclusive<u64>,
    /// How many of its frames are of [`Kind::REWOUND`].
    pub rewinds: u64,
    /// The bytes of all frames.
    pub frames_bytes: u64,
}

/// Frames of one lane that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What its header says.
    pub header: Header,
    /// Its frames, at least one.
    pub frames: Vec<Frame>,
}

impl Segment {
    /// The stored bytes of the encoded `frames` of `lane`, the first of which stands at `begin`.
    ///
    /// # Errors
    /// `Internal` if these are no frames that follow each other; `Invalid` if they are too many.
    pub fn encode(attempt: u64, lane: Lane, begin: Position, frames: &[u8]) -> Result<Vec<u8>> {
        let read = read_frames(attempt, lane, begin, frames)
            .map_err(|error| Error::internal(error.message()))?;
        let header = Header {
            lane,
            attempt,
            begin,
            end: read.end,
            steps: read.steps,
            rewinds: read.rewinds,
            frames_bytes: frames.len() as u64,
        };
        if frames.len() as u64 > BYTES_MAX - HEADER_BYTES as u64 {
            return Err(Error::invalid(format!(
                "a segment has at most {BYTES_MAX} bytes, this one {}",
                frames.len() + HEADER_BYTES
            )));
        }
        let mut stored = header.encode();
        stored.extend_from_slice(frames);
        Ok(stored)
    }

    /// Reads the stored bytes of a segment of `lane` of `attempt`.
    ///
    /// Whether it continues the segment before, its [`Header::begin`] says.
    ///
    /// # Errors
    /// `Corrupt` if a byte of it is not as it was written, or it belongs elsewhere; `Incompatible` if its
    /// version is newer.
    pub fn decode(stored: &[u8], attempt: u64, lane: Lane) -> Result<Self> {
        let header = Header::decode(stored)?;
        if (header.attempt, header.lane) != (attempt, lane) {
            return Err(Error::corrupt(format!(
                "expected a segment of lane {lane} of attempt {attempt}, found one of lane {} of attempt {}",
                header.lane, header.attempt
            )));
        }
        let frames = &stored[HEADER_BYTES..];
        if frames.len() as u64 != header.frames_bytes {
            return Err(Error::corrupt(format!(
                "a segment's frames have {} bytes, found {}: it was cut short or grew",
                header.frames_bytes,
                frames.len()
            )));
        }
        let read = read_frames(attempt, lane, header.begin, frames)?;
        let is_told = read.rewinds == header.rewinds && read.steps == header.steps;
        if read.end != header.end || !is_told {
            return Err(Error::corrupt(format!(
                "a segment's frames end at {} ({}), its header says {} ({})",
                read.end.next,
                read.end.head.short(),
                header.end.next,
                header.end.head.short()
            )));
        }
        Ok(Self { header, frames: read.frames })
    }
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(MAGIC.to_vec());
        writer.u32(FORMAT_VERSION);
        writer.u32(self.lane.number());
        for number in [
            self.attempt,
            self.begin.next,
            self.end.next,
            *self.steps.start(),
            *self.steps.end(),
            self.rewinds,
            self.frames_bytes,
        ] {
            writer.u64(number);
        }
        writer.hash(&self.begin.head);
        writer.hash(&self.end.head);
        let seal = Hash::of(&writer.0);
        writer.hash(&seal);
        writer.0
    }

    /// Reads the first [`HEADER_BYTES`] of the stored bytes. What it says is checked by its own hash.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged; `Incompatible` if its version is newer.
    pub fn decode(stored: &[u8]) -> Result<Self> {
        let Some((covered, _)) = stored.split_at_checked(HEADER_BYTES - Hash::BYTES) else {
            return Err(Error::corrupt(format!(
                "a segment has more than {HEADER_BYTES} bytes, found {}",
                stored.len()
            )));
        };
        let mut reader = Reader::new(stored);
        if reader.bytes(8)? != MAGIC {
            return Err(Error::corrupt("a journal segment does not begin with its magic"));
        }
        let version = reader.u32()?;
        let lane = Lane::from_number(reader.u32()?);
        let [attempt, first, next] = [reader.u64()?, reader.u64()?, reader.u64()?];
        let steps = reader.u64()?..=reader.u64()?;
        let [rewinds, frames_bytes] = [reader.u64()?, reader.u64()?];
        let [begin, end, seal] = [reader.hash()?, reader.hash()?, reader.hash()?];
        let found = Hash::of(covered);
        if seal != found {
            return Err(Error::corrupt(format!(
                "the header of a segment has hash {found}, it says {seal}"
            )));
        }
        crate::descriptor::check_version(version)?;
        let begin = Position { next: first, head: begin };
        let end = Position { next, head: end };
        Ok(Self { lane, attempt, begin, end, steps, rewinds, frames_bytes })
    }
}

struct Read {
    frames: Vec<Frame>,
    end: Position,
    steps: RangeInclusive<u64>,
    rewinds: u64,
}

fn read_frames(attempt: u64, lane: Lane, begin: Position, mut bytes: &[u8]) -> Result<Read> {
    let (mut frames, mut end) = (Vec::new(), begin);
    let (mut least, mut greatest, mut rewinds) = (u64::MAX, 0, 0);
    loop {
        let at = |why: &str| {
            Error::corrupt(format!("frame {} of lane {lane} of attempt {attempt}: {why}", end.next))
        };
        match Frame::next(bytes) {
            Next::Frame(frame, hash, taken) => {
                frame.check_follows(attempt, lane, &end)?;
                let next = end.next.checked_add(1);
                end = Position { next: next.ok_or_else(|| at("it is the last one"))?, head: hash };
                (least, greatest) = (least.min(frame.step), greatest.max(frame.step));
                rewinds += u64::from(frame.kind == Kind::REWOUND);
                frames.push(frame);
                bytes = &bytes[taken..];
            }
            Next::End if frames.is_empty() => return Err(at("the segment holds no frame")),
            Next::End => return Ok(Read { frames, end, steps: least..=greatest, rewinds }),
            Next::Torn(why) => return Err(at(&why)),
            Next::Newer(version) => {
                return Err(crate::descriptor::check_version(version)
                    .err()
                    .unwrap_or_else(|| at("its version is not understood")));
            }
        }
    }
}
