//! From tensors with their bytes to a shard index and its pack: a small model of a save.

use std::collections::BTreeMap;

use lastgood_format::chunk::{self, Codec, Encoded};
use lastgood_format::index::{Chunk, Component, Durability, Pack, Shard, ShardIndex, Tensor};
use lastgood_format::key::{self, SaveKey};
use lastgood_format::layout::NdBox;
use lastgood_format::pack::{self, HEADER_BYTES, PackedChunk};
use lastgood_format::{Dtype, Hash, RunName};

/// The chunk size of every draft: the smallest there is.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// One rank's part of a save that is still to be cut into chunks.
pub(crate) struct Draft {
    pub(crate) run: RunName,
    pub(crate) save: SaveKey,
    pub(crate) rank: u32,
    pub(crate) world_size: u32,
    pub(crate) parent: Option<Hash>,
    pub(crate) reuses: Vec<Hash>,
    pub(crate) components: Vec<Component>,
    pub(crate) tensors: Vec<DraftTensor>,
    pub(crate) metadata: BTreeMap<String, String>,
}

pub(crate) struct DraftTensor {
    pub(crate) component: u32,
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    pub(crate) tied_to: Option<u32>,
    pub(crate) shards: Vec<(NdBox, Vec<u8>)>,
}

/// Chunks of earlier saves by hash: their pack, its size, and their place.
pub(crate) type Stored = BTreeMap<Hash, (String, u64, PackedChunk)>;

pub(crate) fn component(name: &str, durability: Durability) -> Component {
    Component { name: name.into(), owner: "vectors".into(), durability }
}

impl Draft {
    /// The index, the name of its pack inside the run and the pack.
    pub(crate) fn build(self, base: &Stored) -> (ShardIndex, String, Vec<u8>) {
        let mut rows: Vec<Vec<u8>> = Vec::new();
        let mut open: Option<usize> = None;
        let mut shards = Vec::new();
        let mut tensors = Vec::new();
        for tensor in self.tensors {
            let begin = shards.len() as u32;
            for (extent, bytes) in tensor.shards {
                let (row, offset) = place(&mut rows, &mut open, &bytes);
                shards.push(Shard { extent, first_chunk: row, chunk_offset: offset });
            }
            tensors.push(Tensor {
                component: tensor.component,
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
                tied_to: tensor.tied_to,
                shards: begin..shards.len() as u32,
            });
        }
        let object = key::pack_in_run(&self.save, self.rank, 0);
        let (chunks, packs, stored) = fill(&rows, &object, base);
        let index = ShardIndex {
            run: self.run,
            save: self.save,
            rank: self.rank,
            world_size: self.world_size,
            parent: self.parent,
            reuses: self.reuses,
            chunk_bytes: CHUNK_BYTES as u32,
            components: self.components,
            tensors,
            shards,
            chunks,
            packs,
            metadata: self.metadata,
        };
        (index, object, stored)
    }
}

/// The row and the offset in it where a shard begins.
fn place(rows: &mut Vec<Vec<u8>>, open: &mut Option<usize>, bytes: &[u8]) -> (u32, u32) {
    if bytes.is_empty() {
        return (0, 0);
    }
    if bytes.len() >= CHUNK_BYTES {
        let first = rows.len();
        rows.extend(bytes.chunks(CHUNK_BYTES).map(<[u8]>::to_vec));
        return (first as u32, 0);
    }
    let row =
        open.filter(|row| rows[*row].len() + bytes.len() <= CHUNK_BYTES).unwrap_or_else(|| {
            rows.push(Vec::new());
            rows.len() - 1
        });
    *open = Some(row);
    let offset = rows[row].len();
    rows[row].extend_from_slice(bytes);
    (row as u32, offset as u32)
}

fn fill(rows: &[Vec<u8>], object: &str, base: &Stored) -> (Vec<Chunk>, Vec<Pack>, Vec<u8>) {
    let mut stored = pack::header().to_vec();
    let mut table: Vec<PackedChunk> = Vec::new();
    let mut packs: Vec<Pack> = Vec::new();
    let mut chunks = Vec::new();
    for row in rows {
        let hash = Hash::of(row);
        let known = table.iter().find(|chunk| chunk.hash == hash).copied();
        let (name, bytes, at) = match (base.get(&hash), known) {
            (Some((name, bytes, at)), _) => (name.as_str(), *bytes, *at),
            (None, Some(at)) => (object, 0, at),
            (None, None) => (object, 0, append(&mut stored, &mut table, row)),
        };
        let pack = packs.iter().position(|pack| pack.object == name).unwrap_or_else(|| {
            packs.push(Pack { object: name.into(), bytes, is_new: name == object });
            packs.len() - 1
        });
        chunks.push(Chunk {
            hash,
            decoded_bytes: at.decoded_bytes,
            stored_bytes: at.stored_bytes,
            codec: at.codec,
            pack: pack as u32,
            offset: at.offset,
        });
    }
    assert_eq!(
        stored.len() as u64,
        table.iter().fold(HEADER_BYTES, |n, c| n + u64::from(c.stored_bytes))
    );
    stored.extend(pack::footer(&table));
    if let Some(own) = packs.iter_mut().find(|pack| pack.is_new) {
        own.bytes = stored.len() as u64;
    }
    (chunks, packs, stored)
}

fn append(stored: &mut Vec<u8>, table: &mut Vec<PackedChunk>, row: &[u8]) -> PackedChunk {
    let offset = stored.len() as u64;
    let codec = match chunk::encode(row, 4, Some(3)).unwrap() {
        Encoded::Raw => {
            stored.extend_from_slice(row);
            Codec::Raw
        }
        Encoded::Zero => Codec::Zero,
        Encoded::Coded(codec, coded) => {
            stored.extend_from_slice(&coded);
            codec
        }
    };
    let at = PackedChunk {
        hash: Hash::of(row),
        offset,
        stored_bytes: (stored.len() as u64 - offset) as u32,
        decoded_bytes: row.len() as u32,
        codec,
    };
    table.push(at);
    at
}
