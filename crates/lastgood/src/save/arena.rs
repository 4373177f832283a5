//! The memory that state is captured into: kept and reused, so that a save pays for copying and not
//! for first touching fresh memory, which is several times slower.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use bytes::Bytes;
use lastgood_format::{Error, ErrorKind, Result};
use lastgood_store::Mapped;

use super::plan::{Copy, Plan};
use crate::state::Capture;
use crate::tier::Slot;

/// Below this many bytes a segment has no mapping of its own.
const SMALL: usize = 64 << 10;

/// A filled segment that pipeline and store share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment(Arc<Block>);

impl Segment {
    /// A segment that was filled by a process that is gone.
    pub(crate) fn shared(map: Mapped) -> Self {
        Self(Arc::new(Block::Shared(map)))
    }

    /// The bytes of the segment; only what the plan filled has a meaning.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The segment as a part of a payload, without a copy.
    pub(crate) fn share(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }
}

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// The memory of a segment.
#[derive(Debug)]
pub(crate) enum Block {
    /// Of this process; what is small is not worth a mapping.
    Small(Vec<u8>),
    /// Of this process.
    Own(Mapped),
    /// Of the memory tier.
    Shared(Mapped),
}

impl Default for Block {
    fn default() -> Self {
        Self::Small(Vec::new())
    }
}

impl Block {
    /// Memory of this process of which every page was touched.
    ///
    /// # Errors
    /// `Overloaded` if there is none.
    fn own(bytes: usize) -> Result<Self> {
        match bytes {
            0..SMALL => Ok(Self::Small(vec![0; bytes])),
            _ => Mapped::zeroed(bytes).map(Self::Own),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Small(memory) => memory,
            Self::Own(map) | Self::Shared(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Small(memory) => memory,
            Self::Own(map) | Self::Shared(map) => map,
        }
    }
}

/// One segment of an arena.
#[derive(Debug, Default)]
struct Place {
    block: Arc<Block>,
    /// The block that this segment had in the memory tier. A store client may hold it beyond its save: as long as
    /// somebody does, that memory is neither mapped again nor given back, since it must not change below him.
    lent: Weak<Block>,
}

impl Place {
    fn len(&self) -> usize {
        self.block.bytes().len()
    }

    fn is_shared(&self) -> bool {
        matches!(*self.block, Block::Shared(_))
    }

    /// True if nobody holds what this segment had in the memory tier.
    fn is_free(&self) -> bool {
        self.lent.strong_count() == 0
    }

    /// Makes room for `bytes` bytes of segment `i`: in the slot if it has room for them and nobody holds what was there.
    fn make_room(&mut self, slot: Option<&Slot>, i: usize, bytes: usize) -> Result<()> {
        let shared = match slot.filter(|_| self.is_free()) {
            Some(slot) => slot.segment(i, bytes)?,
            None => None,
        };
        match shared {
            Some(map) => {
                self.block = Arc::new(Block::Shared(map));
                self.lent = Arc::downgrade(&self.block);
            }
            None => self.block = Arc::new(Block::own(bytes)?),
        }
        Ok(())
    }

    /// The memory to write to, unless somebody still holds what was captured there before.
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        if self.is_shared() {
            // It would count as somebody.
            self.lent = Weak::new();
        }
        Arc::get_mut(&mut self.block).map(Block::bytes_mut)
    }

    /// Leaves the block to whoever holds it, and goes on with another.
    fn leave(&mut self, block: Block) {
        if self.is_shared() {
            self.lent = Arc::downgrade(&self.block);
        }
        self.block = Arc::new(block);
    }

    /// What was written, for whoever reads it.
    fn share(&mut self) -> Segment {
        if self.is_shared() {
            self.lent = Arc::downgrade(&self.block);
        }
        Segment(Arc::clone(&self.block))
    }
}

/// A reusable set of segments with a bound on their bytes.
#[derive(Debug)]
pub(crate) struct Arena {
    /// More than are used, if there were more once.
    places: Vec<Place>,
    used: usize,
    bytes_max: u64,
    /// Where it lies in the memory tier.
    slot: Option<Slot>,
}

impl Arena {
    /// An empty arena that never holds more than `bytes_max`, in the memory tier if there is a `slot` for it.
    pub(crate) fn new(bytes_max: u64, slot: Option<Slot>) -> Self {
        Self { places: Vec::new(), used: 0, bytes_max, slot }
    }

