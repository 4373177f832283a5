//! What each component of a checkpoint takes in the store, and in which way.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_format::chunk::Codec;
use lastgood_format::index::ShardIndex;

use super::contents::Contents;

/// In which way chunks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// With the codec, by the save of this checkpoint.
    Written(Codec),
    /// Another chunk of this checkpoint has the same bytes, and is stored.
    Again,
    /// An earlier save has stored the same bytes.
    Before(Codec),
}

/// The chunks of a component that are stored in one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What they take in the store, or took when they were written. What deltas are made of is not counted.
    pub stored_bytes: u64,
    /// The longest way from one of them over those that it is made of; 0 if none is a delta.
    pub depth: u32,
}

/// What each component takes, by its name.
pub type Costs = BTreeMap<String, BTreeMap<Way, Cost>>;

/// What the chunks of `contents` take.
pub fn costs(contents: &Contents) -> Costs {
    let mut costs = Costs::new();
    for index in contents.indexes() {
        let components = components(index);
        let depths = index.depths();
        let mut seen = BTreeSet::new();
        for (i, (chunk, component)) in index.chunks.iter().zip(components).enumerate() {
            let Some(component) = component else { continue };
            let is_new = index.packs.get(chunk.pack as usize).is_some_and(|pack| pack.is_new);
            let is_again = !seen.insert((chunk.pack, chunk.offset, chunk.hash));
            let way = match (is_new, is_again) {
                (_, true) => Way::Again,
                (true, false) => Way::Written(chunk.codec),
                (false, false) => Way::Before(chunk.codec),
            };
            let of = costs.entry(component.to_owned()).or_default().entry(way).or_default();
            of.chunks += 1;
            of.bytes += u64::from(chunk.decoded_bytes);
            if way != Way::Again {
                of.stored_bytes += u64::from(chunk.stored_bytes);
            }
            of.depth = of.depth.max(depths.get(&(i as u32)).copied().unwrap_or(0));
        }
    }
    costs
}

/// The component of each row: no chunk holds parts of two.
fn components(index: &ShardIndex) -> Vec<Option<&str>> {
    let mut components = vec![None; index.chunks.len()];
    let mut owners: Vec<(u32, &str)> = Vec::new();
    for tensor in &index.tensors {
        let Some(component) = index.components.get(tensor.component as usize) else { continue };
        for shard in &index.shards[tensor.shards.start as usize..tensor.shards.end as usize] {
            if !shard.extent.sizes.contains(&0) {
                owners.push((shard.first_chunk, &component.name));
            }
        }
    }
    owners.sort_unstable();
    // A large shard owns the rows up to where the next one begins.
    let mut owner = owners.iter().peekable();
    let mut current = None;
    for (row, component) in (0u32..).zip(&mut components) {
        while let Some((_, name)) = owner.next_if(|(first, _)| *first <= row) {
            current = Some(*name);
        }
        *component = current;
    }
    components
}
