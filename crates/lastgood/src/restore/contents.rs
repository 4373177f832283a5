//! What a checkpoint holds: its manifest and all its shard indexes, verified, as one table of tensors.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use futures_util::future::try_join_all;
use lastgood_format::index::{Component, Shard, ShardIndex, Tensor, check_agreement};
use lastgood_format::journal::{CUT, ENVIRONMENT};
use lastgood_format::layout::{NdBox, check_cover};
use lastgood_format::manifest::{IndexRef, Manifest};
use lastgood_format::{Dtype, Error, ErrorKind, Hash, Result, key};

use super::kept::Kept;
use crate::ledger::Ledger;
use crate::objects;
use crate::save::ALIKE;

/// Shard indexes of so many ranks are asked for at a time: the answer of a remote store takes as long for one as for
/// many. Up to 30 are polled together, whoever is woken; a simulation wakes tasks and not what they wait for.
const INDEXES_AT_A_TIME: usize = 16;

/// The tables of one checkpoint.
#[derive(Debug)]
pub struct Contents {
    id: Hash,
    manifest: Manifest,
    indexes: Vec<ShardIndex>,
    tensors: BTreeMap<(String, String), TensorInfo>,
    folder: String,
    kept: Option<Kept>,
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The element type.
    pub dtype: Dtype,
    /// The global shape, row-major.
    pub shape: Vec<u64>,
    /// The tensor of the same component whose bytes these are, if they are tied.
    pub tied_to: Option<String>,
    /// The shards: which index holds each, and its place in that index.
    pub(crate) shards: Vec<(usize, usize)>,
}

impl Contents {
    /// Reads the tables of checkpoint `id`.
    ///
    /// # Errors
    /// `Corrupt` if an object is damaged or missing; `Unavailable`, `Denied`, `Incompatible`.
    pub async fn load(ledger: &Ledger, id: &Hash) -> Result<Self> {
        let object = key::manifest(ledger.run(), id);
        let manifest = read_manifest(ledger, &object, id).await?;
        if manifest.run != *ledger.run() {
            return Err(Error::corrupt(format!(
                "expected a manifest of run {}, found one of {}",
                ledger.run(),
                manifest.run
            ))
            .with_object(object));
        }
        let mut indexes: Vec<ShardIndex> = Vec::with_capacity(manifest.indexes.len());
        for entries in manifest.indexes.chunks(INDEXES_AT_A_TIME) {
            let reads = entries.iter().map(|entry| read_index(ledger, &manifest, entry));
            indexes.extend(try_join_all(reads).await?);
        }
        check_agreement(&indexes)?;
        let tensors = collect(&indexes);
        let folder = key::run_folder(ledger.run());
        Ok(Self { id: *id, manifest, indexes, tensors, folder, kept: None })
    }

    /// The checkpoint id.
    #[must_use]
    pub fn id(&self) -> Hash {
        self.id
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The shard indexes, in rank order.
    #[must_use]
    pub fn indexes(&self) -> &[ShardIndex] {
        &self.indexes
    }

    /// The components of all ranks, by name.
    #[must_use]
    pub fn components(&self) -> BTreeMap<&str, &Component> {
        let all = self.indexes.iter().flat_map(|index| &index.components);
        all.map(|component| (component.name.as_str(), component)).collect()
    }

    /// Every tensor and value by component and name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<(String, String), TensorInfo> {
        &self.tensors
    }

    /// The text that travels with the checkpoint; of equal keys the lowest rank's value. What ranks tell each
    /// other is left out.
    #[must_use]
    pub fn metadata(&self) -> BTreeMap<&str, &str> {
        let all = self.indexes.iter().rev().flat_map(|index| &index.metadata);
        all.map(|(key, value)| (key.as_str(), value.as_str()))
            .filter(|(key, _)| ![ALIKE, CUT, ENVIRONMENT].contains(key))
            .collect()
    }

    /// The tensors of which no rank saved some part: whoever asks for the whole of one is refused.
    #[must_use]
    pub fn incomplete(&self) -> Vec<(&str, &str)> {
        let has_gap = |info: &TensorInfo| {
            let whole = NdBox { offsets: vec![0; info.shape.len()], sizes: info.shape.clone() };
            let shards = info.shards.iter().map(|at| self.shard(*at).1.extent.clone());
            info.tied_to.is_none() && check_cover(&whole, &shards.collect::<Vec<_>>()).is_err()
        };
        let found = self.tensors.iter().filter(|(_, info)| has_gap(info));
        found.map(|((component, name), _)| (component.as_str(), name.as_str())).collect()
    }

