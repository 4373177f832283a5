//! Where each captured byte goes: shards to chunks, chunks to segments of the arena.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;

use lastgood_format::index::{Component, Shard, Tensor};
use lastgood_format::layout::check_disjoint;
use lastgood_format::{Error, Result};

use crate::state::{Capture, Piece, Tie, show, show_name};

/// The size of an arena segment, which is also about the size of a pack.
pub(crate) const SEGMENT_BYTES: usize = 64 << 20;

/// One chunk before it is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The segment that holds it.
    pub(crate) segment: usize,
    /// Where it begins in the segment.
    pub(crate) offset: usize,
    /// The number of bytes.
    pub(crate) bytes: usize,
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
}

impl Plan {
    /// Lays out `capture` in chunks of `chunk_bytes`.
    pub(crate) fn new(capture: &Capture<'_>, chunk_bytes: usize) -> Result<Self> {
        let order = Order::new(capture)?;
        let mut plan = Self { components: components(capture), ..Self::default() };
        let mut layout = Layout { chunk_bytes, shared: None };
        let mut component = None;
        for (key, named) in &order.tensors {
            if component != Some(key.0) {
                component = Some(key.0);
                layout.shared = None;
            }
            let begin = index_of(plan.shards.len())?;
            let canonical = order.canonical(key);
            if canonical == key {
                for piece in order.data(key).iter().filter(|piece| order.stores[**piece]) {
                    layout.place(&mut plan, &capture.pieces[*piece], *piece)?;
                }
            }
            let tied_to = match order.tensors.get(canonical) {
                Some(other) if canonical != key => Some(index_of(other.position)?),
                _ => None,
            };
            let sample = &capture.pieces[named.sample];
            plan.tensors.push(Tensor {
                component: index_of(key.0)?,
                name: key.1.to_owned(),
                dtype: sample.dtype,
                shape: sample.shape.clone(),
                tied_to,
                shards: begin..index_of(plan.shards.len())?,
            });
        }
        Ok(plan)
    }

    /// The rows of segment `i`, which follow each other.
    pub(crate) fn rows_of(&self, i: usize) -> Range<usize> {
        let begin = self.rows.partition_point(|row| row.segment < i);
        begin..begin + self.rows[begin..].partition_point(|row| row.segment == i)
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
}

impl Layout {
    fn place(&mut self, plan: &mut Plan, piece: &Piece<'_>, i: usize) -> Result<()> {
        let bytes = piece.data.len();
        let (first_chunk, chunk_offset) = match bytes {
            0 => (0, 0),
            _ if bytes >= self.chunk_bytes => (self.place_large(plan, bytes, i), 0),
            _ => self.place_small(plan, bytes, i),
        };
        plan.shards.push(Shard {
            extent: piece.extent.clone(),
            first_chunk: index_of(first_chunk)?,
            chunk_offset: index_of(chunk_offset)?,
        });
        Ok(())
    }

    fn place_large(&mut self, plan: &mut Plan, bytes: usize, piece: usize) -> usize {
        let first = plan.rows.len();
        for begin in (0..bytes).step_by(self.chunk_bytes) {
            let end = bytes.min(begin + self.chunk_bytes);
            let row = plan.new_row(end - begin);
            plan.copy(row, piece, begin..end);
        }
        first
    }

    /// Small shards of one component share chunks, so that a million small tensors are not a million
    /// chunks. A shared chunk stays inside one segment and inside one component.
    fn place_small(&mut self, plan: &mut Plan, bytes: usize, piece: usize) -> (usize, usize) {
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
            None => Shared { row: plan.new_row(bytes).row, used: 0 },
        };
        let row = plan.rows[shared.row];
        let offset = row.offset + shared.used;
        plan.copies[row.segment].push(Copy { piece, source: 0..bytes, offset });
        self.shared = Some(Shared { row: shared.row, used: shared.used + bytes });
        (shared.row, shared.used)
    }
}

#[derive(Clone, Copy)]
struct NewRow {
    row: usize,
    segment: usize,
    offset: usize,
}

