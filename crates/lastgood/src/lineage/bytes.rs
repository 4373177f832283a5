//! Where a checkpoint has the bytes of a tensor.

use std::collections::BTreeMap;

use lastgood_format::key::{self, SaveKey};
use lastgood_format::layout::NdBox;
use lastgood_format::{Error, Hash, Result};

use crate::ledger::History;
use crate::restore::Contents;

/// The part of a tensor that one rank stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The rank that saved it.
    pub rank: u32,
    /// Where it lies in the global tensor.
    pub extent: NdBox,
    /// Its bytes.
    pub bytes: u64,
    /// The shard index that names it, relative to the run's folder.
    pub index: String,
    /// The packs that hold it, in the order of their objects.
    pub packs: Vec<PackPart>,
}

/// The chunks of a part that lie in one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackPart {
    /// The object, relative to the run's folder.
    pub object: String,
    /// How many chunks.
    pub chunks: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
    /// False if the bytes were as an earlier save had written them, and so were reused.
    pub is_new: bool,
    /// The save that wrote them, and its rank, as the object's name says.
    pub written_by: Option<(SaveKey, u32)>,
    /// The checkpoint that this save became.
    pub checkpoint: Option<Hash>,
}

/// The parts of `tensor`, by rank.
pub(super) fn parts(
    contents: &Contents,
    history: &History,
    (component, name): &(String, String),
) -> Result<Vec<Part>> {
    let Some(info) = contents.data_of(component, name) else { return Ok(Vec::new()) };
    let too_large = || Error::corrupt(format!("the size of tensor {name:?} overflows"));
    let mut parts = Vec::new();
    for at in &info.shards {
        let (index, shard) = contents.shard(*at);
        let elements = shard.extent.elements();
        let bytes = elements.and_then(|count| info.dtype.bytes_of(count)).ok_or_else(too_large)?;
        let full = u64::from(index.chunk_bytes.max(1));
        let rows = match bytes {
            0 => 0,
            _ => (u64::from(shard.chunk_offset) + bytes).div_ceil(full),
        };
        let first = shard.first_chunk as usize;
        let chunks = index.chunks.iter().skip(first).take(rows as usize);
        let mut packs: BTreeMap<u32, PackPart> = BTreeMap::new();
        for chunk in chunks {
            let Some(pack) = index.packs.get(chunk.pack as usize) else { continue };
            let part = packs.entry(chunk.pack).or_insert_with(|| {
                let written_by = key::parse_pack_in_run(&pack.object);
                let committed = |(save, _): (SaveKey, u32)| {
                    history.committed(save.attempt, save.step, save.generation).map(|c| c.id)
                };
                PackPart {
                    object: pack.object.clone(),
                    chunks: 0,
                    stored_bytes: 0,
                    is_new: pack.is_new,
                    written_by,
                    checkpoint: written_by.and_then(committed),
                }
            });
            part.chunks += 1;
            part.stored_bytes += u64::from(chunk.stored_bytes);
        }
        parts.push(Part {
            rank: index.rank,
            extent: shard.extent.clone(),
            bytes,
            index: key::index_in_run(&index.save, index.rank),
            packs: packs.into_values().collect(),
        });
    }
    Ok(parts)
}
