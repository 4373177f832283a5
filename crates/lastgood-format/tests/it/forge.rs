//! Writers that check nothing, for objects that no writer of ours would make. Seals and hashes are right.

use lastgood_format::index::{Chunk, Durability, ShardIndex};
use lastgood_format::{Hash, sealed};
use serde_json::Value;

/// Little-endian fields, one after the other.
#[derive(Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
    }

    fn hash(&mut self, hash: &Hash) {
        self.0.extend(hash.as_bytes());
    }
}

/// The columns of an index, whatever it says.
pub(crate) fn columns(index: &ShardIndex) -> Vec<u8> {
    let mut out = Bytes::default();
    head(&mut out, index);
    tensors(&mut out, index);
    out.u32(index.shards.len() as u32);
    index.shards.iter().flat_map(|s| &s.extent.offsets).for_each(|value| out.u64(*value));
    index.shards.iter().flat_map(|s| &s.extent.sizes).for_each(|value| out.u64(*value));
    index.shards.iter().for_each(|s| out.u32(s.first_chunk));
    index.shards.iter().for_each(|s| out.u32(s.chunk_offset));
    out.u32(index.packs.len() as u32);
    for pack in &index.packs {
        out.text(&pack.object);
        out.u64(pack.bytes);
        out.0.push(pack.is_new.into());
    }
    rows(&mut out, &index.chunks);
    if !index.bases.is_empty() || !index.operands.is_empty() {
        rows(&mut out, &index.bases);
        out.u32(index.operands.len() as u32);
        index.operands.keys().for_each(|row| out.u32(*row));
        index.operands.values().for_each(|operands| out.0.push(operands.len() as u8));
        index.operands.values().flatten().for_each(|row| out.u32(*row));
    }
    out.0
}

fn rows(out: &mut Bytes, chunks: &[Chunk]) {
    out.u32(chunks.len() as u32);
    chunks.iter().for_each(|c| out.hash(&c.hash));
    chunks.iter().for_each(|c| out.u32(c.decoded_bytes));
    chunks.iter().for_each(|c| out.u32(c.stored_bytes));
    chunks.iter().for_each(|c| out.0.push(c.codec.code()));
    chunks.iter().for_each(|c| out.u32(c.pack));
    chunks.iter().for_each(|c| out.u64(c.offset));
}

fn head(out: &mut Bytes, index: &ShardIndex) {
    out.text(index.run.as_str());
    out.u64(index.save.attempt);
    out.u64(index.save.step);
    out.u32(index.save.generation);
    out.u32(index.rank);
    out.u32(index.world_size);
    out.u32(index.chunk_bytes);
    out.0.push(index.parent.is_some().into());
    index.parent.iter().for_each(|hash| out.hash(hash));
    out.u32(index.reuses.len() as u32);
    index.reuses.iter().for_each(|hash| out.hash(hash));
    out.u32(index.metadata.len() as u32);
    for (key, value) in &index.metadata {
        out.text(key);
        out.text(value);
    }
    out.u32(index.components.len() as u32);
    for component in &index.components {
        out.text(&component.name);
        out.text(&component.owner);
        out.0.push(match component.durability {
            Durability::Durable => 0,
            Durability::Derived => 1,
            Durability::Volatile => 2,
        });
    }
}

fn tensors(out: &mut Bytes, index: &ShardIndex) {
    out.u32(index.tensors.len() as u32);
    index.tensors.iter().for_each(|t| out.u32(t.component));
    let mut last = "";
    for tensor in &index.tensors {
        let pairs = last.char_indices().zip(tensor.name.chars());
        let kept = pairs.take_while(|((_, a), b)| a == b).last();
        let kept = kept.map_or(0, |((at, c), _)| at + c.len_utf8());
        out.u32(kept as u32);
        out.text(&tensor.name[kept..]);
        last = &tensor.name;
    }
    index.tensors.iter().for_each(|t| out.0.push(t.dtype.code()));
    index.tensors.iter().for_each(|t| out.0.push(t.shape.len() as u8));
    index.tensors.iter().flat_map(|t| &t.shape).for_each(|value| out.u64(*value));
    index.tensors.iter().for_each(|t| out.u32(t.tied_to.map_or(0, |other| other.wrapping_add(1))));
    index.tensors.iter().for_each(|t| out.u32(t.shards.end.wrapping_sub(t.shards.start)));
}

/// Makes a stored index of columns.
pub(crate) type Seal = fn(&[u8]) -> Vec<u8>;

/// How the columns of `index` are sealed.
pub(crate) fn seal_of(index: &ShardIndex) -> Seal {
    if index.bases.is_empty() && index.operands.is_empty() { index_of } else { index_of_deltas }
}

/// A stored index of `columns`.
pub(crate) fn index_of(columns: &[u8]) -> Vec<u8> {
    let frame = zstd::bulk::compress(columns, 1).unwrap();
    index_with(1, 0, columns.len() as u64, &frame)
}

/// The same with the columns of deltas.
pub(crate) fn index_of_deltas(columns: &[u8]) -> Vec<u8> {
    let frame = zstd::bulk::compress(columns, 1).unwrap();
    index_with(1, 1, columns.len() as u64, &frame)
}

/// A stored index whose header says these things about `frame`.
pub(crate) fn index_with(version: u32, flags: u32, decoded_bytes: u64, frame: &[u8]) -> Vec<u8> {
    let mut out = Bytes(b"LGINDEX\0".to_vec());
    out.u32(version);
    out.u32(flags);
    out.u64(decoded_bytes);
    out.u64(frame.len() as u64);
    out.0.extend(frame);
    let seal = Hash::of(&out.0);
    out.hash(&seal);
    out.0
}

/// A pack with `stored` between the header and `table`, and these fields in its trailer.
pub(crate) fn pack_with(
    version: u32,
    stored: &[u8],
    table: &[u8],
    rows: u32,
    table_offset: u64,
) -> Vec<u8> {
    let mut out = Bytes(b"LGPACK\0\0".to_vec());
    out.u32(version);
    out.u32(0);
    let header = out.0.clone();
    out.0.extend(stored);
    out.0.extend(table);
    let mut trailer = Bytes(b"LGPKEND\0".to_vec());
    trailer.u32(version);
    trailer.u32(rows);
    trailer.u64(table_offset);
    trailer.u64(0);
    let from = (table_offset as usize).min(16 + stored.len() + table.len());
    let sealed = out.0.get(from..).unwrap_or_default();
    let seal = Hash::of_parts([header.as_slice(), sealed, &trailer.0]);
    out.0.extend(&trailer.0);
    out.hash(&seal);
    out.0
}

/// One row of a pack's table.
pub(crate) fn row(offset: u64, stored_bytes: u32, decoded_bytes: u32, codec: u8) -> Vec<u8> {
    let mut out = Bytes(vec![7; 32]);
    out.u64(offset);
    out.u32(stored_bytes);
    out.u32(decoded_bytes);
    out.0.push(codec);
    out.0
}

/// A sealed object whose first line is `body`.
pub(crate) fn seal_text(body: &str) -> Vec<u8> {
    let line = format!("{body}\n");
    format!("{line}{{\"seal\":\"{}\"}}\n", Hash::of(line.as_bytes())).into_bytes()
}

/// The body of a sealed object.
pub(crate) fn body(stored: &[u8]) -> Value {
    serde_json::from_slice(sealed::body(stored).unwrap()).unwrap()
}