    /// The decoded bytes of all ranks.
    pub(crate) fn bytes(&self) -> u64 {
        let chunks = self.indexes.iter().flat_map(|index| &index.chunks);
        chunks.map(|chunk| u64::from(chunk.decoded_bytes)).sum()
    }

    /// For one restore, which looks at values first and reads again what it has read for them. Whoever keeps the tables
    /// for longer sees what is in the store each time.
    pub(crate) fn for_one_restore(self) -> Self {
        Self { kept: Some(Kept::default()), ..self }
    }

    /// What was read of its chunks before.
    pub(super) fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// The run's folder in the store.
    pub(crate) fn folder(&self) -> &str {
        &self.folder
    }

    /// The tensor that holds the bytes of `component`/`name`.
    pub(crate) fn data_of(&self, component: &str, name: &str) -> Option<&TensorInfo> {
        let info = self.tensors.get(&(component.to_owned(), name.to_owned()))?;
        match &info.tied_to {
            Some(canonical) => self.tensors.get(&(component.to_owned(), canonical.clone())),
            None => Some(info),
        }
    }

    pub(crate) fn shard(&self, at: (usize, usize)) -> (&ShardIndex, &Shard) {
        let index = &self.indexes[at.0];
        (index, &index.shards[at.1])
    }
}

async fn read_manifest(ledger: &Ledger, object: &str, id: &Hash) -> Result<Manifest> {
    let mut reads = 1;
    loop {
        let error = match ledger.store().get(object, Manifest::BYTES_MAX).await {
            Ok(stored) => match Manifest::decode(&stored, id) {
                Ok(manifest) => return Ok(manifest),
                Err(error) => error,
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Error::corrupt("the manifest of a committed checkpoint is missing")
            }
            Err(error) => error,
        };
        if error.kind() != ErrorKind::Corrupt || reads == 2 {
            return Err(error.with_object(object));
        }
        reads += 1;
    }
}

async fn read_index(ledger: &Ledger, manifest: &Manifest, entry: &IndexRef) -> Result<ShardIndex> {
    let object = key::in_run(ledger.run(), &entry.object)?;
    if entry.bytes > ShardIndex::BYTES_MAX {
        return Err(Error::corrupt("a shard index is too large").with_object(object));
    }
    let store = ledger.store().as_ref();
    let stored = objects::get_exact(store, &object, entry.bytes, &entry.blake3).await?;
    let index = ShardIndex::decode(&stored).map_err(|e| e.with_object(object.clone()))?;
    if index.run != manifest.run || index.save != manifest.save() || index.rank != entry.rank {
        return Err(Error::corrupt("a shard index of another save").with_object(object));
    }
    Ok(index)
}

fn collect(indexes: &[ShardIndex]) -> BTreeMap<(String, String), TensorInfo> {
    let tensors = |(i, index)| of_index(i, index);
    let mut indexes = indexes.iter().enumerate();
    // What is in order already becomes a map without a search for each.
    let mut all: BTreeMap<_, _> = indexes.next().into_iter().flat_map(tensors).collect();
    for (name, more) in indexes.flat_map(tensors) {
        match all.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert(more)),
            Entry::Occupied(entry) => entry.into_mut().shards.extend(more.shards),
        }
    }
    all
}

fn of_index(i: usize, index: &ShardIndex) -> impl Iterator<Item = ((String, String), TensorInfo)> {
    index.tensors.iter().map(move |tensor| {
        let component = index.components[tensor.component as usize].name.clone();
        let shards = tensor.shards.clone().map(|shard| (i, shard as usize)).collect();
        ((component, tensor.name.clone()), TensorInfo { shards, ..info(index, tensor) })
    })
}

fn info(index: &ShardIndex, tensor: &Tensor) -> TensorInfo {
    TensorInfo {
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        tied_to: tensor.tied_to.map(|other| index.tensors[other as usize].name.clone()),
        shards: Vec::new(),
    }
}
