//! Codecs of one chunk.

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
}

impl Codec {
    /// Every codec, in the order of the codes.
    pub const ALL: &'static [Self] = &[Self::Raw, Self::Zstd, Self::Zero];

    /// The code in packs and shard indexes.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
            Self::Zero => 2,
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
            Self::Zstd => stored_bytes < decoded_bytes,
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
    /// Store these bytes, a zstd frame.
    Zstd(Vec<u8>),
}

/// Encodes with zstd at `level` if that saves at least a sixteenth, as zero if every byte is zero,
/// else raw.
///
/// # Errors
/// `Internal` if the encoder fails.
pub fn encode(decoded: &[u8], level: Option<i32>) -> Result<Encoded> {
    if decoded.iter().all(|byte| *byte == 0) {
        return Ok(Encoded::Zero);
    }
    let Some(level) = level else { return Ok(Encoded::Raw) };
    let frame = frames::compress(decoded, level)
        .map_err(|e| Error::internal(format!("zstd cannot compress a chunk: {e}")))?;
    if frame.len() + decoded.len() / 16 < decoded.len() {
        return Ok(Encoded::Zstd(frame));
    }
    Ok(Encoded::Raw)
}

/// Decodes `stored` into exactly `decoded` and checks its hash. Nothing of `decoded` may be used
/// unless this succeeds.
///
/// # Errors
/// `Corrupt` if the bytes do not decode to the right number of bytes with the right hash.
pub fn decode_into(codec: Codec, stored: &[u8], decoded: &mut [u8], hash: &Hash) -> Result<()> {
    let expected = decoded.len();
    let found = match codec {
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
    decoded_bytes: u32,
    hash: &Hash,
    scratch: &'b mut Vec<u8>,
) -> Result<&'b [u8]> {
    if codec == Codec::Raw && stored.len() == decoded_bytes as usize {
        check(stored, hash)?;
        return Ok(stored);
    }
    scratch.resize(decoded_bytes as usize, 0);
    decode_into(codec, stored, scratch, hash)?;
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

/// Guesses from a sample whether zstd would save at least a tenth of `bytes`.
#[must_use]
pub fn seems_compressible(bytes: &[u8], level: i32) -> bool {
    const SAMPLE: usize = 16 << 10;
    if bytes.len() <= 2 * SAMPLE {
        return true;
    }
    let middle = (bytes.len() / 2).saturating_sub(SAMPLE / 2);
    let sample = &bytes[middle..middle + SAMPLE];
    frames::compress(sample, level).is_ok_and(|frame| frame.len() * 10 <= SAMPLE * 9)
}
