//! The memory that state is captured into: kept and reused, so that a save pays for copying and not
//! for first touching fresh memory, which is several times slower.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use lastgood_format::{Error, ErrorKind, Result};

use super::plan::{Copy, Plan};
use crate::state::Capture;

/// A filled segment that pipeline and store share.
#[derive(Clone, Debug)]
pub(crate) struct Segment(Arc<Vec<u8>>);

impl Segment {
    /// The bytes of the segment; only what the plan filled has a meaning.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The segment as a part of a payload, without a copy.
    pub(crate) fn share(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }
}

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A reusable set of segments with a bound on their bytes.
#[derive(Debug)]
pub(crate) struct Arena {
    segments: Vec<Arc<Vec<u8>>>,
    bytes_max: u64,
}

impl Arena {
    /// An empty arena that never holds more than `bytes_max`.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { segments: Vec::new(), bytes_max }
    }

    /// Makes room for `plan` and touches it, so that the first capture is as fast as every other.
    ///
    /// # Errors
    /// `Overloaded` if the plan needs more than the bound.
    pub(crate) fn reserve(&mut self, plan: &Plan) -> Result<()> {
        let needed = plan.arena_bytes();
        if needed > self.bytes_max {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("the state has {needed} bytes, the arena may have {}", self.bytes_max),
            )
            .with_remedy("raise the arena's budget, or save less state on each rank"));
        }
        self.segments.truncate(plan.segments.len());
        let kept = |(i, used): (usize, &usize)| {
            self.segments.get(i).map_or(*used, |segment| segment.len().max(*used)) as u64
        };
        let total: u64 = plan.segments.iter().enumerate().map(kept).sum();
        // What a larger segment holds beyond its use counts as well: it is kept only if there is room.
        let is_kept = |segment: &Vec<u8>, used: usize| {
            segment.len() == used || (segment.len() > used && total <= self.bytes_max)
        };
        // First all that goes, then what comes in its place, so that both are never there at once.
        for (segment, used) in self.segments.iter_mut().zip(&plan.segments) {
            if !is_kept(segment, *used) {
                *segment = Arc::default();
            }
        }
        for (i, used) in plan.segments.iter().enumerate() {
            match self.segments.get_mut(i) {
                Some(segment) if segment.len() >= *used => {}
                Some(segment) => *segment = Arc::new(touched(*used)),
                None => self.segments.push(Arc::new(touched(*used))),
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
            let slot = &mut self.segments[i];
            match Arc::get_mut(slot) {
                Some(segment) => copy_all(segment, capture, copies)?,
                // A store client still holds the memory of the last save: leave it to it.
                None => {
                    let mut fresh = touched(plan.segments[i]);
                    copy_all(&mut fresh, capture, copies)?;
                    *slot = Arc::new(fresh);
                }
            }
            full(i, Segment(Arc::clone(slot)))?;
        }
        Ok(())
    }

    /// The segments as they were last filled.
    pub(crate) fn filled(&self) -> Vec<Segment> {
        self.segments.iter().map(|segment| Segment(Arc::clone(segment))).collect()
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

/// Zeroed memory of which every page was written to once.
fn touched(bytes: usize) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut memory = vec![0u8; bytes];
    for page in memory.chunks_mut(PAGE) {
        // Writing through a black box keeps the compiler from dropping the store of a zero.
        page[0] = std::hint::black_box(0);
    }
    memory
}
