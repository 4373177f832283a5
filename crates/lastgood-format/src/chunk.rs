//! Codecs of one chunk.

use std::ops::Range;

use crate::delta::{self, Operand};
use crate::planes::{self, SAMPLE, WIDTHS};
use crate::{Error, Hash, Result, frames};

/// The smallest chunk size that may be chosen.
pub const CHUNK_BYTES_MIN: u32 = 64 << 10;
/// The largest chunk size that may be chosen.
pub const CHUNK_BYTES_MAX: u32 = 16 << 20;
/// The chunk size unless one is chosen.
pub const CHUNK_BYTES_DEFAULT: u32 = 1 << 20;

/// How the stored bytes of a chunk make its decoded bytes. The codes are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// The decoded bytes themselves.
    Raw,
    /// A zstd frame.
    Zstd,
    /// Nothing stored: every decoded byte is zero.
    Zero,
    /// Byte planes, each of them raw or a zstd frame.
    Planes,
    /// What is left where other chunks predict it.
    Delta,
}

impl Codec {
    /// Every codec, in the order of the codes.
    pub const ALL: &'static [Self] =
        &[Self::Raw, Self::Zstd, Self::Zero, Self::Planes, Self::Delta];

    /// The code in packs and shard indexes.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
            Self::Zero => 2,
            Self::Planes => 3,
            Self::Delta => 4,
        }
    }

    /// The codec of a code, if this version knows it.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// True if this codec may store `decoded_bytes` bytes as `stored_bytes` bytes.
    pub(crate) fn may_store(self, stored_bytes: u32, decoded_bytes: u32) -> bool {
        match self {
            Self::Raw => stored_bytes == decoded_bytes,
            Self::Zstd | Self::Planes | Self::Delta => stored_bytes < decoded_bytes,
            Self::Zero => stored_bytes == 0,
        }
    }

    /// The name for a person.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zstd => "zstd",
            Self::Zero => "zero",
            Self::Planes => "planes",
            Self::Delta => "delta",
        }
    }
}

/// A chunk as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// Store the decoded bytes as they are.
    Raw,
    /// Store nothing.
    Zero,
    /// Store these bytes, of this codec.
    Coded(Codec, Vec<u8>),
}

/// Encodes as zero if every byte is zero; otherwise, with a zstd `level`, in the way that a sample says is the smallest:
/// as a zstd frame, or in planes of elements of `width` bytes if there are such planes; raw if that saves less than a
/// sixteenth.
///
/// # Errors
/// `Internal` if the encoder fails.
pub fn encode(decoded: &[u8], width: usize, level: Option<i32>) -> Result<Encoded> {
    if is_zero(decoded) {
        return Ok(Encoded::Zero);
    }
    match level {
        Some(level) => Guess::new(decoded, width, level).encode(decoded),
        None => Ok(Encoded::Raw),
    }
}

/// True if every byte is zero: nothing is stored of such a chunk.
#[must_use]
pub fn is_zero(decoded: &[u8]) -> bool {
    decoded.iter().all(|byte| *byte == 0)
}

/// What a sample of a chunk tells of the ways to store it without others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess {
    codec: Codec,
    width: usize,
    level: i32,
    sampled: usize,
    coded: usize,
}

impl Guess {
    /// Of a chunk of elements of `width` bytes, with a zstd `level`.
    #[must_use]
    pub fn new(decoded: &[u8], width: usize, level: i32) -> Self {
        let sample = &decoded[sample(decoded.len())];
        let whole = frames::compress(sample, level).map_or(sample.len(), |frame| frame.len());
        let apart = match WIDTHS.contains(&width) {
            true => planes::estimate(sample, width, level),
            false => usize::MAX,
        };
        let (codec, coded) =
            if apart < whole { (Codec::Planes, apart) } else { (Codec::Zstd, whole) };
        Self { codec, width, level, sampled: sample.len(), coded }
    }

