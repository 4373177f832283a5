//! A pack: an object that holds many encoded chunks and says so itself (`FORMAT.md`, "Pack").
//!
//! `header (16) | stored chunks, one after the other | table (49 each) | trailer (64)`
//!
//! The table lets a pack be read without its shard index; restores use the shard index alone.

use crate::chunk::{CHUNK_BYTES_MAX, Codec};
use crate::wire::{Reader, Writer};
use crate::{Error, FORMAT_VERSION, Hash, Result};

/// The bytes of a pack's header.
pub const HEADER_BYTES: u64 = 16;

/// The bytes of a pack's trailer.
pub const TRAILER_BYTES: u64 = 64;

const MAGIC: &[u8; 8] = b"LGPACK\0\0";
const TRAILER_MAGIC: &[u8; 8] = b"LGPKEND\0";
const ROW_BYTES: u64 = 32 + 8 + 4 + 4 + 1;

/// One chunk of a pack, as its table tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedChunk {
    /// The hash of the decoded bytes.
    pub hash: Hash,
    /// Where the stored bytes begin, from the start of the pack.
    pub offset: u64,
    /// The number of stored bytes.
    pub stored_bytes: u32,
    /// The number of decoded bytes.
    pub decoded_bytes: u32,
    /// The codec.
    pub codec: Codec,
}

/// The header of every pack: 8 bytes `LGPACK\0\0`, version u32, zero u32.
#[must_use]
pub fn header() -> [u8; 16] {
    let mut header = [0; 16];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header
}

/// The table and the trailer of a pack whose stored chunks are `chunks`, in order.
#[must_use]
pub fn footer(chunks: &[PackedChunk]) -> Vec<u8> {
    let mut out = Writer::default();
    for chunk in chunks {
        out.hash(&chunk.hash);
        out.u64(chunk.offset);
        out.u32(chunk.stored_bytes);
        out.u32(chunk.decoded_bytes);
        out.u8(chunk.codec.code());
    }
    let table_offset =
        chunks.last().map_or(HEADER_BYTES, |last| last.offset + u64::from(last.stored_bytes));
    let mut trailer = Writer::default();
    trailer.0.extend_from_slice(TRAILER_MAGIC);
    trailer.u32(FORMAT_VERSION);
    trailer.u32(u32::try_from(chunks.len()).unwrap_or(u32::MAX));
    trailer.u64(table_offset);
    trailer.u64(0);
    let seal = Hash::of_parts([header().as_slice(), &out.0, &trailer.0]);
    out.0.extend_from_slice(&trailer.0);
    out.hash(&seal);
    out.0
}

/// Reads the table of a whole pack and checks everything but the chunks' hashes: header, trailer,
/// seal, sizes, and that header, chunks, table and trailer fill the pack without gap or overlap.
///
/// # Errors
/// `Corrupt` if a rule is broken; `Incompatible` if the version or a codec is newer.
pub fn parse(pack: &[u8]) -> Result<Vec<PackedChunk>> {
    let too_short = || Error::corrupt(format!("a pack of {} bytes is too short", pack.len()));
    let split = pack.len().checked_sub(TRAILER_BYTES as usize).ok_or_else(too_short)?;
    let (body, trailer) = pack.split_at(split);
    let head = body.get(..HEADER_BYTES as usize).ok_or_else(too_short)?;
    let mut fields = Reader::new(trailer);
    if fields.bytes(8)? != TRAILER_MAGIC {
        return Err(Error::corrupt("the pack does not end in a trailer; it may be cut off"));
    }
    let version = fields.u32()?;
    let count = fields.u32()?;
    let table_offset = fields.u64()?;
    let reserved = fields.u64()?;
    let seal = fields.hash()?;
    if !(HEADER_BYTES..=body.len() as u64).contains(&table_offset) {
        return Err(Error::corrupt(format!(
            "the table begins at {table_offset}, expected {HEADER_BYTES} to {}",
            body.len()
        )));
    }
    let table = &body[table_offset as usize..];
    let found = Hash::of_parts([head, table, &trailer[..32]]);
    if found != seal {
        return Err(Error::corrupt(format!("pack table: expected seal {seal}, found {found}")));
    }
    crate::descriptor::check_version(version)?;
    if table.len() as u64 != u64::from(count) * ROW_BYTES {
        return Err(Error::corrupt(format!(
            "a table of {count} chunks has {} bytes, found {}",
            u64::from(count) * ROW_BYTES,
            table.len()
        )));
    }
    if head != header() || reserved != 0 {
        return Err(Error::corrupt("the header of the pack is not a pack's"));
    }
    rows(table, count, table_offset)
}

fn rows(table: &[u8], count: u32, table_offset: u64) -> Result<Vec<PackedChunk>> {
    let mut fields = Reader::new(table);
    let mut chunks = Vec::with_capacity(count as usize);
    let mut end = HEADER_BYTES;
    for i in 0..count {
        let chunk = PackedChunk {
            hash: fields.hash()?,
            offset: fields.u64()?,
            stored_bytes: fields.u32()?,
            decoded_bytes: fields.u32()?,
            codec: codec(fields.u8()?)?,
        };
        if chunk.offset != end {
            return Err(Error::corrupt(format!(
                "chunk {i} begins at {}, expected {end}",
                chunk.offset
            )));
        }
        let sized = (1..=CHUNK_BYTES_MAX).contains(&chunk.decoded_bytes)
            && chunk.codec.may_store(chunk.stored_bytes, chunk.decoded_bytes);
        if !sized {
            return Err(Error::corrupt(format!(
                "chunk {i} cannot have {} bytes stored as {} bytes of {}",
                chunk.decoded_bytes,
                chunk.stored_bytes,
                chunk.codec.name()
            )));
        }
        end += u64::from(chunk.stored_bytes);
        chunks.push(chunk);
    }
    if end != table_offset {
        return Err(Error::corrupt(format!(
            "the chunks end at {end}, the table begins at {table_offset}"
        )));
    }
    Ok(chunks)
}

/// The codec of a code.
pub(crate) fn codec(code: u8) -> Result<Codec> {
    Codec::from_code(code).ok_or_else(|| {
        Error::incompatible(format!("codec {code} is not known"))
            .with_remedy("use a newer lastgood")
    })
}
