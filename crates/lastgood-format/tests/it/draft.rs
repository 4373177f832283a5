//! From tensors with their bytes to a shard index and its pack: a small model of a save.

use std::collections::BTreeMap;

use lastgood_format::chunk::{self, Codec, Encoded};
use lastgood_format::delta::{self, Operand, Prediction};
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
    /// How tensors with chunks of their own are predicted, by name.
    pub(crate) deltas: BTreeMap<String, DraftDelta>,
}

/// A prediction from operands with as many bytes as the tensor, whose chunks are stored, in this save or before.
#[derive(Clone)]
pub(crate) struct DraftDelta {
    pub(crate) prediction: Prediction,
    pub(crate) width: usize,
    pub(crate) operands: Vec<Vec<u8>>,
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
        let mut deltas = BTreeMap::new();
        for tensor in self.tensors {
            let begin = shards.len() as u32;
            for (extent, bytes) in tensor.shards {
                let (row, offset) = place(&mut rows, &mut open, &bytes);
                let delta = self.deltas.get(&tensor.name);
                let end = row as usize + bytes.len().div_ceil(CHUNK_BYTES);
                deltas.extend(
                    (row as usize..end).zip(0..).filter_map(|at| Some((at.0, (at.1, delta?)))),
                );
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
        let Filled { chunks, bases, operands, packs, stored } = fill(&rows, &deltas, &object, base);
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
            bases,
            operands,
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

struct Filled {
    chunks: Vec<Chunk>,
    bases: Vec<Chunk>,
    operands: BTreeMap<u32, Vec<u32>>,
    packs: Vec<Pack>,
    stored: Vec<u8>,
}

/// For each row that is a delta, which of the chunks of its tensor it is.
type Deltas<'d> = BTreeMap<usize, (usize, &'d DraftDelta)>;

fn fill(rows: &[Vec<u8>], deltas: &Deltas<'_>, object: &str, base: &Stored) -> Filled {
    let mut stored = pack::header().to_vec();
    let mut table: Vec<PackedChunk> = Vec::new();
    let mut packs: Vec<Pack> = Vec::new();
    let (mut chunks, mut bases, mut operands) = (Vec::new(), Vec::new(), BTreeMap::new());
    let pack_of = |packs: &mut Vec<Pack>, name: &str, bytes: u64| {
        packs.iter().position(|pack| pack.object == name).unwrap_or_else(|| {
            packs.push(Pack { object: name.into(), bytes, is_new: name == object });
            packs.len() - 1
        })
    };
    for (i, row) in rows.iter().enumerate() {
        let hash = Hash::of(row);
        let known = table.iter().find(|chunk| chunk.hash == hash).copied();
        let delta = deltas.get(&i);
        let (name, bytes, at) = match (base.get(&hash), known) {
            (Some((name, bytes, at)), _) => (name.as_str(), *bytes, *at),
            (None, Some(at)) => (object, 0, at),
            (None, None) => (object, 0, append(&mut stored, &mut table, row, delta)),
        };
        let pack = pack_of(&mut packs, name, bytes);
        chunks.push(chunk_at(&at, pack));
        if let Some((part, delta)) = delta {
            let of = delta.operands.iter().map(|whole| {
                let hash = Hash::of(part_of(whole, *part));
                if let Some((name, bytes, at)) = base.get(&hash) {
                    bases.push(chunk_at(at, pack_of(&mut packs, name, *bytes)));
                    return (rows.len() + bases.len() - 1) as u32;
                }
                rows.iter().position(|row| Hash::of(row) == hash).unwrap() as u32
            });
            operands.insert(i as u32, of.collect());
        }
    }
    assert_eq!(
        stored.len() as u64,
        table.iter().fold(HEADER_BYTES, |n, c| n + u64::from(c.stored_bytes))
    );
    stored.extend(pack::footer(&table));
    if let Some(own) = packs.iter_mut().find(|pack| pack.is_new) {
        own.bytes = stored.len() as u64;
    }
    Filled { chunks, bases, operands, packs, stored }
}

fn part_of(whole: &[u8], part: usize) -> &[u8] {
    whole.chunks(CHUNK_BYTES).nth(part).unwrap()
}

fn chunk_at(at: &PackedChunk, pack: usize) -> Chunk {
    Chunk {
        hash: at.hash,
        decoded_bytes: at.decoded_bytes,
        stored_bytes: at.stored_bytes,
        codec: at.codec,
        pack: pack as u32,
        offset: at.offset,
    }
}

fn append(
    stored: &mut Vec<u8>,
    table: &mut Vec<PackedChunk>,
    row: &[u8],
    delta: Option<&(usize, &DraftDelta)>,
) -> PackedChunk {
    let offset = stored.len() as u64;
    let encoded = match delta {
        None => chunk::encode(row, 4, Some(3)).unwrap(),
        Some((part, DraftDelta { prediction, width, operands })) => {
            let parts = operands.iter().map(|whole| part_of(whole, *part));
            let operands: Vec<_> =
                parts.map(|bytes| Operand { hash: Hash::of(bytes), bytes }).collect();
            let coded = delta::encode(row, *width, prediction, &operands, 1).unwrap().unwrap();
            Encoded::Coded(Codec::Delta, coded)
        }
    };
    let codec = match encoded {
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
