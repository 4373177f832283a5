//! What a process has left in its memory, for whoever completes its save.

use std::sync::Arc;

use lastgood_format::index::ShardIndex;
use lastgood_format::{Error, Result};
use lastgood_store::{Mapped, SharedMemory};

use super::held;
use super::slot::{HEAD_BYTES, SLOT_BYTES, SLOTS_MAX, STRIDE, State};

/// A save that is complete in the memory of its rank.
#[derive(Debug)]
pub(crate) struct Left {
    memory: Arc<SharedMemory>,
    slot: u64,
    pub(crate) state: State,
    /// The save as a shard index that says which chunk lies where.
    pub(crate) table: ShardIndex,
    /// For each chunk its segment, and where in it.
    pub(crate) places: Vec<(usize, usize)>,
}

impl Left {
    /// The saves that are complete in `memory`.
    pub(crate) fn all(memory: &Arc<SharedMemory>) -> Vec<Self> {
        let slots = (0..SLOTS_MAX).filter_map(|slot| {
            let (state, table, _) = held::read(memory, slot)?;
            let place = |offset: u64| {
                let offset = offset.checked_sub(HEAD_BYTES)?;
                Some(((offset / STRIDE) as usize, (offset % STRIDE) as usize))
            };
            let places = table.chunks.iter().map(|chunk| place(chunk.offset));
            let places = places.collect::<Option<Vec<_>>>()?;
            Some(Self { memory: Arc::clone(memory), slot, state, table, places })
        });
        slots.collect()
    }

    /// The first `bytes` bytes of segment `i`.
    ///
    /// # Errors
    /// `Corrupt` if the memory does not have them; `Overloaded` if there is no room for them.
    pub(crate) fn segment(&self, i: usize, bytes: usize) -> Result<Mapped> {
        let begin = self.slot * SLOT_BYTES + HEAD_BYTES + i as u64 * STRIDE;
        let range = begin..begin + bytes as u64;
        if range.end > self.memory.bytes()? {
            return Err(Error::corrupt(format!("the shared memory has no segment {i}")));
        }
        self.memory.map(range)
    }
}