    /// Gives the memory back, and the slot for another arena, unless somebody still holds a part of it.
    pub(crate) fn retire(mut self) -> Option<Slot> {
        let slot = self.slot.take()?;
        self.places.iter_mut().for_each(|place| place.block = Arc::default());
        if !self.places.iter().all(Place::is_free) {
            return None;
        }
        slot.begin().and_then(|()| slot.release_from(0)).ok().map(|()| slot)
    }

    /// The slot, if all that was captured last lies in it.
    pub(crate) fn whole_slot(&self) -> Option<&Slot> {
        self.slot.as_ref().filter(|_| self.places[..self.used].iter().all(Place::is_shared))
    }

    /// Makes room for `plan` and touches it, so that the first capture is as fast as every other. What was captured
    /// before is gone.
    ///
    /// # Errors
    /// `Overloaded` if the plan needs more than the bound, or there is no memory; `Unavailable` if the memory tier
    /// cannot be written.
    pub(crate) fn reserve(&mut self, plan: &Plan) -> Result<()> {
        let needed = plan.arena_bytes();
        if needed > self.bytes_max {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("the state has {needed} bytes, the arena may have {}", self.bytes_max),
            )
            .with_remedy("raise the arena's budget, or save less state on each rank"));
        }
        let count = plan.segments.len();
        if self.places.len() < count {
            self.places.resize_with(count, Place::default);
        }
        self.used = count;
        let (places, beyond) = self.places.split_at_mut(count);
        beyond.iter_mut().for_each(|place| place.block = Arc::default());
        if let Some(slot) = &self.slot {
            slot.begin()?;
            if !beyond.is_empty() && beyond.iter().all(Place::is_free) {
                slot.release_from(count)?;
            }
        }
        let kept = |(place, used): (&Place, &usize)| place.len().max(*used) as u64;
        let total: u64 = places.iter().zip(&plan.segments).map(kept).sum();
        // What a larger segment holds beyond its use counts as well: it is kept only if there is room.
        let is_kept = |place: &Place, used: usize| {
            place.len() == used || (place.len() > used && total <= self.bytes_max)
        };
        // First all that goes, then what comes in its place, so that both are never there at once.
        for (place, used) in places.iter_mut().zip(&plan.segments) {
            let comes_back = self.slot.is_some() && !place.is_shared() && place.is_free();
            if comes_back || !is_kept(place, *used) {
                place.block = Arc::default();
            }
        }
        for (i, (place, used)) in places.iter_mut().zip(&plan.segments).enumerate() {
            if place.len() < *used {
                place.make_room(self.slot.as_ref(), i, *used)?;
            }
        }
        Ok(())
    }

    /// Copies `capture` in segment by segment and hands each on as soon as it is full.
    ///
    /// # Errors
    /// As [`Arena::reserve`]; `Closed` if nobody takes the segments; those of a
    /// [`Source`](crate::state::Source).
    pub(crate) fn fill(
        &mut self,
        capture: &Capture<'_>,
        plan: &Plan,
        mut full: impl FnMut(usize, Segment) -> Result<()>,
    ) -> Result<()> {
        self.reserve(plan)?;
        for (i, copies) in plan.copies.iter().enumerate() {
            let place = &mut self.places[i];
            match place.bytes_mut() {
                Some(memory) => copy_all(memory, capture, copies)?,
                // A store client still holds the memory of the last save: leave it to it.
                None => {
                    let mut fresh = Block::own(plan.segments[i])?;
                    copy_all(fresh.bytes_mut(), capture, copies)?;
                    place.leave(fresh);
                }
            }
            full(i, place.share())?;
        }
        Ok(())
    }

    /// The segments as they were last filled.
    pub(crate) fn filled(&self) -> Vec<Segment> {
        let places = self.places[..self.used].iter();
        places.map(|place| Segment(Arc::clone(&place.block))).collect()
    }
}

fn copy_all(segment: &mut [u8], capture: &Capture<'_>, copies: &[Copy]) -> Result<()> {
    for copy in copies {
        let place = copy.offset..copy.offset + copy.source.len();
        let data = &capture.pieces[copy.piece].data;
        data.copy(copy.source.clone(), &mut segment[place])?;
    }
    Ok(())
}
