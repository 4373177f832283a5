//! The shard index: one rank's table of tensors, shards and chunks for one save.

mod agreement;
mod decode;
mod encode;
mod rules;

use std::collections::BTreeMap;
use std::ops::Range;

pub use agreement::{check_agreement, check_complete};
use serde::{Deserialize, Serialize};

use crate::chunk::Codec;
use crate::key::SaveKey;
use crate::layout::NdBox;
use crate::{Dtype, Error, Hash, Result, RunName};

const MAGIC: &[u8; 8] = b"LGINDEX\0";

/// Magic, version, flags, decoded size, stored size.
const HEADER_BYTES: usize = 8 + 4 + 4 + 8 + 8;

/// The flag of an index with columns for deltas: an older reader refuses it.
const DELTAS: u32 = 1;

/// The longest name of a component or owner, in bytes.
pub const NAME_BYTES_MAX: usize = 1024;

/// The longest name of a tensor, in bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 64 << 10;

/// The most bytes of all tensor names of an index together.
pub const NAMES_BYTES_MAX: u64 = 1 << 30;

/// The longest key or value of metadata, in bytes.
pub const METADATA_BYTES_MAX: usize = 64 << 20;

/// The most dimensions of a tensor.
pub const DIMS_MAX: usize = 32;

/// One rank's part of a save. Written after every pack that it names is durable.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardIndex {
    /// The run.
    pub run: RunName,
    /// The save.
    pub save: SaveKey,
    /// This rank.
    pub rank: u32,
    /// The number of ranks of the save.
    pub world_size: u32,
    /// The checkpoint that this rank restored from or saved before.
    pub parent: Option<Hash>,
    /// The checkpoints whose packs are named here, sorted, without duplicates.
    pub reuses: Vec<Hash>,
    /// The chunk size; every chunk but the last of a shard has exactly this many decoded bytes.
    pub chunk_bytes: u32,
    /// The components, sorted by name, without duplicates.
    pub components: Vec<Component>,
    /// The tensors, sorted by (component, name), without duplicates.
    pub tensors: Vec<Tensor>,
    /// The shards that this rank stores, grouped by tensor, in tensor order.
    pub shards: Vec<Shard>,
    /// The chunks: a row for each chunk of each shard, so equal chunks have a row each that name the
    /// same place. A large shard owns consecutive rows; small shards share one.
    pub chunks: Vec<Chunk>,
    /// Chunks that belong to no shard and that others are deltas of, directly or over others.
    pub bases: Vec<Chunk>,
    /// For each delta the chunks that it is made of, as rows: those of `chunks`, and behind them those of `bases`.
    pub operands: BTreeMap<u32, Vec<u32>>,
    /// The packs that hold them, in order of first use.
    pub packs: Vec<Pack>,
    /// Text that travels with the checkpoint (safetensors metadata, for example).
    pub metadata: BTreeMap<String, String>,
}

/// How long a component's state must live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Saved and restored.
    Durable,
    /// Not saved: its owner derives it again after a restore.
    Derived,
    /// Not saved: its owner resets it after a restore.
    Volatile,
}

/// One named part of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The name, any UTF-8 up to 1 KiB.
    pub name: String,
    /// Who declared it.
    pub owner: String,
    /// How long its state must live; only durable components have tensors.
    pub durability: Durability,
}

/// One tensor, of which this rank may hold shards or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Index into `components`.
    pub component: u32,
    /// The name inside its component, any UTF-8 up to 64 KiB.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The global shape, row-major.
    pub shape: Vec<u64>,
    /// Index of the tensor (a lower one, itself not tied) whose bytes these are, if they are tied. A
    /// tied tensor has no shards of its own.
    pub tied_to: Option<u32>,
    /// Its shards: a range of `shards`.
    pub shards: Range<u32>,
}

/// The part of a tensor that this rank stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Where it lies in the global tensor.
    pub extent: NdBox,
    /// The first of its chunks in `chunks`; the others follow it there without a gap.
    pub first_chunk: u32,
    /// Where the shard begins inside that chunk; not 0 only for a small shard in a shared chunk.
    pub chunk_offset: u32,
}

