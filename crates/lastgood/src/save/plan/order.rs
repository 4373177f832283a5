//! The canonical order of a capture, and what of it this rank stores.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;

use lastgood_format::layout::check_disjoint;
use lastgood_format::{Error, Result};

use crate::state::{Capture, Piece, Tie, show, show_name};

/// A tensor by the position of its component in the order of names, and its own name.
pub(super) type Key<'c> = (usize, &'c str);

/// The canonical order of a capture: components by name, tensors by (component, name), shards by
/// offset; which tensors are tied; and which shards this rank stores.
pub(super) struct Order<'c> {
    /// In rising order of their keys.
    pub(super) tensors: Vec<Named<'c>>,
    /// For each tensor the one with its data: itself unless it is tied.
    data_of: Vec<usize>,
    /// For each tensor with data that others are tied to, the least of them all.
    least: Vec<usize>,
    /// The pieces, those of one tensor next to each other.
    pieces: Vec<usize>,
    /// True for each piece that this rank stores.
    pub(super) stores: Vec<bool>,
}

pub(super) struct Named<'c> {
    pub(super) key: Key<'c>,
    /// A piece with its dtype and shape.
    pub(super) sample: usize,
    /// Its own pieces; none if it is tied.
    pieces: Range<usize>,
    /// The tensor with the data, if it is tied.
    tied_to: Option<Key<'c>>,
}

impl<'c> Order<'c> {
    pub(super) fn new(capture: &'c Capture<'_>) -> Result<Self> {
        let component_rank = component_ranks(capture);
        let key_of = |i: usize| -> Key<'c> {
            let piece = &capture.pieces[i];
            (component_rank[piece.component], piece.name.as_str())
        };
        let mut pieces: Vec<usize> = (0..capture.pieces.len()).collect();
        // Pieces of one tensor stay in the order in which they were named.
        pieces.sort_by_key(|i| key_of(*i));
        let mut tensors: Vec<Named<'c>> = Vec::with_capacity(pieces.len());
        for group in pieces.chunk_by_mut(|a, b| key_of(*a) == key_of(*b)) {
            let sample = group[0];
            for piece in &*group {
                check_same_tensor(capture, sample, *piece)?;
            }
            group.sort_by_key(|i| &capture.pieces[*i].extent.offsets);
            check_no_overlap(capture, group)?;
            let begin = tensors.last().map_or(0, |named| named.pieces.end);
            let pieces = begin..begin + group.len();
            tensors.push(Named { key: key_of(sample), sample, pieces, tied_to: None });
        }
        add_ties(capture, &component_rank, &mut tensors)?;
        let find = |key: &Key<'c>| tensors.binary_search_by_key(key, |named| named.key);
        let data_of: Vec<usize> = tensors
            .iter()
            .enumerate()
            .map(|(i, named)| named.tied_to.and_then(|key| find(&key).ok()).unwrap_or(i))
            .collect();
        let mut least: Vec<usize> = (0..tensors.len()).collect();
        for (i, data) in data_of.iter().enumerate() {
            least[*data] = least[*data].min(i);
        }
        let stores = writers(capture, &component_rank);
        Ok(Self { tensors, data_of, least, pieces, stores })
    }

    /// The least tensor of the tie group of tensor `i`, which gets the shards.
    pub(super) fn canonical(&self, i: usize) -> usize {
        self.least[self.data_of[i]]
    }

    /// The pieces of tensor `i` itself; none if it is tied.
    pub(super) fn own(&self, i: usize) -> &[usize] {
        &self.pieces[self.tensors[i].pieces.clone()]
    }

    /// The pieces that hold the data of tensor `i`.
    pub(super) fn data(&self, i: usize) -> &[usize] {
        self.own(self.data_of[i])
    }
}

/// Puts the ties among the `tensors`, which are in rising order, and stay so.
fn add_ties<'c>(
    capture: &'c Capture<'_>,
    component_rank: &[usize],
    tensors: &mut Vec<Named<'c>>,
) -> Result<()> {
    let mut ties: BTreeMap<Key<'c>, Named<'c>> = BTreeMap::new();
    for tie in &capture.ties {
        let component = component_rank[tie.component];
        let (key, of) = ((component, tie.name.as_str()), (component, tie.of.as_str()));
        let find = |key: &Key<'c>| tensors.binary_search_by_key(key, |named| named.key);
        let of = find(&of).ok().map(|i| &tensors[i]).or_else(|| ties.get(&of));
        let of = of.ok_or_else(|| missing(tie))?;
        let (sample, tied_to) = (of.sample, Some(of.tied_to.unwrap_or(of.key)));
        let named = Named { key, sample, pieces: 0..0, tied_to };
        if find(&key).is_ok() || ties.insert(key, named).is_some() {
            let name = show(&capture.components[tie.component].name, &tie.name);
            return Err(Error::invalid(format!("tensor \"{name}\" is named twice")));
        }
    }
    if !ties.is_empty() {
        tensors.extend(ties.into_values());
        tensors.sort_by_key(|named| named.key);
    }
    Ok(())
}

