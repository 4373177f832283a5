//! Where each captured byte goes: shards to chunks, chunks to segments of the arena.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;

use lastgood_format::index::{Component, Shard, Tensor};
use lastgood_format::layout::check_disjoint;
use lastgood_format::{Dtype, Error, Result};

use super::updates::{Linked, Members, RowRole, Step, Updates};
use crate::state::{Capture, Piece, Tie, show, show_name};

/// The size of an arena segment, which is also about the size of a pack.
pub(crate) const SEGMENT_BYTES: usize = 64 << 20;

/// How frameworks align the memory of tensors, in bytes.
const ALIGNMENT: usize = 64;

/// One chunk before it is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The segment that holds it.
    pub(crate) segment: usize,
    /// Where it begins in the segment.
    pub(crate) offset: usize,
    /// The number of bytes.
    pub(crate) bytes: usize,
    /// The bytes of an element of the tensor that it is of, or of the first one.
    pub(crate) width: u8,
}

/// One copy from a captured piece into a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) piece: usize,
    pub(crate) source: Range<usize>,
    pub(crate) offset: usize,
}

/// The tables of a shard index but for the chunks' hashes, and the copies that fill the arena.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) components: Vec<Component>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) rows: Vec<Row>,
    /// The used bytes of each segment.
    pub(crate) segments: Vec<usize>,
    /// The copies of each segment, in rising order of offset.
    pub(crate) copies: Vec<Vec<Copy>>,
    /// For each tensor, whether every rank holds all of it.
    pub(crate) replicated: Vec<bool>,
    /// What rows are for the optimizer that changed them.
    pub(crate) roles: BTreeMap<usize, RowRole>,
}

impl Plan {
    /// Lays out `capture` in chunks of `chunk_bytes`.
    pub(crate) fn new(capture: &Capture<'_>, chunk_bytes: usize) -> Result<Self> {
        let order = Order::new(capture)?;
        let mut plan = Self { components: components(capture), ..Self::default() };
        plan.tensors.reserve(order.tensors.len());
        plan.shards.reserve(capture.pieces.len());
        let updates = Updates::new(capture, &order.stores, chunk_bytes);
        let grouped = updates.groups.iter().flatten().flat_map(|linked| linked.members.each());
        let grouped = grouped.map(|(_, piece)| piece).collect();
        let mut layout = Layout { chunk_bytes, shared: None, grouped, shards: BTreeMap::new() };
        let mut component = None;
        for (i, named) in order.tensors.iter().enumerate() {
            let key = named.key;
            if component != Some(key.0) {
                component = Some(key.0);
                layout.shared = None;
            }
            let begin = index_of(plan.shards.len())?;
            let canonical = order.canonical(i);
            if canonical == i {
                for piece in order.data(i).iter().filter(|piece| order.stores[**piece]) {
                    layout.place(&mut plan, &capture.pieces[*piece], *piece)?;
                }
            }
            let tied_to = (canonical != i).then(|| index_of(canonical)).transpose()?;
            let sample = &capture.pieces[named.sample];
            plan.replicated.push(sample.replicated);
            plan.tensors.push(Tensor {
                component: index_of(key.0)?,
                name: key.1.to_owned(),
                dtype: sample.dtype,
                shape: sample.shape.clone(),
                tied_to,
                shards: begin..index_of(plan.shards.len())?,
            });
        }
        for group in &updates.groups {
            layout.place_group(&mut plan, capture, group)?;
        }
        for linked in &updates.large {
            layout.link_large(&mut plan, linked);
        }
        Ok(plan)
    }

    /// The rows of segment `i`, which follow each other.
    pub(crate) fn rows_of(&self, i: usize) -> Range<usize> {
        let begin = self.rows.partition_point(|row| row.segment < i);
        begin..begin + self.rows[begin..].partition_point(|row| row.segment == i)
    }

    /// The segment of each row, and where in it.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        self.rows.iter().map(|row| (row.segment, row.offset))
    }

    /// The bytes of the arena that the plan uses.
    pub(crate) fn arena_bytes(&self) -> u64 {
        self.segments.iter().map(|used| *used as u64).sum()
    }
}

fn index_of(i: usize) -> Result<u32> {
    u32::try_from(i).map_err(|_| Error::invalid("one rank saves at most 2^32 tensors and chunks"))
}

/// The chunk that is being filled with small shards.
#[derive(Clone, Copy)]
struct Shared {
    row: usize,
    used: usize,
}

