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
use super::base::{Base, Stored};
use super::batches::Batch;
use super::pipeline::{FullPack, Hashed, Job, OperandRow, Source, Written};
use super::plan::{Row, SEGMENT_BYTES};

/// A pack is closed when it holds this many bytes that are no part of the arena, so that compression
/// does not grow the memory of a save beyond its bound.
const OWNED_BYTES_MAX: u64 = 8 << 20;

pub(crate) struct Packer<'j> {
    job: &'j Job<'j>,
    packs: SyncSender<FullPack>,
    written: Written,
    /// Rows of this save by hash: equal chunks are stored once.
    seen: BTreeMap<Hash, usize>,
    /// Rows of the base that deltas are made of, with their row in the shard index.
    bases: BTreeMap<usize, u32>,
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
            bases: BTreeMap::new(),
            reused: BTreeMap::new(),
            open: None,
            next_pack: 0,
        }
    }

    /// Adds the chunks of a batch, in order.
    pub(crate) fn add(&mut self, batch: &Batch, hashed: Vec<Hashed>) -> Result<()> {
        let job = self.job;
        for (i, hashed) in batch.rows.clone().zip(hashed) {
            let chunk = match self.seen.get(&hashed.hash).copied() {
                Some(seen) if self.may_share(seen) => {
                    let operands = self.written.operands.get(&narrow(seen)?).cloned();
                    if let Some(operands) = operands {
                        self.written.operands.insert(narrow(i)?, operands);
                    }
                    self.written.chunks[seen]
                }
                _ => self.place(&batch.segment, (i, &job.plan.rows[i]), hashed)?,
            };
            self.seen.insert(chunk.hash, i);
            self.written.chunks.push(chunk);
        }
        Ok(())
    }

    /// What is made of other rows of this save may be made of the very row that would share it.
    fn may_share(&self, row: usize) -> bool {
        let own = self.job.plan.rows.len();
        let operands = narrow(row).ok().and_then(|row| self.written.operands.get(&row));
        operands.is_none_or(|operands| operands.iter().all(|operand| *operand as usize >= own))
    }

    /// The row in the shard index of a row of the base, which stands on its operands there.
    fn base_row(&mut self, base: &Base, row: usize) -> Result<u32> {
        let mut open = vec![row];
        while let Some(last) = open.last().copied() {
            let unknown = base.operands_of(last).iter().find(|i| !self.bases.contains_key(i));
            if self.bases.contains_key(&last) {
                open.pop();
            } else if let Some(unknown) = unknown {
                open.push(*unknown);
            } else {
                let number = narrow(self.job.plan.rows.len() + self.written.bases.len())?;
                let operands: Vec<u32> =
                    base.operands_of(last).iter().map(|i| self.bases[i]).collect();
                let stored =
                    base.row(last).ok_or_else(|| Error::internal("the base has no such row"))?;
                let pack = self.reused_pack(&stored.pack, stored.pack_bytes)?;
                self.written.bases.push(Chunk { pack, ..stored.chunk });
                if !operands.is_empty() {
                    self.written.operands.insert(number, operands);
                }
                self.bases.insert(last, number);
                open.pop();
            }
        }
        self.bases.get(&row).copied().ok_or_else(|| Error::internal("a base has no row"))
    }

    /// Closes the last pack.
    pub(crate) fn finish(mut self) -> Result<Written> {
        self.close()?;
        Ok(self.written)
    }

    fn place(
        &mut self,
        segment: &Segment,
        (i, row): (usize, &Row),
        hashed: Hashed,
    ) -> Result<Chunk> {
        let decoded_bytes = narrow(row.bytes)?;
        let Hashed { hash, source, .. } = hashed;
        let (codec, part) = match source {
            Source::Stored(stored) => return self.reuse(i, stored),
            Source::New(Encoded::Zero) => (Codec::Zero, None),
            Source::New(Encoded::Raw) => {
                let range = row.offset..row.offset + row.bytes;
                let part = Part::Captured { segment: row.segment, bytes: segment.share(), range };
                (Codec::Raw, Some(part))
            }
            Source::New(Encoded::Coded(codec, coded)) => (codec, Some(Part::Owned(coded.into()))),
            Source::Delta(stored, operands) => {
                let rows = operands.iter().map(|operand| self.operand_row(operand));
                let rows = rows.collect::<Result<_>>()?;
                self.written.operands.insert(narrow(i)?, rows);
                (Codec::Delta, Some(Part::Owned(stored.into())))
            }
        };
        let stored_bytes = part.as_ref().map_or(0, Part::len);
        let stored_bytes = narrow(stored_bytes as usize)?;
        let (pack, offset) = self.append(hash, decoded_bytes, codec, part)?;
        Ok(Chunk { hash, decoded_bytes, stored_bytes, codec, pack, offset })
    }

    fn operand_row(&mut self, operand: &OperandRow) -> Result<u32> {
        match (operand, self.job.base) {
            (OperandRow::Own(row), _) => narrow(*row),
            (OperandRow::Base(row), Some(base)) => {
                self.written.reused = true;
                self.base_row(base, *row)
            }
            (OperandRow::Base(_), None) => Err(Error::internal("a delta of a base without a base")),
        }
    }

    /// Row `i` is what row `stored` of the base is.
    fn reuse(&mut self, i: usize, stored: usize) -> Result<Chunk> {
        let (Some(base), Some(Stored { chunk, pack, pack_bytes })) =
            (self.job.base, self.job.base.and_then(|base| base.row(stored)))
        else {
            return Err(Error::internal("a chunk of a base that is not there"));
        };
        self.written.reused = true;
        let operands = base.operands_of(stored);
        let rows: Vec<u32> =
            operands.iter().map(|row| self.base_row(base, *row)).collect::<Result<_>>()?;
        if !rows.is_empty() {
            self.written.operands.insert(narrow(i)?, rows);
        }
        Ok(Chunk { pack: self.reused_pack(pack, *pack_bytes)?, ..*chunk })
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