pub(super) fn component_ranks(capture: &Capture<'_>) -> Vec<usize> {
    let mut names: Vec<usize> = (0..capture.components.len()).collect();
    names.sort_by(|a, b| capture.components[*a].name.cmp(&capture.components[*b].name));
    let mut ranks = vec![0; names.len()];
    for (rank, component) in names.iter().enumerate() {
        ranks[*component] = rank;
    }
    ranks
}

fn check_same_tensor(capture: &Capture<'_>, first: usize, other: usize) -> Result<()> {
    let (a, b) = (&capture.pieces[first], &capture.pieces[other]);
    let one_replica = first == other || !(a.replicated || b.replicated);
    if one_replica && a.dtype == b.dtype && a.shape == b.shape {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "tensor {} is named twice: {} of {:?} and {} of {:?}",
        show(&capture.components[a.component].name, &a.name),
        a.dtype,
        a.shape,
        b.dtype,
        b.shape
    ))
    .with_remedy("name a tensor once, or as several shards of one dtype and shape"))
}

fn check_no_overlap(capture: &Capture<'_>, pieces: &[usize]) -> Result<()> {
    let [first, _, ..] = pieces else { return Ok(()) };
    let boxes: Vec<_> = pieces.iter().map(|i| capture.pieces[*i].extent.clone()).collect();
    check_disjoint(&boxes).map_err(|error| {
        let piece = &capture.pieces[*first];
        let name = show(&capture.components[piece.component].name, &piece.name);
        Error::invalid(format!("tensor {name} is named twice: {}", error.message()))
            .with_remedy("name a tensor once, or as several shards that do not overlap")
    })
}

fn missing(tie: &Tie) -> Error {
    Error::invalid(format!(
        "\"{}\" is tied to \"{}\", which is not named before it",
        show_name(&tie.name),
        show_name(&tie.of)
    ))
}

/// Spreads the replicated pieces over the ranks, the largest first, each to the rank with the least to
/// write; what an optimizer keeps for a weight goes with the weight. Every rank names the same replicated tensors, so
/// every rank computes the same.
fn writers(capture: &Capture<'_>, component_rank: &[usize]) -> Vec<bool> {
    let mut stores = vec![true; capture.pieces.len()];
    let world = capture.world();
    if world.size == 1 {
        return stores;
    }
    let mut units: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, leader) in leaders(capture, component_rank) {
        units.entry(leader).or_default().push(i);
    }
    let bytes =
        |unit: &[usize]| -> usize { unit.iter().map(|i| capture.pieces[*i].data.len()).sum() };
    let mut units: Vec<(usize, usize, Vec<usize>)> =
        units.into_iter().map(|(leader, unit)| (bytes(&unit), leader, unit)).collect();
    units.sort_by_key(|(bytes, leader, _)| {
        let piece = &capture.pieces[*leader];
        (Reverse(*bytes), (component_rank[piece.component], piece.name.as_str()))
    });
    let mut ranks: BinaryHeap<Reverse<(u64, u32)>> =
        (0..world.size).map(|rank| Reverse((0, rank))).collect();
    for (bytes, _, unit) in units {
        let Some(Reverse((load, rank))) = ranks.pop() else { continue };
        unit.into_iter().for_each(|i| stores[i] = rank == world.rank);
        ranks.push(Reverse((load + bytes as u64, rank)));
    }
    stores
}

/// Each replicated piece with the one that it goes with: itself, or of a tensor `state.NAME.KEY` that of as many bytes
/// which is called NAME, or COMPONENT.NAME with its component. By names alone, which all ranks have alike, in whatever
/// order they name them.
fn leaders(capture: &Capture<'_>, component_rank: &[usize]) -> Vec<(usize, usize)> {
    let mut named: Vec<usize> =
        (0..capture.pieces.len()).filter(|i| capture.pieces[*i].replicated).collect();
    named.sort_by_key(|i| {
        let piece = &capture.pieces[*i];
        (component_rank[piece.component], piece.name.as_str())
    });
    let pieces = || named.iter().map(|i| (*i, &capture.pieces[*i]));
    let mut weights: BTreeMap<String, usize> = BTreeMap::new();
    for (i, piece) in pieces() {
        let component = &capture.components[piece.component].name;
        weights.entry(piece.name.clone()).or_insert(i);
        weights.entry(format!("{component}.{}", piece.name)).or_insert(i);
    }
    let leader = |(i, piece): (usize, &Piece<'_>)| {
        let weight = piece.name.strip_prefix("state.").and_then(|name| name.rsplit_once('.'));
        let weight = weight.and_then(|(weight, _)| weights.get(weight).copied());
        let fits = |weight: &usize| capture.pieces[*weight].data.len() == piece.data.len();
        (i, weight.filter(fits).unwrap_or(i))
    };
    pieces().map(leader).collect()
}
