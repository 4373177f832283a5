//! The manifest of a checkpoint: every shard index by hash. Its own hash is the checkpoint id.

use serde::{Deserialize, Serialize};

use crate::descriptor::check_size;
use crate::index::ShardIndex;
use crate::key::{self, SaveKey};
use crate::members::Members;
use crate::{Error, FORMAT_VERSION, Hash, Result, RunName};

/// A committed manifest is a checkpoint. A pure function of the shard indexes, so that every rank
/// builds the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format version.
    pub format: u32,
    /// Always `checkpoint`.
    pub kind: String,
    /// The run.
    pub run: RunName,
    /// The attempt that saved it.
    pub attempt: u64,
    /// The training step.
    pub step: u64,
    /// How often the attempt had saved this step before.
    pub generation: u32,
    /// The number of ranks, and of entries in `indexes`.
    pub world_size: u32,
    /// The checkpoint that the state was restored from or saved after, as rank 0 knew it.
    pub parent: Option<Hash>,
    /// The checkpoints whose packs this one reuses, sorted.
    pub reuses: Vec<Hash>,
    /// The number of distinct tensors.
    pub tensors: u64,
    /// The bytes of all shards.
    pub bytes: u64,
    /// The bytes that were newly written for it, in packs.
    pub new_bytes: u64,
    /// One entry a rank, in rank order.
    pub indexes: Vec<IndexRef>,
}

/// A shard index that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexRef {
    /// The rank.
    pub rank: u32,
    /// The object, relative to the run's folder.
    pub object: String,
    /// The stored size.
    pub bytes: u64,
    /// The hash of the stored bytes.
    pub blake3: Hash,
}

impl Manifest {
    /// The largest stored manifest: about 200,000 ranks.
    pub const BYTES_MAX: u64 = 64 << 20;

    /// The save that the manifest commits.
    #[must_use]
    pub fn save(&self) -> SaveKey {
        SaveKey { attempt: self.attempt, step: self.step, generation: self.generation }
    }

    /// The manifest of a whole set of shard indexes, each with its stored bytes' size and hash.
    ///
    /// # Errors
    /// `Corrupt` if the set is not exactly ranks `0..world_size` of one save, or if ranks disagree on
    /// the dtype or the shape of a tensor.
    pub fn build(indexes: &[(ShardIndex, u64, Hash)]) -> Result<Self> {
        let Some((first, ..)) = indexes.first() else {
            return Err(Error::corrupt("a manifest needs at least one shard index"));
        };
        let save = first.save;
        let tensors = crate::index::check_agreement(indexes.iter().map(|(index, ..)| index))?;
        let mut reuses: Vec<Hash> = Vec::new();
        let mut refs = Vec::with_capacity(indexes.len());
        let (mut bytes, mut new_bytes) = (0u64, 0u64);
        let overflow = || Error::corrupt("the sizes of all ranks together overflow");
        for (index, stored, hash) in indexes {
            reuses.extend(&index.reuses);
            bytes = bytes.checked_add(index.shard_bytes()?).ok_or_else(overflow)?;
            new_bytes = new_bytes.checked_add(index.new_pack_bytes()).ok_or_else(overflow)?;
            refs.push(IndexRef {
                rank: index.rank,
                object: key::index_in_run(&save, index.rank),
                bytes: *stored,
                blake3: *hash,
            });
        }
        reuses.sort_unstable();
        reuses.dedup();
        Ok(Self {
            format: FORMAT_VERSION,
            kind: "checkpoint".into(),
            run: first.run.clone(),
            attempt: save.attempt,
            step: save.step,
            generation: save.generation,
            world_size: first.world_size,
            parent: first.parent,
            reuses,
            tensors,
            bytes,
            new_bytes,
            indexes: refs,
        })
    }

    /// The stored bytes and the checkpoint id, which is their hash.
    ///
    /// # Errors
    /// `Internal` if it cannot be written as JSON; `Invalid` if it is larger than
    /// [`Self::BYTES_MAX`].
    pub fn encode(&self) -> Result<(Vec<u8>, Hash)> {
        let mut bytes = serde_json::to_vec(self)
            .map_err(|e| Error::internal(format!("cannot write a manifest as JSON: {e}")))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > Self::BYTES_MAX {
            return Err(Error::invalid(format!(
                "a manifest has at most {} bytes, this one {}",
                Self::BYTES_MAX,
                bytes.len()
            )));
        }
        let id = Hash::of(&bytes);
        Ok((bytes, id))
    }

    /// Reads the stored bytes of checkpoint `id`.
    ///
    /// # Errors
    /// `Corrupt` if the bytes do not hash to `id` or contradict themselves; `Incompatible` if the
    /// version is newer.
    pub fn decode(stored: &[u8], id: &Hash) -> Result<Self> {
        check_size("manifest", stored, Self::BYTES_MAX)?;
        let found = Hash::of(stored);
        if found != *id {
            return Err(Error::corrupt(format!("manifest: expected hash {id}, found {found}")));
        }
        let unclear = |e| Error::corrupt(format!("manifest {id} is not understood: {e}"));
        serde_json::from_slice::<Members>(stored).map_err(unclear)?.check_version()?;
        let manifest: Self = serde_json::from_slice(stored).map_err(unclear)?;
        manifest.check().map_err(|error| error.context(format!("manifest {id}")))?;
        Ok(manifest)
    }

    /// Checks every rule that a manifest can break by itself.
    fn check(&self) -> Result<()> {
        if self.kind != "checkpoint" {
            return Err(Error::corrupt(format!(
                "expected kind \"checkpoint\", found {:?}",
                self.kind
            )));
        }
        let whole = self.world_size > 0
            && self.indexes.len() as u64 == u64::from(self.world_size)
            && self.indexes.iter().zip(0..).all(|(index, rank)| index.rank == rank);
        if !whole {
            return Err(Error::corrupt(format!(
                "it does not name one shard index for each of its {} ranks, in order",
                self.world_size
            )));
        }
        if !self.reuses.is_sorted_by(|a, b| a < b) {
            return Err(Error::corrupt("the reused checkpoints are not in order"));
        }
        let save = self.save();
        let misfiled = |index: &&IndexRef| {
            index.object != key::index_in_run(&save, index.rank)
                || index.bytes > ShardIndex::BYTES_MAX
        };
        match self.indexes.iter().find(misfiled) {
            Some(index) => Err(Error::corrupt(format!(
                "rank {}: expected {:?} of at most {} bytes, found {:?} of {}",
                index.rank,
                key::index_in_run(&save, index.rank),
                ShardIndex::BYTES_MAX,
                index.object,
                index.bytes
            ))),
            None => Ok(()),
        }
    }
}
