//! Where each captured byte goes: shards to chunks, chunks to segments of the arena.

mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lastgood_format::index::{Component, Shard, Tensor};
use lastgood_format::{Dtype, Error, Result};
use order::{Order, component_ranks};

use super::updates::{Linked, Members, RowRole, Step, Updates};
use crate::state::{Capture, Piece, Tie, World};

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
    /// Of which capture it is.
    pub(super) of: Seen,
}

/// What a plan was made of, as far as the plan itself does not tell it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    world: Option<World>,
    /// The tensor of each piece, and its shard, or [`NONE`] if another rank stores it.
    pieces: Vec<(u32, u32)>,
    ties: Vec<Tie>,
    /// What optimizers did is other with every step.
    updates: bool,
}

const NONE: u32 = u32::MAX;

impl Plan {
    /// Lays out `capture` in chunks of `chunk_bytes`.
    pub(crate) fn new(capture: &Capture<'_>, chunk_bytes: usize) -> Result<Self> {
        let order = Order::new(capture)?;
        let mut plan = Self { components: components(capture), ..Self::default() };
        plan.of = Seen {
            world: Some(capture.world()),
            pieces: vec![(NONE, NONE); capture.pieces.len()],
            ties: capture.ties.clone(),
            updates: !capture.updates.is_empty(),
        };
        plan.tensors.reserve(order.tensors.len());
        plan.shards.reserve(capture.pieces.len());
        let updates = Updates::new(capture, &order.stores, chunk_bytes);
        let grouped = updates.groups.iter().flatten().flat_map(|linked| linked.members.each());
        let grouped = grouped.map(|(_, piece)| piece).collect();
        let mut layout = Layout { chunk_bytes, shared: None, grouped };
        let mut component = None;
        for (i, named) in order.tensors.iter().enumerate() {
            let key = named.key;
            if component != Some(key.0) {
                component = Some(key.0);
                layout.shared = None;
            }
            let begin = index_of(plan.shards.len())?;
            let number = index_of(i)?;
            order.own(i).iter().for_each(|piece| plan.of.pieces[*piece].0 = number);
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

    /// True if this is the plan of `capture` as well: most saves name what the one before named, and to compare that
    /// is far cheaper than to lay it out.
    pub(crate) fn is_of(&self, capture: &Capture<'_>) -> bool {
        let Seen { world, pieces, ties, updates } = &self.of;
        let alike = *world == Some(capture.world())
            && !updates
            && capture.updates.is_empty()
            && pieces.len() == capture.pieces.len()
            && *ties == capture.ties
            && self.components == components(capture);
        let ranks = component_ranks(capture);
        let is_same = |(piece, (tensor, shard)): (&Piece<'_>, &(u32, u32))| {
            let i = *tensor as usize;
            let Some(tensor) = self.tensors.get(i) else { return false };
            tensor.component as usize == ranks[piece.component]
                && tensor.name == piece.name
                && tensor.dtype == piece.dtype
                && tensor.shape == piece.shape
                && self.replicated[i] == piece.replicated
                // What another rank stores is replicated, and so whole.
                && self.shards.get(*shard as usize).is_none_or(|shard| shard.extent == piece.extent)
        };
        alike && capture.pieces.iter().zip(pieces).all(is_same)
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
}

impl Layout {
    fn place(&mut self, plan: &mut Plan, piece: &Piece<'_>, i: usize) -> Result<()> {
        let bytes = piece.data.len();
        plan.of.pieces[i].1 = index_of(plan.shards.len())?;
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
        let Some(Linked { members, .. }) = group.first() else { return Ok(()) };
        let step = group.iter().map(|linked| linked.step).max_by_key(|step| step.1);
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
                if let Some(shard) = plan.shards.get_mut(plan.of.pieces[piece].1 as usize) {
                    (shard.first_chunk, shard.chunk_offset) = (index_of(row.row)?, index_of(used)?);
                }
                used += bytes;
            }
            *slot = row.row;
        }
        if let Some(step) = step {
            plan.link(step, rows);
        }
        Ok(())
    }

    /// The chunks of large shards of the same place follow each other alike.
    fn link_large(&self, plan: &mut Plan, linked: &Linked) {
        let shard = |plan: &Plan, piece: usize| plan.of.pieces[piece].1 as usize;
        let first = |piece: usize| plan.shards[shard(plan, piece)].first_chunk as usize;
        let mut rows = linked.members;
        for (_, slot) in rows.each_mut() {
            *slot = first(*slot);
        }
        let mut left = plan.bytes_of(shard(plan, linked.members.weight));
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