struct Layout {
    chunk_bytes: usize,
    shared: Option<Shared>,
    /// The pieces that are placed last, by [`Layout::place_group`].
    grouped: BTreeSet<usize>,
    /// The shard of each piece.
    shards: BTreeMap<usize, usize>,
}

impl Layout {
    fn place(&mut self, plan: &mut Plan, piece: &Piece<'_>, i: usize) -> Result<()> {
        let bytes = piece.data.len();
        self.shards.insert(i, plan.shards.len());
        let (first_chunk, chunk_offset) = match bytes {
            0 => (0, 0),
            _ if self.grouped.contains(&i) => (0, 0),
            _ if bytes >= self.chunk_bytes => (self.place_large(plan, piece, i), 0),
            _ => self.place_small(plan, piece, i),
        };
        plan.shards.push(Shard {
            extent: piece.extent.clone(),
            first_chunk: index_of(first_chunk)?,
            chunk_offset: index_of(chunk_offset)?,
        });
        Ok(())
    }

    fn place_large(&mut self, plan: &mut Plan, piece: &Piece<'_>, i: usize) -> usize {
        let first = plan.rows.len();
        let bytes = piece.data.len();
        plan.make_room_for_large(bytes);
        for begin in (0..bytes).step_by(self.chunk_bytes) {
            let end = bytes.min(begin + self.chunk_bytes);
            let row = plan.new_row(end - begin, width_of(piece.dtype));
            plan.copy(row, i, begin..end);
        }
        first
    }

    /// Small shards of one component share chunks, so that a million small tensors are not a million
    /// chunks. A shared chunk stays inside one segment and inside one component.
    fn place_small(&mut self, plan: &mut Plan, piece: &Piece<'_>, i: usize) -> (usize, usize) {
        let bytes = piece.data.len();
        let fits = |shared: &Shared| {
            let room = SEGMENT_BYTES.max(self.chunk_bytes) - plan.rows[shared.row].offset;
            let last = shared.row + 1 == plan.rows.len();
            last && shared.used + bytes <= self.chunk_bytes.min(room)
        };
        let shared = match self.shared.filter(fits) {
            Some(shared) => {
                plan.extend_last_row(bytes);
                shared
            }
            None => Shared { row: plan.new_row(bytes, width_of(piece.dtype)).row, used: 0 },
        };
        let row = plan.rows[shared.row];
        let offset = row.offset + shared.used;
        plan.copies[row.segment].push(Copy { piece: i, source: 0..bytes, offset });
        self.shared = Some(Shared { row: shared.row, used: shared.used + bytes });
        (shared.row, shared.used)
    }
}

impl Layout {
    /// Small shards of a group share one chunk for each role, in the same order.
    fn place_group(&self, plan: &mut Plan, capture: &Capture<'_>, group: &[Linked]) -> Result<()> {
        let Some(Linked { step, members }) = group.first() else { return Ok(()) };
        let bytes_of = |piece: usize| capture.pieces[piece].data.len();
        let total = group.iter().map(|linked| bytes_of(linked.members.weight)).sum();
        let mut rows = *members;
        for (role, slot) in rows.each_mut() {
            let row = plan.new_row(total, width_of(Dtype::F32));
            let mut used = 0;
            for piece in group.iter().filter_map(|linked| linked.members.of(role)) {
                let bytes = bytes_of(piece);
                let offset = row.offset + used;
                plan.copies[row.segment].push(Copy { piece, source: 0..bytes, offset });
                if let Some(shard) = self.shards.get(&piece) {
                    let shard = &mut plan.shards[*shard];
                    (shard.first_chunk, shard.chunk_offset) = (index_of(row.row)?, index_of(used)?);
                }
                used += bytes;
            }
            *slot = row.row;
        }
        plan.link(*step, rows);
        Ok(())
    }

    /// The chunks of large shards of the same place follow each other alike.
    fn link_large(&self, plan: &mut Plan, linked: &Linked) {
        let first = |piece: usize| plan.shards[self.shards[&piece]].first_chunk as usize;
        let mut rows = linked.members;
        for (_, slot) in rows.each_mut() {
            *slot = first(*slot);
        }
        let mut left = plan.bytes_of(self.shards[&linked.members.weight]);
        while left > 0 {
            left = left.saturating_sub(plan.rows[rows.weight].bytes as u64);
            plan.link(linked.step, rows);
            rows.each_mut().for_each(|(_, row)| *row += 1);
        }
    }
}

