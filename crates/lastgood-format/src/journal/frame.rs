//! One event in its lane (`FORMAT.md`, "Frame").

use super::{Kind, Lane, Position, Value};
use crate::wire::{Reader, Writer};
use crate::{Error, FORMAT_VERSION, Hash, Result};

/// What every frame begins with.
pub const MAGIC: [u8; 4] = *b"LGJF";

/// The bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 80;

/// The bytes of a frame without its payload.
pub const FRAME_BYTES_MIN: usize = HEADER_BYTES + 4;

/// The largest payload.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// One event in its lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What kind of event it is.
    pub kind: Kind,
    /// The lane.
    pub lane: Lane,
    /// The attempt of the lane.
    pub attempt: u64,
    /// The number in its lane, from 0 without a gap.
    pub sequence: u64,
    /// The steps that the writer had finished.
    pub step: u64,
    /// The hybrid logical clock of the writer: milliseconds since 1970 in the upper 48 bits, a counter in the
    /// lower 16. Information only: nothing is decided or compared by it.
    pub clock: u64,
    /// The hash of the frame before it in its lane, or the lane's [`genesis`](super::genesis).
    pub prev: Hash,
    /// The [`Value`] of the event, encoded.
    pub payload: Vec<u8>,
}

/// What stands at the front of bytes that should be frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A frame, its hash and its bytes.
    Frame(Frame, Hash, usize),
    /// Nothing: the bytes end here.
    End,
    /// Something that is no whole frame, and why.
    Torn(String),
    /// A frame of a newer version.
    Newer(u32),
}

impl Frame {
    /// Appends the stored bytes to `to`, and gives the hash, which is the next frame's `prev`.
    ///
    /// # Errors
    /// `Invalid` if the payload is larger than [`PAYLOAD_BYTES_MAX`].
    pub fn encode(&self, to: &mut Vec<u8>) -> Result<Hash> {
        if self.payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::invalid(format!(
                "an event has at most {PAYLOAD_BYTES_MAX} bytes, this one {}",
                self.payload.len()
            ))
            .with_remedy("record its hash, and keep the bytes elsewhere"));
        }
        let begin = to.len();
        let mut writer = Writer(std::mem::take(to));
        writer.0.extend_from_slice(&MAGIC);
        writer.0.extend_from_slice(&(FORMAT_VERSION as u16).to_le_bytes());
        writer.0.extend_from_slice(&self.kind.code().to_le_bytes());
        writer.u32(self.payload.len() as u32);
        writer.u32(self.lane.number());
        for number in [self.attempt, self.sequence, self.step, self.clock] {
            writer.u64(number);
        }
        writer.hash(&self.prev);
        writer.0.extend_from_slice(&self.payload);
        let hash = Hash::of(&writer.0[begin..]);
        let checksum = crc32c::crc32c(&writer.0[begin..]);
        writer.u32(checksum);
        *to = writer.0;
        Ok(hash)
    }

    /// The frame at the front of `bytes`.
    #[must_use]
    pub fn next(bytes: &[u8]) -> Next {
        if bytes.is_empty() {
            return Next::End;
        }
        match Self::read(bytes) {
            Ok(next) => next,
            Err(error) => Next::Torn(error.message().to_owned()),
        }
    }

    fn read(bytes: &[u8]) -> Result<Next> {
        let mut reader = Reader::new(bytes);
        if reader.bytes(4)? != MAGIC {
            return Err(Error::corrupt("a frame does not begin with its magic"));
        }
        let [version, kind] = [reader.u16()?, reader.u16()?];
        let payload_bytes = reader.u32()? as usize;
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(Error::corrupt(format!(
                "an event has at most {PAYLOAD_BYTES_MAX} bytes, this one {payload_bytes}"
            )));
        }
        let covered = HEADER_BYTES + payload_bytes;
        let lane = Lane::from_number(reader.u32()?);
        let [attempt, sequence, step, clock] =
            [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
        let prev = reader.hash()?;
        let payload = reader.bytes(payload_bytes)?.to_vec();
        let (expected, found) = (crc32c::crc32c(&bytes[..covered]), reader.u32()?);
        if expected != found {
            return Err(Error::corrupt(format!(
                "the checksum of a frame is {found:08x}, that of its bytes {expected:08x}"
            )));
        }
        if u32::from(version) > FORMAT_VERSION {
            return Ok(Next::Newer(version.into()));
        }
        if version == 0 {
            return Err(Error::corrupt("there is no version 0"));
        }
        let kind = Kind::from_code(kind);
        let frame = Self { kind, lane, attempt, sequence, step, clock, prev, payload };
        Ok(Next::Frame(frame, Hash::of(&bytes[..covered]), covered + 4))
    }

    /// What the event says.
    ///
    /// # Errors
    /// `Corrupt` if the payload is no value.
    pub fn value(&self) -> Result<Value> {
        Value::decode(&self.payload).map_err(|error| error.context(self.place()))
    }

    /// Checks that it is the next one at `position` of `lane` of `attempt`.
    ///
    /// # Errors
    /// `Corrupt` saying what was expected and what was found.
    pub fn check_follows(&self, attempt: u64, lane: Lane, position: &Position) -> Result<()> {
        if (self.attempt, self.lane) != (attempt, lane) {
            return Err(Error::corrupt(format!(
                "expected a frame of lane {lane} of attempt {attempt}, found {}",
                self.place()
            )));
        }
        if self.sequence != position.next {
            return Err(Error::corrupt(format!(
                "lane {lane} of attempt {attempt}: expected frame {}, found frame {}: events are missing",
                position.next, self.sequence
            )));
        }
        if self.prev != position.head {
            return Err(Error::corrupt(format!(
                "{}: expected the frame before it to have hash {}, it names {}: the one before was \
                 changed, or the frame is of another journal",
                self.place(),
                position.head.short(),
                self.prev.short()
            )));
        }
        Ok(())
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        format!(
            "frame {} of lane {} of attempt {} ({}, step {})",
            self.sequence, self.lane, self.attempt, self.kind, self.step
        )
    }
}