/// One chunk and where it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The hash of the decoded bytes: the identity of the chunk.
    pub hash: Hash,
    /// The number of decoded bytes, at most `chunk_bytes`.
    pub decoded_bytes: u32,
    /// The number of stored bytes.
    pub stored_bytes: u32,
    /// The codec.
    pub codec: Codec,
    /// Index into `packs`.
    pub pack: u32,
    /// Where the stored bytes begin, from the start of the pack.
    pub offset: u64,
}

/// A pack that holds chunks of this index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// The object, relative to the run's folder.
    pub object: String,
    /// The stored size of the whole pack.
    pub bytes: u64,
    /// True if it was written for this save; false if it belongs to a checkpoint in `reuses`.
    pub is_new: bool,
}

impl ShardIndex {
    /// The largest stored index, and the largest columns in it, in bytes.
    pub const BYTES_MAX: u64 = 1 << 30;

    /// The most bytes of columns for each byte of their frame: more is a bomb and not an index.
    pub const GROWTH_MAX: u64 = 4096;

    /// The binary logarithm of the largest window of the frame: 8 MiB, which every decoder supports
    /// (RFC 8878, section 3.1.1.1.2).
    pub const WINDOW_LOG_MAX: u32 = 23;

    /// The bytes of all shards of this index.
    ///
    /// # Errors
    /// `Corrupt` if a size overflows.
    pub fn shard_bytes(&self) -> Result<u64> {
        let mut sum = 0u64;
        for tensor in &self.tensors {
            for shard in &self.shards[tensor.shards.start as usize..tensor.shards.end as usize] {
                let bytes = self.bytes_of(tensor, shard)?;
                sum = sum.checked_add(bytes).ok_or_else(|| overflow(&tensor.name))?;
            }
        }
        Ok(sum)
    }

    /// A row of `chunks`, or behind them of `bases`.
    #[must_use]
    pub fn row(&self, row: u32) -> Option<&Chunk> {
        let i = row as usize;
        self.chunks.get(i).or_else(|| self.bases.get(i.checked_sub(self.chunks.len())?))
    }

    /// The rows that `row` is made of; none unless it is a delta.
    #[must_use]
    pub fn operands_of(&self, row: u32) -> &[u32] {
        self.operands.get(&row).map_or(&[], Vec::as_slice)
    }

    /// How far each delta is from a chunk that is none, over those that it is made of.
    #[must_use]
    pub fn depths(&self) -> BTreeMap<u32, u32> {
        let mut depths: BTreeMap<u32, u32> = BTreeMap::new();
        for row in self.operands.keys() {
            // Without recursion: a way may be long, though the rules of an index allow no circle.
            let mut open = vec![*row];
            while let Some(row) = open.last().copied() {
                let operands = self.operands_of(row);
                let is_unknown =
                    |of: &&u32| !depths.contains_key(of) && self.operands.contains_key(of);
                if let Some(unknown) = operands.iter().find(is_unknown) {
                    open.push(*unknown);
                    continue;
                }
                let deepest = operands.iter().filter_map(|of| depths.get(of)).max().copied();
                depths.insert(row, deepest.unwrap_or(0) + 1);
                open.pop();
            }
        }
        depths
    }

    /// Every chunk that this index stands on: those of its shards, and those that they are deltas of.
    pub fn all_chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().chain(&self.bases)
    }

    /// The bytes of the packs that were written for this save.
    #[must_use]
    pub fn new_pack_bytes(&self) -> u64 {
        self.packs.iter().filter(|pack| pack.is_new).map(|pack| pack.bytes).sum()
    }

    /// The bytes of `shard` of `tensor`.
    ///
    /// # Errors
    /// `Corrupt` if a size overflows.
    pub fn bytes_of(&self, tensor: &Tensor, shard: &Shard) -> Result<u64> {
        shard
            .extent
            .elements()
            .and_then(|elements| tensor.dtype.bytes_of(elements))
            .ok_or_else(|| overflow(&tensor.name))
    }
}

fn overflow(name: &str) -> Error {
    Error::corrupt(format!("the size of tensor {name:?} overflows or is no whole number of bytes"))
}
