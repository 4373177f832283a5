//! What the memory tier is told of a save while it is written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use lastgood_format::chunk::Codec;
use lastgood_format::index::{Chunk, ShardIndex};
use lastgood_format::key::SaveKey;
use lastgood_format::{Error, Hash, Result, RunName};

use super::plan::Plan;
use super::shared::Testimony;
use crate::journal::{Journal, rank};
use crate::state::World;
use crate::tier::{self, Slot, State};

/// A save that is being captured.
#[derive(Debug)]
pub(super) struct Keeping {
    pub(super) plan: Arc<Plan>,
    pub(super) run: RunName,
    pub(super) save: SaveKey,
    pub(super) world: World,
    pub(super) chunk_bytes: u32,
    pub(super) parent: Option<Hash>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) journal: Option<Journal>,
}

/// What came of it: the testimony, and where the memory tier has the save.
pub(super) type Kept = (BTreeMap<String, String>, Option<Slot>);

impl Keeping {
    /// Waits until everything is captured, and says so in the slot that it lies in.
    ///
    /// # Errors
    /// `Internal` if the capture failed, which its handle tells.
    pub(super) fn captured(self, witness: &Receiver<Testimony>) -> Result<Kept> {
        let testimony = witness.recv().map_err(|_| Error::internal("the capture failed"))?;
        let Testimony { metadata, slot } = testimony;
        let slot = slot.filter(|slot| match self.tell(slot, &metadata) {
            Ok(()) => true,
            Err(error) => {
                self.journal.iter().for_each(|journal| journal.tell(error.clone()));
                false
            }
        });
        Ok((metadata, slot))
    }

    fn tell(&self, slot: &Slot, testimony: &BTreeMap<String, String>) -> Result<()> {
        let mut metadata = self.metadata.clone();
        metadata.extend(testimony.clone());
        if let Some(journal) = &self.journal {
            // Whoever completes the save cannot do it for this process.
            rank::seal(journal, &metadata)?;
        }
        let Self { plan, run, save, world, chunk_bytes, .. } = self;
        let unhashed = plan.rows.iter().map(|row| Chunk {
            hash: Hash::of(b""),
            pack: 0,
            offset: 0,
            stored_bytes: 0,
            // A row is at most as long as a chunk may be.
            decoded_bytes: row.bytes as u32,
            codec: Codec::Raw,
        });
        let index = ShardIndex {
            run: run.clone(),
            save: *save,
            rank: world.rank,
            world_size: world.size,
            parent: self.parent,
            reuses: Vec::new(),
            chunk_bytes: *chunk_bytes,
            components: plan.components.clone(),
            tensors: plan.tensors.clone(),
            shards: plan.shards.clone(),
            chunks: unhashed.collect(),
            bases: Vec::new(),
            operands: BTreeMap::new(),
            packs: Vec::new(),
            metadata,
        };
        slot.tell(State::Captured, &tier::table(&index, plan.places()))
    }
}

/// Says in `slot` what the chunks of the save hash to.
pub(super) fn hashed(slot: &Slot, plan: &Plan, index: &ShardIndex) -> Result<()> {
    slot.tell(State::Hashed, &tier::table(index, plan.places()))
}
