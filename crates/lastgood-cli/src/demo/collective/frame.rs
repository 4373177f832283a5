//! What goes over a connection between two ranks: frames of bounded length, within a deadline.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

/// The longest payload between ranks that have joined.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 64 << 20;

/// The longest payload from somebody who has not joined yet.
pub(super) const HELLO_BYTES_MAX: u32 = 16 << 10;

const HEADER_BYTES: usize = 16;

/// Begins every frame, so that what some other program says is not taken for one.
const MAGIC: [u8; 3] = *b"lgd";

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A rank wants to join.
    Hello,
    /// All ranks have joined.
    Welcome,
    /// Rank 0 does not let this one join.
    Refusal,
    /// Rank 0 ends the attempt and says why.
    Abort,
    /// [`gather`](super::Collective::gather).
    Gather,
    /// [`reduce`](super::Collective::reduce).
    Reduce,
    /// [`share`](super::Collective::share).
    Share,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Hello,
        Self::Welcome,
        Self::Refusal,
        Self::Abort,
        Self::Gather,
        Self::Reduce,
        Self::Share,
    ];

    /// The name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Welcome => "welcome",
            Self::Refusal => "refusal",
            Self::Abort => "abort",
            Self::Gather => "gather",
            Self::Reduce => "reduce",
            Self::Share => "share",
        }
    }
}

/// One message: its header is `length: u32, MAGIC, kind: u8, sequence: u64`, little-endian.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// Counts the operations of a rank, so that ranks that fall out of step notice it.
    pub(super) sequence: u64,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// The payload as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> io::Result<T> {
        Ok(serde_json::from_slice(&self.payload)?)
    }
}

/// Writes one frame.
pub(super) fn write(
    target: &mut impl Write,
    kind: Kind,
    sequence: u64,
    payload: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(payload.len()).ok().filter(|length| *length <= PAYLOAD_BYTES_MAX);
    let length = length.ok_or_else(|| invalid(format!("a payload of {} bytes", payload.len())))?;
    // One write for header and payload, so that small frames are one packet.
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(kind as u8);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(payload);
    target.write_all(&bytes)
}

/// Reads one frame with a payload of at most `bytes_max`. Memory is taken as the payload arrives, not
/// as its header promises.
pub(super) fn read(source: &mut impl Read, bytes_max: u32) -> io::Result<Frame> {
    let mut header = [0; HEADER_BYTES];
    source.read_exact(&mut header)?;
    let [l0, l1, l2, l3, m0, m1, m2, kind, sequence @ ..] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind);
    let (Some(kind), MAGIC) = (kind, [m0, m1, m2]) else {
        return Err(invalid("what arrives is no frame".into()));
    };
    if length > bytes_max {
        return Err(invalid(format!("a payload of {length} bytes, at most {bytes_max} are read")));
    }
    let mut payload = Vec::new();
    source.take(u64::from(length)).read_to_end(&mut payload)?;
    if payload.len() != length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Frame { kind, sequence: u64::from_le_bytes(sequence), payload })
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A connection on which everything must be done by `deadline`, however slowly the bytes trickle.
#[derive(Debug)]
pub(super) struct Until<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) deadline: Instant,
}

impl Until<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Until<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(target)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
