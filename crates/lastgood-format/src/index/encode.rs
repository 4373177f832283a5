//! Writing a shard index: header, one zstd frame of little-endian columns, trailing hash.

use std::io::Write;

use super::{Chunk, DELTAS, HEADER_BYTES, MAGIC, ShardIndex};
use crate::wire::Writer;
use crate::{Error, FORMAT_VERSION, Hash, Result, frames};

/// Columns are mostly equal or counting values: the fastest level makes them small already.
const LEVEL: i32 = 1;

impl ShardIndex {
    /// The stored bytes: header, zstd-compressed columns, trailing hash.
    ///
    /// # Errors
    /// `Invalid` if this index breaks a rule or a limit of the format; `Internal` if it cannot be
    /// compressed.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check().map_err(|error| {
            Error::invalid(format!("the shard index is not well formed: {}", error.message()))
        })?;
        let mut columns = Writer::default();
        self.write_save(&mut columns);
        self.write_components(&mut columns);
        self.write_tensors(&mut columns);
        self.write_shards(&mut columns);
        self.write_chunks(&mut columns);
        let frame = compress(&columns.0)?;
        let too_large = |what: &str, bytes: usize| {
            Error::invalid(format!(
                "the {what} of a shard index has at most {} bytes, this one {bytes}",
                Self::BYTES_MAX
            ))
            .with_remedy("choose larger chunks or save from more ranks")
        };
        if columns.0.len() as u64 > Self::BYTES_MAX {
            return Err(too_large("table", columns.0.len()));
        }
        let mut out = Writer(Vec::with_capacity(HEADER_BYTES + frame.len() + Hash::BYTES));
        out.0.extend_from_slice(MAGIC);
        out.u32(FORMAT_VERSION);
        out.u32(if self.operands.is_empty() { 0 } else { DELTAS });
        out.u64(columns.0.len() as u64);
        out.u64(frame.len() as u64);
        out.0.extend_from_slice(&frame);
        let seal = Hash::of(&out.0);
        out.hash(&seal);
        if out.0.len() as u64 > Self::BYTES_MAX {
            return Err(too_large("stored form", out.0.len()));
        }
        Ok(out.0)
    }

    fn write_save(&self, out: &mut Writer) {
        out.text(self.run.as_str());
        out.u64(self.save.attempt);
        out.u64(self.save.step);
        out.u32(self.save.generation);
        out.u32(self.rank);
        out.u32(self.world_size);
        out.u32(self.chunk_bytes);
        out.u8(u8::from(self.parent.is_some()));
        if let Some(parent) = &self.parent {
            out.hash(parent);
        }
        count(out, self.reuses.len());
        self.reuses.iter().for_each(|base| out.hash(base));
        count(out, self.metadata.len());
        for (key, value) in &self.metadata {
            out.text(key);
            out.text(value);
        }
    }

    fn write_components(&self, out: &mut Writer) {
        count(out, self.components.len());
        for component in &self.components {
            out.text(&component.name);
            out.text(&component.owner);
            out.u8(component.durability.code());
        }
    }

    fn write_tensors(&self, out: &mut Writer) {
        let tensors = &self.tensors;
        count(out, tensors.len());
        tensors.iter().for_each(|t| out.u32(t.component));
        let mut last = "";
        for tensor in tensors {
            let kept = shared_prefix(last, &tensor.name);
            count(out, kept);
            out.text(&tensor.name[kept..]);
            last = &tensor.name;
        }
        tensors.iter().for_each(|t| out.u8(t.dtype.code()));
        tensors.iter().for_each(|t| out.u8(t.shape.len() as u8));
        tensors.iter().flat_map(|t| &t.shape).for_each(|size| out.u64(*size));
        tensors.iter().for_each(|t| out.u32(t.tied_to.map_or(0, |other| other + 1)));
        tensors.iter().for_each(|t| out.u32(t.shards.end - t.shards.start));
    }

    fn write_shards(&self, out: &mut Writer) {
        let shards = &self.shards;
        count(out, shards.len());
        shards.iter().flat_map(|s| &s.extent.offsets).for_each(|offset| out.u64(*offset));
        shards.iter().flat_map(|s| &s.extent.sizes).for_each(|size| out.u64(*size));
        shards.iter().for_each(|s| out.u32(s.first_chunk));
        shards.iter().for_each(|s| out.u32(s.chunk_offset));
    }

    fn write_chunks(&self, out: &mut Writer) {
        count(out, self.packs.len());
        for pack in &self.packs {
            out.text(&pack.object);
            out.u64(pack.bytes);
            out.u8(u8::from(pack.is_new));
        }
        write_rows(out, &self.chunks);
        if self.operands.is_empty() {
            return;
        }
        write_rows(out, &self.bases);
        count(out, self.operands.len());
        self.operands.keys().for_each(|row| out.u32(*row));
        self.operands.values().for_each(|operands| out.u8(operands.len() as u8));
        self.operands.values().flatten().for_each(|row| out.u32(*row));
    }
}

fn write_rows(out: &mut Writer, chunks: &[Chunk]) {
    count(out, chunks.len());
    chunks.iter().for_each(|c| out.hash(&c.hash));
    chunks.iter().for_each(|c| out.u32(c.decoded_bytes));
    chunks.iter().for_each(|c| out.u32(c.stored_bytes));
    chunks.iter().for_each(|c| out.u8(c.codec.code()));
    chunks.iter().for_each(|c| out.u32(c.pack));
    chunks.iter().for_each(|c| out.u64(c.offset));
}

/// One zstd frame that keeps [`ShardIndex::GROWTH_MAX`].
fn compress(columns: &[u8]) -> Result<Vec<u8>> {
    let failed = |e| Error::internal(format!("zstd cannot compress a shard index: {e}"));
    let frame = frames::compress(columns, LEVEL).map_err(failed)?;
    if columns.len() as u64 <= frame.len() as u64 * ShardIndex::GROWTH_MAX {
        return Ok(frame);
    }
    // Metadata that repeats one character compresses to less than a decoder takes for an index. A
    // block has four bytes at least, so that small ones keep any columns below that limit.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).map_err(failed)?;
    for block in columns.chunks(ShardIndex::GROWTH_MAX as usize) {
        encoder.write_all(block).and_then(|()| encoder.flush()).map_err(failed)?;
    }
    encoder.finish().map_err(failed)
}

/// Every count was checked to be below 2^32 by [`ShardIndex::check`].
fn count(out: &mut Writer, count: usize) {
    out.u32(count as u32);
}

/// The length of the longest common prefix that ends between characters.
pub(super) fn shared_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    (0..=same).rev().find(|end| b.is_char_boundary(*end)).unwrap_or(0)
}
