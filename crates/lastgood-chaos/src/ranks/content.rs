//! Tiny checkpoints whose every byte is a function of what saved them.

use bytes::Bytes;
use lastgood::restore::Contents;
use lastgood_format::chunk::{self, CHUNK_BYTES_MIN, Codec};
use lastgood_format::index::{Chunk, Component, Durability, Pack, Shard, ShardIndex, Tensor};
use lastgood_format::key::{self, SaveKey};
use lastgood_format::layout::NdBox;
use lastgood_format::pack::{self, HEADER_BYTES, PackedChunk};
use lastgood_format::{Dtype, Error, ErrorKind, Hash, Result, RunName};
use lastgood_store::Store;

use crate::random::mix;

/// The bytes of one rank's shard of each of the two tensors.
const SHARD_BYTES: u32 = 16;

/// The chunk that never changes, where a checkpoint keeps it.
#[derive(Clone, Debug)]
pub struct Base {
    /// The checkpoint.
    pub id: Hash,
    pack: Pack,
    chunk: Chunk,
}

/// One rank's part of a save, as it is stored.
#[derive(Clone, Debug)]
pub struct Part {
    /// The object of the pack, relative to the run's folder.
    pub pack: String,
    /// Its bytes.
    pub stored: Bytes,
    /// What names it.
    pub index: ShardIndex,
}

/// The bytes of the tensor that changes: different for every attempt, step and rank.
fn hot(save: &SaveKey, rank: u32) -> [u8; SHARD_BYTES as usize] {
    let seed = mix((save.attempt << 40) ^ (save.step << 8) ^ (u64::from(rank) + 1));
    let mut bytes = [1; SHARD_BYTES as usize];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes
}

/// The bytes of the tensor that never changes, equal for all ranks.
fn frozen() -> [u8; SHARD_BYTES as usize] {
    [7; SHARD_BYTES as usize]
}

/// One rank's part of `save`, which takes the unchanged chunk from `base` if there is one.
#[must_use]
pub fn part(
    run: &RunName,
    save: SaveKey,
    rank: u32,
    world_size: u32,
    base: Option<&Base>,
    parent: Option<Hash>,
) -> Part {
    let object = key::pack_in_run(&save, rank, 0);
    let number = u32::from(base.is_some());
    let row = |bytes: &[u8], offset| Chunk {
        hash: Hash::of(bytes),
        decoded_bytes: SHARD_BYTES,
        stored_bytes: SHARD_BYTES,
        codec: Codec::Raw,
        pack: number,
        offset,
    };
    let hot = hot(&save, rank);
    let mut stored = pack::header().to_vec();
    stored.extend_from_slice(&hot);
    let mut table = vec![row(&hot, HEADER_BYTES)];
    let mut packs = Vec::new();
    let still = match base {
        Some(base) => {
            packs.push(base.pack.clone());
            Chunk { pack: 0, ..base.chunk }
        }
        None => {
            let chunk = row(&frozen(), stored.len() as u64);
            stored.extend_from_slice(&frozen());
            table.push(chunk);
            chunk
        }
    };
    let packed: Vec<_> = table.iter().map(packed).collect();
    stored.extend_from_slice(&pack::footer(&packed));
    packs.push(Pack { object: object.clone(), bytes: stored.len() as u64, is_new: true });
    let index = ShardIndex {
        run: run.clone(),
        save,
        rank,
        world_size,
        parent,
        reuses: base.map(|base| base.id).into_iter().collect(),
        chunk_bytes: CHUNK_BYTES_MIN,
        components: vec![Component {
            name: "model".into(),
            owner: "chaos".into(),
            durability: Durability::Durable,
        }],
        tensors: vec![tensor("frozen", world_size, 0), tensor("hot", world_size, 1)],
        shards: vec![shard(rank, 0), shard(rank, 1)],
        chunks: vec![still, table[0]],
        bases: Vec::new(),
        operands: std::collections::BTreeMap::new(),
        packs,
        metadata: std::collections::BTreeMap::new(),
    };
    Part { pack: object, stored: stored.into(), index }
}