impl Plan {
    fn new_row(&mut self, bytes: usize) -> NewRow {
        let fits = self.segments.last().is_some_and(|used| used + bytes <= SEGMENT_BYTES);
        if !fits {
            self.segments.push(0);
            self.copies.push(Vec::new());
        }
        let segment = self.segments.len() - 1;
        let offset = self.segments[segment];
        self.segments[segment] += bytes;
        self.rows.push(Row { segment, offset, bytes });
        NewRow { row: self.rows.len() - 1, segment, offset }
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
    tensors: BTreeMap<Key<'c>, Named<'c>>,
    /// For each tensor with data that others are tied to, the least of them all.
    canonical: BTreeMap<Key<'c>, Key<'c>>,
    /// True for each piece that this rank stores.
    stores: Vec<bool>,
}

struct Named<'c> {
    /// Its place in the shard index.
    position: usize,
    /// A piece with its dtype and shape.
    sample: usize,
    /// Its own pieces; none if it is tied.
    pieces: Vec<usize>,
    /// The tensor with the data: itself unless it is tied.
    data_of: Key<'c>,
}

impl<'c> Order<'c> {
    fn new(capture: &'c Capture<'_>) -> Result<Self> {
        let component_rank = component_ranks(capture);
        let mut tensors: BTreeMap<Key<'c>, Named<'c>> = BTreeMap::new();
        for (i, piece) in capture.pieces.iter().enumerate() {
            let key = (component_rank[piece.component], piece.name.as_str());
            let named = tensors.entry(key).or_insert_with(|| Named {
                position: 0,
                sample: i,
                pieces: Vec::new(),
                data_of: key,
            });
            check_same_tensor(capture, named.sample, i)?;
            named.pieces.push(i);
        }
        for tie in &capture.ties {
            let component = component_rank[tie.component];
            let of = tensors.get(&(component, tie.of.as_str())).ok_or_else(|| missing(tie))?;
            let (sample, data_of) = (of.sample, of.data_of);
            let named = Named { position: 0, sample, pieces: Vec::new(), data_of };
            if tensors.insert((component, tie.name.as_str()), named).is_some() {
                let name = show(&capture.components[tie.component].name, &tie.name);
                return Err(Error::invalid(format!("tensor \"{name}\" is named twice")));
            }
        }
        let mut canonical = BTreeMap::new();
        for (position, (key, named)) in tensors.iter_mut().enumerate() {
            named.position = position;
            named.pieces.sort_by_key(|i| &capture.pieces[*i].extent.offsets);
            check_no_overlap(capture, &named.pieces)?;
            // Keys come in rising order, so the first of a tie group is its least.
            canonical.entry(named.data_of).or_insert(*key);
        }
        let stores = writers(capture, &component_rank);
        Ok(Self { tensors, canonical, stores })
    }

    /// The least tensor of the tie group of `key`, which gets the shards.
    fn canonical<'o>(&'o self, key: &'o Key<'c>) -> &'o Key<'c> {
        let data_of = self.tensors.get(key).map_or(key, |named| &named.data_of);
        self.canonical.get(data_of).unwrap_or(key)
    }

    /// The pieces that hold the data of `key`.
    fn data(&self, key: &Key<'c>) -> &[usize] {
        let data_of = self.tensors.get(key).map_or(key, |named| &named.data_of);
        self.tensors.get(data_of).map_or(&[], |named| &named.pieces)
    }
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
/// write. Every rank names the same replicated tensors, so every rank computes the same.
fn writers(capture: &Capture<'_>, component_rank: &[usize]) -> Vec<bool> {
    let mut stores = vec![true; capture.pieces.len()];
    let mut replicated: Vec<usize> =
        (0..stores.len()).filter(|i| capture.pieces[*i].replicated).collect();
    replicated.sort_by_key(|i| {
        let piece = &capture.pieces[*i];
        let name = (component_rank[piece.component], piece.name.as_str());
        (Reverse(piece.data.len()), name)
    });
    let world = capture.world();
    let mut ranks: BinaryHeap<Reverse<(u64, u32)>> =
        (0..world.size).map(|rank| Reverse((0, rank))).collect();
    for i in replicated {
        let Some(Reverse((load, rank))) = ranks.pop() else { continue };
        stores[i] = rank == world.rank;
        ranks.push(Reverse((load + capture.pieces[i].data.len() as u64, rank)));
    }
    stores
}
