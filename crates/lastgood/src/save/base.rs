//! The chunks that are stored already and may be reused, found by content.

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
    chunks: BTreeMap<Hash, (Chunk, usize)>,
    packs: Vec<(Arc<str>, u64)>,
}

/// A stored chunk with its pack.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) pack: Arc<str>,
    pub(crate) pack_bytes: u64,
    pub(crate) offset: u64,
    pub(crate) stored_bytes: u32,
    pub(crate) codec: Codec,
}

impl Base {
    /// The chunks that `indexes` of `checkpoint` name.
    pub(crate) fn new<'i>(
        checkpoint: Hash,
        indexes: impl IntoIterator<Item = &'i ShardIndex>,
    ) -> Self {
        let mut base = Self { checkpoint, chunks: BTreeMap::new(), packs: Vec::new() };
        for index in indexes {
            let first = base.packs.len();
            let packs =
                index.packs.iter().map(|pack| (Arc::from(pack.object.as_str()), pack.bytes));
            base.packs.extend(packs);
            for chunk in index.chunks.iter().filter(|chunk| chunk.codec != Codec::Zero) {
                base.chunks.insert(chunk.hash, (*chunk, first + chunk.pack as usize));
            }
        }
        base
    }

    /// The stored chunk of this hash and decoded size.
    pub(crate) fn find(&self, hash: &Hash, decoded_bytes: usize) -> Option<Stored> {
        let (chunk, pack) = self.chunks.get(hash)?;
        let (object, pack_bytes) = self.packs.get(*pack)?;
        (chunk.decoded_bytes as usize == decoded_bytes).then(|| Stored {
            pack: Arc::clone(object),
            pack_bytes: *pack_bytes,
            offset: chunk.offset,
            stored_bytes: chunk.stored_bytes,
            codec: chunk.codec,
        })
    }
}