fn packed(chunk: &Chunk) -> PackedChunk {
    PackedChunk {
        hash: chunk.hash,
        offset: chunk.offset,
        stored_bytes: chunk.stored_bytes,
        decoded_bytes: chunk.decoded_bytes,
        codec: chunk.codec,
    }
}

fn tensor(name: &str, world_size: u32, shard: u32) -> Tensor {
    Tensor {
        component: 0,
        name: name.into(),
        dtype: Dtype::U8,
        shape: vec![u64::from(world_size * SHARD_BYTES)],
        tied_to: None,
        shards: shard..shard + 1,
    }
}

fn shard(rank: u32, first_chunk: u32) -> Shard {
    let extent =
        NdBox { offsets: vec![u64::from(rank * SHARD_BYTES)], sizes: vec![u64::from(SHARD_BYTES)] };
    Shard { extent, first_chunk, chunk_offset: 0 }
}

/// The unchanged chunk of a checkpoint, where `index` of it says.
#[must_use]
pub fn base_of(id: Hash, index: &ShardIndex) -> Option<Base> {
    let chunk = *index.chunks.first()?;
    let pack = index.packs.get(chunk.pack as usize)?;
    Some(Base { id, pack: Pack { is_new: false, ..pack.clone() }, chunk })
}

/// The objects that a checkpoint stands on.
///
/// # Errors
/// `Corrupt` if a name leaves the run's folder.
pub fn objects_of(contents: &Contents) -> Result<Vec<String>> {
    let run = &contents.manifest().run;
    let mut objects = vec![key::manifest(run, &contents.id())];
    for (entry, index) in contents.manifest().indexes.iter().zip(contents.indexes()) {
        objects.push(key::in_run(run, &entry.object)?);
        for pack in &index.packs {
            objects.push(key::in_run(run, &pack.object)?);
        }
    }
    objects.sort_unstable();
    objects.dedup();
    Ok(objects)
}

/// Reads every chunk of a checkpoint from its pack, and checks it against what was saved.
///
/// # Errors
/// `Corrupt` if a pack is missing, damaged or does not hold what the index says; `Diverged` if the
/// bytes are not those that were saved; `Unavailable`.
pub async fn verify(store: &dyn Store, contents: &Contents) -> Result<()> {
    for index in contents.indexes() {
        for (chunk, expected) in index.chunks.iter().zip([frozen(), hot(&index.save, index.rank)]) {
            let Some(pack) = index.packs.get(chunk.pack as usize) else {
                return Err(Error::corrupt("a chunk names no pack"));
            };
            let object = key::in_run(&index.run, &pack.object)?;
            let mut checked = check_chunk(store, &object, pack.bytes, chunk, &expected).await;
            if checked.as_ref().is_err_and(|error| error.kind() == ErrorKind::Corrupt) {
                // The flip may have been on the way.
                checked = check_chunk(store, &object, pack.bytes, chunk, &expected).await;
            }
            checked.map_err(|error| error.with_object(object))?;
        }
    }
    Ok(())
}

async fn check_chunk(
    store: &dyn Store,
    object: &str,
    bytes: u64,
    chunk: &Chunk,
    expected: &[u8],
) -> Result<()> {
    let stored = store.get(object, bytes).await?;
    let table = pack::parse(&stored)?;
    if !table.contains(&packed(chunk)) {
        return Err(Error::corrupt("the pack does not hold what the shard index says"));
    }
    let begin = chunk.offset as usize;
    let mut decoded = [0; SHARD_BYTES as usize];
    let range = begin..begin + chunk.stored_bytes as usize;
    chunk::decode_into(chunk.codec, &stored[range], &[], &mut decoded, &chunk.hash)?;
    if decoded != *expected {
        return Err(Error::new(ErrorKind::Diverged, "a chunk has the wrong bytes"));
    }
    Ok(())
}
