//! Who owns which part of one flat vector of numbers.

use std::ops::Range;

/// The part of `0 .. count` that falls to `index` of `parts` in order. The parts differ in size by
/// one at most.
pub(crate) fn part(count: usize, index: usize, parts: usize) -> Range<usize> {
    count * index / parts..count * (index + 1) / parts
}

/// For every rank the ranges of one flat vector that are its share.
#[derive(Clone, Debug)]
pub(crate) struct Shares(Vec<Vec<Range<usize>>>);

impl Shares {
    /// The shares of `ranks` ranks: `ranges(rank)` in ascending order.
    pub(crate) fn new(ranks: u32, ranges: impl Fn(u32) -> Vec<Range<usize>>) -> Self {
        Self((0..ranks).map(ranges).collect())
    }

    /// These shares, and `range` for every rank.
    pub(crate) fn with_common(mut self, range: Range<usize>) -> Self {
        for share in &mut self.0 {
            share.push(range.clone());
        }
        self
    }

    /// The ranges of `rank`.
    pub(crate) fn of(&self, rank: u32) -> &[Range<usize>] {
        &self.0[rank as usize]
    }

    /// The size of the share of `rank`.
    pub(crate) fn len_of(&self, rank: u32) -> usize {
        self.of(rank).iter().map(Range::len).sum()
    }

    /// The share of `rank` in `flat`, put together.
    pub(crate) fn pack<T: Copy>(&self, rank: u32, flat: &[T]) -> Vec<T> {
        self.of(rank).iter().map(|range| &flat[range.clone()]).collect::<Vec<_>>().concat()
    }

    /// Puts the packed share of `rank` back to its places in `flat`. False if it has another length
    /// than the share.
    pub(crate) fn unpack<T: Copy>(&self, rank: u32, mut packed: &[T], flat: &mut [T]) -> bool {
        for range in self.of(rank) {
            let Some((head, rest)) = packed.split_at_checked(range.len()) else { return false };
            flat[range.clone()].copy_from_slice(head);
            packed = rest;
        }
        packed.is_empty()
    }
}

#[cfg(test)]
mod tests;
