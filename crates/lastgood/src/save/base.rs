//! The chunks that are stored already: those with the same content may be reused, others may be deltas of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood_format::Hash;
use lastgood_format::chunk::Codec;
use lastgood_format::index::{Chunk, ShardIndex};

/// The chunks of a committed checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    /// The checkpoint.
    pub(crate) checkpoint: Hash,
    /// The rows of every index, those of its bases behind those of its shards.
    rows: Vec<Stored>,
    /// The rows that each delta is made of.
    operands: BTreeMap<usize, Vec<usize>>,
    /// How far each delta is from a chunk that is none.
    depths: BTreeMap<usize, u32>,
    by_hash: BTreeMap<Hash, usize>,
}

/// A stored chunk with its pack.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Its place, but for the pack's number, which means nothing here.
    pub(crate) chunk: Chunk,
    pub(crate) pack: Arc<str>,
    pub(crate) pack_bytes: u64,
}

impl Base {
    /// The chunks that `indexes` of `checkpoint` name.
    pub(crate) fn new<'i>(
        checkpoint: Hash,
        indexes: impl IntoIterator<Item = &'i ShardIndex>,
    ) -> Self {
        let mut base = Self {
            checkpoint,
            rows: Vec::new(),
            operands: BTreeMap::new(),
            depths: BTreeMap::new(),
            by_hash: BTreeMap::new(),
        };
        for index in indexes {
            base.add(index);
        }
        base
    }

    fn add(&mut self, index: &ShardIndex) {
        let first = self.rows.len();
        let packs: Vec<(Arc<str>, u64)> =
            index.packs.iter().map(|pack| (pack.object.as_str().into(), pack.bytes)).collect();
        for (i, chunk) in index.all_chunks().enumerate() {
            let (pack, pack_bytes) = packs[chunk.pack as usize].clone();
            self.rows.push(Stored { chunk: *chunk, pack, pack_bytes });
            if chunk.codec != Codec::Zero && i < index.chunks.len() {
                self.by_hash.insert(chunk.hash, first + i);
            }
        }
        for (row, operands) in &index.operands {
            let operands = operands.iter().map(|operand| first + *operand as usize).collect();
            self.operands.insert(first + *row as usize, operands);
        }
        let depths = index.depths().into_iter();
        self.depths.extend(depths.map(|(row, depth)| (first + row as usize, depth)));
    }

    /// The row of a stored chunk of this hash and decoded size.
    pub(crate) fn find(&self, hash: &Hash, decoded_bytes: usize) -> Option<usize> {
        let row = *self.by_hash.get(hash)?;
        (self.rows[row].chunk.decoded_bytes as usize == decoded_bytes).then_some(row)
    }

    /// The chunk of a row: of the first index in the order of its own, so that what was saved last from a plan has the
    /// rows of the plan.
    pub(crate) fn row(&self, row: usize) -> Option<&Stored> {
        self.rows.get(row)
    }

    /// The rows that a row is made of; none unless it is a delta.
    pub(crate) fn operands_of(&self, row: usize) -> &[usize] {
        self.operands.get(&row).map_or(&[], Vec::as_slice)
    }

    /// The row that a row is made of in the end: the oldest of the same part of the state, which is no delta. None for a
    /// row that is none itself.
    pub(crate) fn root(&self, row: usize) -> Option<usize> {
        let mut root = None;
        let mut next = self.operands_of(row).first();
        while let Some(operand) = next {
            root = Some(*operand);
            // The first operand is what was there before, whatever the rule.
            next = self.operands_of(*operand).first();
        }
        root
    }

    /// How far a row is from one that is no delta; 0 if it is none itself.
    pub(crate) fn depth(&self, row: usize) -> u32 {
        self.depths.get(&row).copied().unwrap_or(0)
    }
}
