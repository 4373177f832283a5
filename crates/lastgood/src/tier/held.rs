//! What the memory holds, for whoever reads it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use lastgood_format::Hash;
use lastgood_format::index::ShardIndex;
use lastgood_store::{Mapped, SharedMemory};

use super::slot::{Page, SLOT_BYTES, SLOTS_MAX, State};

/// The chunks that the memory holds, by hash. Each is verified by whoever reads it.
#[derive(Debug, Default)]
pub(crate) struct Held {
    slots: Vec<HeldSlot>,
    chunks: BTreeMap<Hash, Place>,
}

#[derive(Debug)]
struct HeldSlot {
    number: u64,
    map: Mapped,
}

/// Where a chunk lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Which of the slots that hold something.
    slot: usize,
    /// From the beginning of the slot.
    pub(super) range: Range<usize>,
}

impl Place {
    /// True if `next` follows in memory.
    pub(super) fn is_followed_by(&self, next: &Self) -> bool {
        self.slot == next.slot && self.range.end == next.range.start
    }
}

impl Held {
    /// What is in `memory` now; whatever is not whole is left out.
    pub(super) fn new(memory: &Arc<SharedMemory>) -> Self {
        let mut held = Self::default();
        for number in 0..SLOTS_MAX {
            if let Some((State::Hashed, table, end)) = read(memory, number)
                && let Ok(map) = memory.map(number * SLOT_BYTES..number * SLOT_BYTES + end)
            {
                held.add(HeldSlot { number, map }, &table);
            }
        }
        held
    }

    fn add(&mut self, slot: HeldSlot, table: &ShardIndex) {
        let number = self.slots.len();
        for chunk in &table.chunks {
            let Ok(begin) = usize::try_from(chunk.offset) else { continue };
            let range = begin..begin.saturating_add(chunk.decoded_bytes as usize);
            if range.end <= slot.map.len() {
                self.chunks.insert(chunk.hash, Place { slot: number, range });
            }
        }
        self.slots.push(slot);
    }

    /// Where the chunk of this hash and size may lie.
    pub(super) fn place(&self, hash: &Hash, bytes: u32) -> Option<&Place> {
        self.chunks.get(hash).filter(|place| place.range.len() == bytes as usize)
    }

    /// What may be the chunk of this hash and size, and is to be verified.
    pub(crate) fn find(&self, hash: &Hash, bytes: u32) -> Option<&[u8]> {
        self.place(hash, bytes).and_then(|place| self.bytes(place))
    }

    /// The bytes of a place.
    pub(super) fn bytes(&self, place: &Place) -> Option<&[u8]> {
        self.slots.get(place.slot)?.map.get(place.range.clone())
    }

    /// The number of the slot of a place.
    pub(super) fn number(&self, place: &Place) -> Option<u64> {
        self.slots.get(place.slot).map(|slot| slot.number)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// The state of slot `number`, its table, and where that begins; `None` if it has none that can be understood.
pub(super) fn read(memory: &SharedMemory, number: u64) -> Option<(State, ShardIndex, u64)> {
    let Page { state, table } = Page::read(memory, number)?;
    let end = number.checked_mul(SLOT_BYTES)?.checked_add(table.end)?;
    if state == State::Filling || end > memory.bytes().ok()? {
        return None;
    }
    // Not longer than the memory is, which is there already.
    let mut encoded = vec![0; usize::try_from(table.end - table.start).ok()?];
    memory.read_at(number * SLOT_BYTES + table.start, &mut encoded).ok()?;
    Some((state, ShardIndex::decode(&encoded).ok()?, table.start))
}
