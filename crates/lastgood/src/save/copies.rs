//! Tensors of bfloat16 that are copies of tensors of binary32 in the same state, as mixed precision has them: found by a
//! sample, so that nobody has to tell of them.

use std::collections::BTreeMap;

use lastgood_format::Dtype;
use lastgood_format::delta::nearest_bfloat16;
use lastgood_format::layout::NdBox;

use super::plan::Plan;

/// So many elements of a tensor stand for all of it.
const SAMPLED: usize = 16;

/// A shard by the shape of its tensor and its place in it, with its first row and how many elements it has.
type Large<'p> = ((&'p [u64], &'p NdBox), usize, usize);

/// The shards of tensors of `dtype` that fill rows of their own.
fn large(plan: &Plan, dtype: Dtype) -> impl Iterator<Item = Large<'_>> {
    plan.tensors.iter().filter(move |tensor| tensor.dtype == dtype).flat_map(|tensor| {
        let shards = &plan.shards[tensor.shards.start as usize..tensor.shards.end as usize];
        shards.iter().filter_map(|shard| {
            let first = shard.first_chunk as usize;
            let elements = usize::try_from(shard.extent.elements()?).ok()?;
            let bytes = usize::try_from(tensor.dtype.bytes_of(elements as u64)?).ok()?;
            // A row that it shares with others is larger than it, or it does not begin there.
            let is_large = shard.chunk_offset == 0
                && elements >= SAMPLED
                && plan.rows.get(first).is_some_and(|row| row.bytes <= bytes);
            is_large.then_some(((tensor.shape.as_slice(), &shard.extent), first, elements))
        })
    })
}

/// True if some shard could be a copy of another one, as far as their shapes tell.
pub(crate) fn may_be(plan: &Plan) -> bool {
    let mut copies = large(plan, Dtype::Bf16).map(|(place, ..)| place).peekable();
    if copies.peek().is_none() {
        return false;
    }
    let mut copies: Vec<_> = copies.collect();
    copies.sort_unstable();
    large(plan, Dtype::F32).any(|(place, ..)| copies.binary_search(&place).is_ok())
}

/// For each row of a copy the two rows that its numbers are in. `bytes` gives what was captured of a row.
pub(crate) fn find<'b>(
    plan: &Plan,
    bytes: impl Fn(usize) -> Option<&'b [u8]>,
) -> BTreeMap<usize, [usize; 2]> {
    let sample = |first: usize, elements: usize, width: usize| -> Option<[u16; SAMPLED]> {
        let chunk = plan.rows[first].bytes;
        let mut found = [0; SAMPLED];
        for (i, found) in found.iter_mut().enumerate() {
            let at = i * elements / SAMPLED * width;
            let element = bytes(first + at / chunk)?.get(at % chunk..)?;
            *found = match width {
                2 => u16::from_le_bytes(*element.first_chunk()?),
                _ => nearest_bfloat16(*element.first_chunk()?),
            };
        }
        Some(found)
    };
    let mut originals = BTreeMap::new();
    for (place, first, elements) in large(plan, Dtype::F32) {
        if let Some(sample) = sample(first, elements, 4) {
            originals.entry((place, sample)).or_insert(first);
        }
    }
    let mut copies = BTreeMap::new();
    for (place, first, elements) in large(plan, Dtype::Bf16) {
        let sample = sample(first, elements, 2);
        let original = sample.and_then(|sample| originals.get(&(place, sample)));
        if let Some(original) = original {
            copies.extend(pairs(plan, (first, *original), elements));
        }
    }
    copies
}

/// The rows of a copy of so many elements with those of its original: each has twice as many, as large as it, but for the
/// last ones, which are of use only if that is so.
fn pairs(
    plan: &Plan,
    (copy, original): (usize, usize),
    elements: usize,
) -> impl Iterator<Item = (usize, [usize; 2])> {
    let rows = (2 * elements).div_ceil(plan.rows[copy].bytes);
    let fits = |(row, of): &(usize, [usize; 2])| {
        let bytes = plan.rows[*row].bytes;
        of.iter().all(|row| plan.rows.get(*row).is_some_and(|row| row.bytes == bytes))
    };
    let pair = move |i: usize| (copy + i, [original + 2 * i, original + 2 * i + 1]);
    let ends = original + (4 * elements).div_ceil(plan.rows[original].bytes);
    (0..rows).map(pair).filter(move |(_, of)| of[1] < ends).filter(fits)
}