    /// About how many bytes the sample takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.coded.min(self.sampled)
    }

    /// The chunk that this was guessed of, raw if the sample saves less than a tenth or all of it less than a sixteenth.
    ///
    /// # Errors
    /// `Internal` if the encoder fails.
    pub fn encode(&self, decoded: &[u8]) -> Result<Encoded> {
        // A sample that is everything is no guess.
        if self.sampled < decoded.len() && self.coded * 10 > self.sampled * 9 {
            return Ok(Encoded::Raw);
        }
        let coded = match self.codec {
            Codec::Planes => planes::encode(decoded, self.width, self.level)?,
            _ => Some(
                frames::compress(decoded, self.level)
                    .map_err(|e| Error::internal(format!("zstd cannot compress a chunk: {e}")))?,
            ),
        };
        match coded.filter(|coded| coded.len() + decoded.len() / 16 < decoded.len()) {
            Some(coded) => Ok(Encoded::Coded(self.codec, coded)),
            None => Ok(Encoded::Raw),
        }
    }
}

/// The range of a chunk of `bytes` bytes that stands for all of it when codecs are compared. Elements stay whole.
#[must_use]
pub fn sample(bytes: usize) -> Range<usize> {
    if bytes <= 2 * SAMPLE {
        return 0..bytes;
    }
    let begin = (bytes / 2 - SAMPLE / 2) & !7;
    begin..begin + SAMPLE
}

/// Decodes `stored` into exactly `decoded` and checks its hash. Nothing of `decoded` may be used
/// unless this succeeds. Only a delta has `operands`.
///
/// # Errors
/// `Corrupt` if the bytes do not decode to the right number of bytes with the right hash, or are of other operands;
/// `Incompatible` if they are a delta of a newer rule.
pub fn decode_into(
    codec: Codec,
    stored: &[u8],
    operands: &[Operand<'_>],
    decoded: &mut [u8],
    hash: &Hash,
) -> Result<()> {
    let expected = decoded.len();
    let found = match codec {
        Codec::Delta => {
            delta::decode(stored, operands, decoded)?;
            expected
        }
        Codec::Planes => {
            planes::decode(stored, decoded)?;
            expected
        }
        Codec::Raw if stored.len() == expected => {
            decoded.copy_from_slice(stored);
            expected
        }
        Codec::Raw => stored.len(),
        Codec::Zero if stored.is_empty() => {
            decoded.fill(0);
            expected
        }
        Codec::Zero => stored.len(),
        Codec::Zstd => frames::with_decoder(|context| context.decompress(decoded, stored))
            .map_err(|code| {
                let why = zstd::zstd_safe::get_error_name(code);
                Error::corrupt(format!("a zstd chunk does not decode: {why}"))
            })?,
    };
    if found != expected {
        return Err(Error::corrupt(format!(
            "a {} chunk has {found} bytes, expected {expected}",
            codec.name()
        )));
    }
    check(decoded, hash)
}

/// The decoded bytes of `stored`, `decoded_bytes` of them, after their hash was checked: `stored` itself if it
/// is raw, else in `scratch`.
///
/// # Errors
/// As [`decode_into`].
pub fn decode<'b>(
    codec: Codec,
    stored: &'b [u8],
    operands: &[Operand<'_>],
    decoded_bytes: u32,
    hash: &Hash,
    scratch: &'b mut Vec<u8>,
) -> Result<&'b [u8]> {
    if codec == Codec::Raw && stored.len() == decoded_bytes as usize {
        check(stored, hash)?;
        return Ok(stored);
    }
    scratch.resize(decoded_bytes as usize, 0);
    decode_into(codec, stored, operands, scratch, hash)?;
    Ok(scratch)
}

/// Checks that `decoded` is the chunk `hash`.
///
/// # Errors
/// `Corrupt` if it is not.
pub fn check(decoded: &[u8], hash: &Hash) -> Result<()> {
    let found = Hash::of(decoded);
    if found != *hash {
        return Err(Error::corrupt(format!("chunk: expected hash {hash}, found {found}")));
    }
    Ok(())
}
