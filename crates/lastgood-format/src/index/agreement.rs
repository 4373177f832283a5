//! What the shard indexes of all ranks of a save must agree on.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap};

use super::{Component, Shard, ShardIndex, Tensor};
use crate::layout::check_disjoint;
use crate::{Error, Result};

/// A tensor of one of several indexes.
type Said<'i> = (&'i ShardIndex, &'i Tensor);

/// Checks that `indexes` are exactly ranks `0..world_size` of one save and agree on components and
/// tensors, and that no two shards of a tensor overlap; gives the number of distinct tensors.
///
/// # Errors
/// `Corrupt` naming the first disagreement.
pub fn check_agreement<'a>(indexes: impl IntoIterator<Item = &'a ShardIndex>) -> Result<u64> {
    let indexes: Vec<&ShardIndex> = indexes.into_iter().collect();
    check_ranks(&indexes)?;
    let mut components: BTreeMap<&str, &Component> = BTreeMap::new();
    for component in indexes.iter().flat_map(|index| &index.components) {
        let first = components.entry(&component.name).or_insert(component);
        if *first != component {
            return Err(Error::corrupt(format!(
                "ranks differ on owner or durability of component {:?}",
                component.name
            )));
        }
    }
    let mut tensors = 0;
    for_each_tensor(&indexes, |component, said| {
        tensors += 1;
        for other in &said[1..] {
            check_same(&said[0], other, component)?;
        }
        // Each index was checked by itself.
        if said.len() == 1 {
            return Ok(());
        }
        let boxes: Vec<_> =
            said.iter().flat_map(shards).map(|shard| shard.extent.clone()).collect();
        check_disjoint(&boxes).map_err(|e| e.context(format!("{component}/{}", said[0].1.name)))
    })?;
    Ok(tensors)
}

/// Checks that the shards of all ranks hold every element of every tensor. Overlaps are not looked for:
/// [`check_agreement`] does that.
///
/// # Errors
/// `Corrupt` naming the first tensor of which nobody stores a part.
pub fn check_complete<'a>(indexes: impl IntoIterator<Item = &'a ShardIndex>) -> Result<()> {
    let indexes: Vec<&ShardIndex> = indexes.into_iter().collect();
    for_each_tensor(&indexes, |component, said| {
        let tensor = said[0].1;
        if tensor.tied_to.is_some() {
            return Ok(());
        }
        let elements = |shard: &Shard| u128::from(shard.extent.elements().unwrap_or(0));
        let there: u128 = said.iter().flat_map(shards).map(elements).sum();
        let whole = tensor.shape.iter().try_fold(1u64, |all, size| all.checked_mul(*size));
        let whole = if tensor.shape.contains(&0) { 0 } else { whole.unwrap_or(u64::MAX) };
        match u128::from(whole).saturating_sub(there) {
            0 => Ok(()),
            left => Err(Error::corrupt(format!(
                "{component}/{}: no rank stores {left} of its elements",
                tensor.name
            ))),
        }
    })
}

/// Tells `each` of every tensor, by the name of its component and in rising order, what the indexes say of it. Tensors
/// rise in each index, so that a million of them need no table.
fn for_each_tensor<'i>(
    indexes: &[&'i ShardIndex],
    mut each: impl FnMut(&'i str, &[Said<'i>]) -> Result<()>,
) -> Result<()> {
    let key = |index: &'i ShardIndex, i: usize| {
        let tensor = index.tensors.get(i)?;
        let component = index.components.get(tensor.component as usize)?;
        Some((component.name.as_str(), tensor.name.as_str()))
    };
    let first =
        |(rank, index): (usize, &&'i ShardIndex)| key(index, 0).map(|key| Reverse((key, rank, 0)));
    let mut next: BinaryHeap<_> = indexes.iter().enumerate().filter_map(first).collect();
    let mut said: Vec<Said<'i>> = Vec::with_capacity(indexes.len());
    while let Some(Reverse((of, _, _))) = next.peek().copied() {
        said.clear();
        while let Some(mut head) = next.peek_mut().filter(|head| head.0.0 == of) {
            let Reverse((_, rank, i)) = *head;
            let index = indexes[rank];
            said.push((index, &index.tensors[i]));
            match key(index, i + 1) {
                Some(key) => *head = Reverse((key, rank, i + 1)),
                None => drop(PeekMut::pop(head)),
            }
        }
        each(of.0, &said)?;
    }
    Ok(())
}

fn shards<'i>((index, tensor): &Said<'i>) -> &'i [Shard] {
    &index.shards[tensor.shards.start as usize..tensor.shards.end as usize]
}

fn check_ranks(indexes: &[&ShardIndex]) -> Result<()> {
    let Some(first) = indexes.first() else {
        return Err(Error::corrupt("a save has at least one rank"));
    };
    let whole = indexes.len() as u64 == u64::from(first.world_size)
        && indexes.iter().zip(0..).all(|(index, rank)| {
            index.rank == rank
                && index.run == first.run
                && index.save == first.save
                && index.world_size == first.world_size
        });
    if whole {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "{} shard indexes are not ranks 0 to {} of {}",
        indexes.len(),
        first.world_size.saturating_sub(1),
        first.save
    )))
}

fn check_same(first: &Said<'_>, other: &Said<'_>, component: &str) -> Result<()> {
    let tie = |(index, tensor): &Said<'_>| {
        tensor.tied_to.map(|other| index.tensors[other as usize].name.clone())
    };
    let ((index, a), (other_index, b)) = (first, other);
    let same = (a.dtype, &a.shape) == (b.dtype, &b.shape) && tie(first) == tie(other);
    if same {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "{component}/{}: rank {} says {} of {:?}, rank {} says {} of {:?}",
        a.name, index.rank, a.dtype, a.shape, other_index.rank, b.dtype, b.shape
    )))
}
