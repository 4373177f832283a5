//! What the shard indexes of all ranks of a save must agree on.

use std::collections::BTreeMap;

use super::{Component, ShardIndex, Tensor};
use crate::layout::{NdBox, check_disjoint};
use crate::{Error, Result};

/// What one rank says of a tensor, and the boxes that all ranks store of it.
struct Said<'i> {
    index: &'i ShardIndex,
    tensor: &'i Tensor,
    boxes: Vec<NdBox>,
}

/// Checks that `indexes` are exactly ranks `0..world_size` of one save and agree on components and
/// tensors, and that no two shards of a tensor overlap; gives the number of distinct tensors.
///
/// # Errors
/// `Corrupt` naming the first disagreement.
pub fn check_agreement<'a>(indexes: impl IntoIterator<Item = &'a ShardIndex>) -> Result<u64> {
    let indexes: Vec<&ShardIndex> = indexes.into_iter().collect();
    check_ranks(&indexes)?;
    let mut components: BTreeMap<&str, &Component> = BTreeMap::new();
    let mut tensors: BTreeMap<(&str, &str), Said<'_>> = BTreeMap::new();
    for index in &indexes {
        for component in &index.components {
            let first = components.entry(&component.name).or_insert(component);
            if *first != component {
                return Err(Error::corrupt(format!(
                    "ranks differ on owner or durability of component {:?}",
                    component.name
                )));
            }
        }
        for tensor in &index.tensors {
            let component = index.components[tensor.component as usize].name.as_str();
            let said = tensors.entry((component, &tensor.name)).or_insert_with(|| Said {
                index,
                tensor,
                boxes: Vec::new(),
            });
            check_same(said, index, tensor, component)?;
            let shards = &index.shards[tensor.shards.start as usize..tensor.shards.end as usize];
            said.boxes.extend(shards.iter().map(|shard| shard.extent.clone()));
        }
    }
    for ((component, name), said) in &tensors {
        check_disjoint(&said.boxes).map_err(|e| e.context(format!("{component}/{name}")))?;
    }
    Ok(tensors.len() as u64)
}

/// Checks that the shards of all ranks hold every element of every tensor. Overlaps are not looked for:
/// [`check_agreement`] does that.
///
/// # Errors
/// `Corrupt` naming the first tensor of which nobody stores a part.
pub fn check_complete<'a>(indexes: impl IntoIterator<Item = &'a ShardIndex>) -> Result<()> {
    let mut missing: BTreeMap<(&str, &str), u128> = BTreeMap::new();
    for index in indexes {
        for tensor in index.tensors.iter().filter(|tensor| tensor.tied_to.is_none()) {
            let component = index.components[tensor.component as usize].name.as_str();
            let whole = NdBox::whole(&tensor.shape).elements().unwrap_or(u64::MAX);
            let left = missing.entry((component, &tensor.name)).or_insert(u128::from(whole));
            for shard in &index.shards[tensor.shards.start as usize..tensor.shards.end as usize] {
                *left = left.saturating_sub(u128::from(shard.extent.elements().unwrap_or(0)));
            }
        }
    }
    match missing.iter().find(|(_, left)| **left > 0) {
        Some(((component, name), left)) => Err(Error::corrupt(format!(
            "{component}/{name}: no rank stores {left} of its elements"
        ))),
        None => Ok(()),
    }
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

fn check_same(said: &Said<'_>, index: &ShardIndex, tensor: &Tensor, component: &str) -> Result<()> {
    let tie = |index: &ShardIndex, tensor: &Tensor| {
        tensor.tied_to.map(|other| index.tensors[other as usize].name.clone())
    };
    let same = (said.tensor.dtype, &said.tensor.shape) == (tensor.dtype, &tensor.shape)
        && tie(said.index, said.tensor) == tie(index, tensor);
    if same {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "{component}/{}: rank {} says {} of {:?}, rank {} says {} of {:?}",
        tensor.name,
        said.index.rank,
        said.tensor.dtype,
        said.tensor.shape,
        index.rank,
        tensor.dtype,
        tensor.shape
    )))
}
