//! Filling packs with chunks, in the order of the chunks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use bytes::Bytes;
use lastgood_format::chunk::{Codec, Encoded};
use lastgood_format::index::{Chunk, Pack};
use lastgood_format::pack::{self, HEADER_BYTES, PackedChunk};
use lastgood_format::{Error, ErrorKind, Hash, Result};
use lastgood_store::Payload;

use super::arena::Segment;
use super::batches::Batch;
use super::pipeline::{FullPack, Hashed, Job, Source, Written};
use super::plan::{Row, SEGMENT_BYTES};

/// A pack is closed when it holds this many bytes that are no part of the arena, so that compression
/// does not grow the memory of a save beyond its bound.
const OWNED_BYTES_MAX: u64 = 8 << 20;

pub(crate) struct Packer<'j> {
    job: &'j Job<'j>,
    packs: SyncSender<FullPack>,
    written: Written,
    /// Chunks of this save by hash: equal chunks are stored once.
    seen: BTreeMap<Hash, Chunk>,
    /// Reused packs by name, with their number in the shard index.
    reused: BTreeMap<Arc<str>, u32>,
    open: Option<OpenPack>,
    next_pack: u32,
}

/// The pack that is being filled.
struct OpenPack {
    /// Its number in the shard index.
    number: u32,
    object: String,
    parts: Vec<Part>,
    table: Vec<PackedChunk>,
    bytes: u64,
    owned_bytes: u64,
}

enum Part {
    /// A range of a segment.
    Captured { segment: usize, bytes: Bytes, range: Range<usize> },
    /// Bytes of their own.
    Owned(Bytes),
}

impl<'j> Packer<'j> {
    pub(crate) fn new(job: &'j Job<'j>, packs: SyncSender<FullPack>) -> Self {
        Self {
            job,
            packs,
            written: Written::default(),
            seen: BTreeMap::new(),
            reused: BTreeMap::new(),
            open: None,
            next_pack: 0,
        }
    }

    /// Adds the chunks of a batch, in order.
    pub(crate) fn add(&mut self, batch: &Batch, hashed: Vec<Hashed>) -> Result<()> {
        let job = self.job;
        for (row, hashed) in job.plan.rows[batch.rows.clone()].iter().zip(hashed) {
            let chunk = match self.seen.get(&hashed.hash) {
                Some(chunk) => *chunk,
                None => self.place(&batch.segment, row, hashed)?,
            };
            self.seen.insert(chunk.hash, chunk);
            self.written.chunks.push(chunk);
        }
        Ok(())
    }

    /// Closes the last pack.
    pub(crate) fn finish(mut self) -> Result<Written> {
        self.close()?;
        Ok(self.written)
    }

    fn place(&mut self, segment: &Segment, row: &Row, hashed: Hashed) -> Result<Chunk> {
        let decoded_bytes = narrow(row.bytes)?;
        let chunk = |stored_bytes, codec, pack, offset| Chunk {
            hash: hashed.hash,
            decoded_bytes,
            stored_bytes,
            codec,
            pack,
            offset,
        };
        match hashed.source {
            Source::Stored(stored) => {
                self.written.reused = true;
                let pack = self.reused_pack(&stored.pack, stored.pack_bytes)?;
                Ok(chunk(stored.stored_bytes, stored.codec, pack, stored.offset))
            }
            Source::New(Encoded::Zero) => {
                let (pack, offset) = self.append(hashed.hash, decoded_bytes, Codec::Zero, None)?;
                Ok(chunk(0, Codec::Zero, pack, offset))
            }
            Source::New(Encoded::Raw) => {
                let range = row.offset..row.offset + row.bytes;
                let part = Part::Captured { segment: row.segment, bytes: segment.share(), range };
                let (pack, offset) =
                    self.append(hashed.hash, decoded_bytes, Codec::Raw, Some(part))?;
                Ok(chunk(decoded_bytes, Codec::Raw, pack, offset))
            }
            Source::New(Encoded::Coded(codec, coded)) => {
                let stored_bytes = narrow(coded.len())?;
                let part = Part::Owned(coded.into());
                let (pack, offset) = self.append(hashed.hash, decoded_bytes, codec, Some(part))?;
                Ok(chunk(stored_bytes, codec, pack, offset))
            }
        }
    }

    fn reused_pack(&mut self, object: &Arc<str>, bytes: u64) -> Result<u32> {
        if let Some(number) = self.reused.get(object) {
            return Ok(*number);
        }
        let number = narrow(self.written.packs.len())?;
        self.written.packs.push(Pack { object: object.to_string(), bytes, is_new: false });
        self.reused.insert(Arc::clone(object), number);
        Ok(number)
    }

    /// Appends one chunk to the open pack; gives the pack's number and the chunk's offset in it.
    fn append(
        &mut self,
        hash: Hash,
        decoded_bytes: u32,
        codec: Codec,
        part: Option<Part>,
    ) -> Result<(u32, u64)> {
        let stored = part.as_ref().map_or(0, Part::len);
        let full = self.open.as_ref().is_some_and(|open| {
            open.bytes + stored > SEGMENT_BYTES as u64 + HEADER_BYTES
                || open.owned_bytes > OWNED_BYTES_MAX
        });
        if full {
            self.close()?;
        }
        if self.open.is_none() {
            self.open = Some(self.new_pack()?);
        }
        let Some(open) = self.open.as_mut() else {
            return Err(Error::internal("no pack is open"));
        };
        let offset = open.bytes;
        open.table.push(PackedChunk {
            hash,
            offset,
            stored_bytes: narrow(stored as usize)?,
            decoded_bytes,
            codec,
        });
        open.bytes += stored;
        if let Some(part) = part {
            open.push(part);
        }
        Ok((open.number, offset))
    }

    fn new_pack(&mut self) -> Result<OpenPack> {
        let object = (self.job.name)(self.next_pack);
        self.next_pack += 1;
        let number = narrow(self.written.packs.len())?;
        self.written.packs.push(Pack { object: object.clone(), bytes: 0, is_new: true });
        Ok(OpenPack {
            number,
            object,
            parts: vec![Part::Owned(Bytes::copy_from_slice(&pack::header()))],
            table: Vec::new(),
            bytes: HEADER_BYTES,
            owned_bytes: 0,
        })
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let footer = pack::footer(&open.table);
        open.parts.push(Part::Owned(footer.into()));
        let payload = Payload::from_parts(open.parts.into_iter().map(Part::into_bytes).collect());
        if let Some(pack) = self.written.packs.get_mut(open.number as usize) {
            pack.bytes = payload.len();
        }
        self.packs.send(FullPack { object: open.object, payload }).map_err(|_| {
            Error::new(ErrorKind::Closed, "the threads that put packs ended before the last pack")
        })
    }
}

impl OpenPack {
    /// Joins a captured range to the one before if it follows it in memory.
    fn push(&mut self, part: Part) {
        if let (
            Some(Part::Captured { segment: last, range: before, .. }),
            Part::Captured { segment, range, .. },
        ) = (self.parts.last_mut(), &part)
            && last == segment
            && before.end == range.start
        {
            before.end = range.end;
            return;
        }
        if let Part::Owned(bytes) = &part {
            self.owned_bytes += bytes.len() as u64;
        }
        self.parts.push(part);
    }
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Captured { range, .. } => range.len() as u64,
            Self::Owned(bytes) => bytes.len() as u64,
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Captured { bytes, range, .. } => bytes.slice(range),
            Self::Owned(bytes) => bytes,
        }
    }
}

fn narrow(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::invalid("one save has at most 2^32 chunks and packs"))
}