#[derive(Clone, Copy)]
struct NewRow {
    row: usize,
    segment: usize,
    offset: usize,
}

impl Plan {
    fn link(&mut self, step: Step, rows: Members) {
        for (role, row) in rows.each() {
            self.roles.insert(row, RowRole { role, step, rows });
        }
    }

    /// The bytes of a shard.
    pub(crate) fn bytes_of(&self, shard: usize) -> u64 {
        let tensor = self.tensors.partition_point(|tensor| tensor.shards.end as usize <= shard);
        let elements = self.shards[shard].extent.elements();
        elements.and_then(|count| self.tensors[tensor].dtype.bytes_of(count)).unwrap_or(0)
    }

    fn new_row(&mut self, bytes: usize, width: u8) -> NewRow {
        let fits = self.segments.last().is_some_and(|used| used + bytes <= SEGMENT_BYTES);
        if !fits {
            self.segments.push(0);
            self.copies.push(Vec::new());
        }
        let segment = self.segments.len() - 1;
        let offset = self.segments[segment];
        self.segments[segment] += bytes;
        self.rows.push(Row { segment, offset, bytes, width });
        NewRow { row: self.rows.len() - 1, segment, offset }
    }

    /// A large shard lies in one piece, and where a framework would have its memory: it begins a segment if it does not
    /// fit into the rest of the last one, and one that is larger fills each of its segments if chunks do.
    fn make_room_for_large(&mut self, bytes: usize) {
        let Some(used) = self.segments.last_mut().filter(|used| **used > 0) else { return };
        let aligned = used.next_multiple_of(ALIGNMENT);
        if aligned + bytes <= SEGMENT_BYTES {
            *used = aligned;
        } else {
            self.segments.push(0);
            self.copies.push(Vec::new());
        }
    }

    /// The last row is at the end of the last segment, so it can grow there.
    fn extend_last_row(&mut self, bytes: usize) {
        if let (Some(row), Some(used)) = (self.rows.last_mut(), self.segments.last_mut()) {
            row.bytes += bytes;
            *used += bytes;
        }
    }

    fn copy(&mut self, row: NewRow, piece: usize, source: Range<usize>) {
        self.copies[row.segment].push(Copy { piece, source, offset: row.offset });
    }
}

/// The bytes of an element; 1 for what has no whole bytes.
fn width_of(dtype: Dtype) -> u8 {
    u8::try_from(dtype.bits() / 8).unwrap_or(1).max(1)
}

fn components(capture: &Capture<'_>) -> Vec<Component> {
    let mut components: Vec<Component> = capture
        .components
        .iter()
        .map(|declared| Component {
            name: declared.name.clone(),
            owner: declared.owner.clone(),
            durability: declared.durability,
        })
        .collect();
    components.sort_by(|a, b| a.name.cmp(&b.name));
    components
}

/// A tensor by the position of its component in the order of names, and its own name.
type Key<'c> = (usize, &'c str);

/// The canonical order of a capture: components by name, tensors by (component, name), shards by
/// offset; which tensors are tied; and which shards this rank stores.
struct Order<'c> {
    /// In rising order of their keys.
    tensors: Vec<Named<'c>>,
    /// For each tensor the one with its data: itself unless it is tied.
    data_of: Vec<usize>,
    /// For each tensor with data that others are tied to, the least of them all.
    least: Vec<usize>,
    /// The pieces, those of one tensor next to each other.
    pieces: Vec<usize>,
    /// True for each piece that this rank stores.
    stores: Vec<bool>,
}

struct Named<'c> {
    key: Key<'c>,
    /// A piece with its dtype and shape.
    sample: usize,
    /// Its own pieces; none if it is tied.
    pieces: Range<usize>,
    /// The tensor with the data, if it is tied.
    tied_to: Option<Key<'c>>,
}

impl<'c> Order<'c> {
    fn new(capture: &'c Capture<'_>) -> Result<Self> {
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
    fn canonical(&self, i: usize) -> usize {
        self.least[self.data_of[i]]
    }

    /// The pieces that hold the data of tensor `i`.
    fn data(&self, i: usize) -> &[usize] {
        &self.pieces[self.tensors[self.data_of[i]].pieces.clone()]
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

fn component_ranks(capture: &Capture<'_>) -> Vec<usize> {
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
