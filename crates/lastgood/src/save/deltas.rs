//! Which chunks of a save may be deltas of those of the save before, and of which.
//!
//! What the save before captured is kept in memory, and is believed only where it still has the hash that was
//! committed: a bit that flipped there must not become part of a checkpoint.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use lastgood_format::delta::{self, Operand, Prediction, Rule};
use lastgood_format::{Hash, Result, chunk};

use super::arena::{Arena, Segment};
use super::base::{Base, Stored};
use super::copies;
use super::pipeline::OperandRow;
use super::plan::{Plan, Row};
use super::updates::RowRole;
use crate::state::Origin;

/// A delta must be this much smaller than what the chunk is without others, in hundredths.
const WORTH: usize = 97;

/// The same of a delta of the chunk that a chain begins with, which is not in memory.
const WORTH_READING: usize = 50;

/// Where the newest link of a chain takes no more than one in so many bytes, not much has changed since the first one.
const SPARSE: u32 = 16;

/// What a committed save has captured.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) checkpoint: Hash,
    pub(crate) plan: Arc<Plan>,
    pub(crate) arena: Arena,
}

/// The deltas of one save.
#[derive(Debug)]
pub(crate) struct Deltas {
    /// What stores the save before, if that is in memory.
    base: Option<Arc<Base>>,
    /// The rows of the save before.
    before: Vec<Held>,
    /// The rows of this save, if some of them may be predicted from others.
    now: Vec<Held>,
    /// The rows of numbers that a row is a copy of.
    copies: BTreeMap<usize, [usize; 2]>,
    /// True if there may be such rows.
    may_copy: bool,
    /// For each row of the plan the row of the save before that holds the same part of the state.
    places: Vec<Option<usize>>,
    /// What the rows are for optimizers that have taken one step since the save before.
    roles: BTreeMap<usize, RowRole>,
    /// Which save this is, and once in how many each chunk is stored whole.
    turn: (u64, u64),
}

/// A row in memory.
#[derive(Debug)]
struct Held {
    segment: Segment,
    range: Range<usize>,
    /// Its hash, once somebody has asked.
    hash: OnceLock<Hash>,
}

impl Held {
    fn bytes(&self) -> &[u8] {
        &self.segment.bytes()[self.range.clone()]
    }

    fn operand(&self) -> Operand<'_> {
        let bytes = self.bytes();
        let hash = *self.hash.get_or_init(|| Hash::of(bytes));
        Operand { hash, bytes }
    }
}

/// A chunk as a delta.
#[derive(Debug)]
pub(crate) struct Delta<'d> {
    pub(crate) stored: Vec<u8>,
    pub(crate) operands: Vec<Operand<'d>>,
    pub(crate) rows: Vec<OperandRow>,
}

/// The chunk that a chain begins with, as it was read.
#[derive(Debug)]
pub(crate) struct Root {
    /// Its row in the base.
    pub(crate) row: usize,
    pub(crate) hash: Hash,
    pub(crate) bytes: Vec<u8>,
}

/// What a chunk can be predicted from, and in which ways.
struct Source<'d> {
    operands: Vec<Operand<'d>>,
    rows: Vec<OperandRow>,
    ways: Vec<Prediction>,
}

/// Names the part of the state that a row begins with: component, tensor, offsets of the shard, and which of its chunks.
type Part<'p> = (&'p str, &'p str, &'p [u64], u32);

impl Deltas {
    /// The deltas of `plan` against what was kept, if `base` stores that. Every chunk is stored whole once in `chain`
    /// saves; `number` counts them, and not all of them in the same save.
    pub(crate) fn new(
        plan: &Arc<Plan>,
        kept: Option<&Kept>,
        base: Option<&Arc<Base>>,
        (number, chain): (u64, u32),
    ) -> Self {
        let mut deltas = Self {
            base: None,
            before: Vec::new(),
            now: Vec::new(),
            copies: BTreeMap::new(),
            may_copy: copies::may_be(plan),
            places: vec![None; plan.rows.len()],
            roles: BTreeMap::new(),
            turn: (number, u64::from(chain.max(1))),
        };
        let (Some(kept), Some(base)) = (kept, base) else { return deltas };
        if kept.checkpoint != base.checkpoint {
            return deltas;
        }
        let before = &kept.plan;
        let same = Arc::ptr_eq(before, plan)
            || (before.tensors == plan.tensors
                && before.shards == plan.shards
                && before.rows == plan.rows);
        deltas.places = match same {
            true => (0..plan.rows.len()).map(Some).collect(),
            false => places(before, plan),
        };
        let follows = |role: &RowRole| {
            let of = deltas.places[role.rows.weight].and_then(|row| before.roles.get(&row));
            of.is_some_and(|of| of.step.1 + 1 == role.step.1)
        };
        let roles = plan.roles.iter().filter(|(_, role)| follows(role));
        deltas.roles = roles.map(|(row, role)| (*row, role.clone())).collect();
        deltas.before = held(before, &kept.arena.filled());
        deltas.base = Some(Arc::clone(base));
        deltas
    }

    /// True if there is nothing to predict a chunk from.
    pub(crate) fn is_empty(&self) -> bool {
        self.base.is_none() && !self.may_copy
    }

    /// True if some chunks of this save may be predicted from others of it.
    pub(crate) fn needs_all(&self) -> bool {
        self.may_copy || !self.roles.is_empty()
    }

    /// What was captured, all of it.
    pub(crate) fn set_captured(&mut self, plan: &Plan, segments: &[Segment]) {
        self.now = held(plan, segments);
        let bytes = |row: usize| self.now.get(row).map(Held::bytes);
        self.copies = if self.may_copy { copies::find(plan, bytes) } else { BTreeMap::new() };
    }

    /// Where it is a row's turn to be stored whole and little of it has changed: the row of the base that its chain
    /// begins with, to be read. A delta of that ends the chain as well.
    pub(crate) fn root(&self, row: usize) -> Option<(usize, &Stored)> {
        if !self.is_due(row) || self.roles.contains_key(&row) || self.copies.contains_key(&row) {
            return None;
        }
        let (base, of) = (self.base.as_ref()?, self.places.get(row).copied().flatten()?);
        let newest = base.row(of)?.chunk;
        let root = base.root(of)?;
        let stored = base.row(root)?;
        let fits = newest.stored_bytes.saturating_mul(SPARSE) <= newest.decoded_bytes
            && stored.chunk.decoded_bytes == newest.decoded_bytes;
        fits.then_some((root, stored))
    }

    /// `bytes`, which are row `row` of the plan, as a delta; `None` if it is none, or if none is worth it beside the
    /// `plain` bytes that a sample of it takes without others. `root` is what [`Deltas::root`] asks for.
    ///
    /// # Errors
    /// `Internal` if the encoder fails.
    pub(crate) fn of<'d>(
        &'d self,
        row: usize,
        bytes: &[u8],
        (width, level): (usize, i32),
        (plain, root): (usize, Option<&'d Root>),
    ) -> Result<Option<Delta<'d>>> {
        // A copy is no deeper than what it is a copy of, which has its turn.
        let sources = match self.is_due(row) {
            true => [self.copied(row), root.map(Source::root), None],
            false => [self.copied(row), self.optimizer(row), self.before(row)],
        };
        let sample = chunk::sample(bytes.len());
        let worth = if root.is_some() { WORTH_READING } else { WORTH };
        let mut best = (plain * worth / 100, None);
        for source in sources.iter().flatten().filter(|source| source.fits(bytes.len())) {
            for way in &source.ways {
                let (sample, samples) = source.samples(way, bytes, sample.clone());
                let size = delta::estimate(sample, width, way, &samples, level)?;
                if size < best.0 {
                    best = (size, Some((source, way)));
                }
            }
        }
        let Some((source, way)) = best.1 else { return Ok(None) };
        let Source { operands, rows, .. } = source;
        let stored = delta::encode(bytes, width, way, operands, level)?;
        Ok(stored.map(|stored| Delta { stored, operands: operands.clone(), rows: rows.clone() }))
    }

    /// True if it is this row's turn to be stored whole, together with those that are predicted from each other; where it
    /// was stored so by the save before, that can wait.
    fn is_due(&self, row: usize) -> bool {
        let (number, chain) = self.turn;
        let first = self.roles.get(&row).map_or(row, |role| role.rows.weight);
        let of = self.places.get(first).copied().flatten();
        let depth = self.base.as_ref().zip(of).map_or(0, |(base, of)| base.depth(of));
        depth > 0 && (number + first as u64).is_multiple_of(chain)
    }

    /// The same part of the state a save before.
    fn before(&self, row: usize) -> Option<Source<'_>> {
        let (operand, row) = self.committed(row)?;
        Some(Source::alike(operand, row))
    }

    /// The numbers of this save that it is a copy of.
    fn copied(&self, row: usize) -> Option<Source<'_>> {
        let of = self.copies.get(&row)?;
        let operands = of.iter().map(|row| self.now.get(*row).map(Held::operand));
        let operands = operands.collect::<Option<Vec<_>>>()?;
        let rows = of.map(OperandRow::Own).to_vec();
        Some(Source { operands, rows, ways: vec![Prediction::plain(Rule::Cast)] })
    }

    /// What the optimizer must have made of it.
    fn optimizer(&self, row: usize) -> Option<Source<'_>> {
        let RowRole { role, step: (optimizer, steps), rows } = self.roles.get(&row)?;
        let (from, ways) = optimizer.predictions(*role, *steps);
        let found = from.into_iter().map(|from| match from {
            Origin::Before(role) => self.committed(rows.of(role)?),
            Origin::Now(role) => {
                let row = rows.of(role)?;
                Some((self.now.get(row)?.operand(), OperandRow::Own(row)))
            }
        });
        let (operands, rows) = found.collect::<Option<Vec<_>>>()?.into_iter().unzip();
        Some(Source { operands, rows, ways })
    }

    /// The row of the save before in the place of `row`, if it is still what was committed.
    fn committed(&self, row: usize) -> Option<(Operand<'_>, OperandRow)> {
        let row = self.places.get(row).copied().flatten()?;
        let operand = self.before.get(row)?.operand();
        // What was reused from elsewhere may be deep already.
        let base = self.base.as_ref()?;
        let is_right = operand.hash == base.row(row)?.chunk.hash
            && u64::from(base.depth(row)) < 2 * self.turn.1;
        is_right.then_some((operand, OperandRow::Base(row)))
    }
}

impl<'d> Source<'d> {
    /// An earlier state of the same.
    fn alike(operand: Operand<'d>, row: OperandRow) -> Self {
        let ways = [Rule::Difference, Rule::Xor].map(Prediction::plain).to_vec();
        Self { operands: vec![operand], rows: vec![row], ways }
    }

    fn root(root: &'d Root) -> Self {
        let operand = Operand { hash: root.hash, bytes: &root.bytes };
        Self::alike(operand, OperandRow::Base(root.row))
    }

    /// A part of `bytes`, and the parts of the operands that predict it.
    fn samples<'s>(
        &'s self,
        way: &Prediction,
        bytes: &'s [u8],
        sample: Range<usize>,
    ) -> (&'s [u8], Vec<&'s [u8]>) {
        if way.rule != Rule::Cast {
            let of = self.operands.iter().map(|operand| &operand.bytes[sample.clone()]).collect();
            return (&bytes[sample], of);
        }
        // The middle lies where one operand ends and the next begins.
        let half = (sample.len() / 2).min(bytes.len() / 2) & !3;
        let middle = bytes.len() / 2;
        let (before, behind) = (&self.operands[0].bytes, &self.operands[1].bytes);
        let of = vec![&before[before.len() - 2 * half..], &behind[..2 * half]];
        (&bytes[middle - half..middle + half], of)
    }

    fn fits(&self, bytes: usize) -> bool {
        !self.operands.is_empty()
            && self.operands.iter().all(|operand| operand.bytes.len() == bytes)
    }
}

fn held(plan: &Plan, segments: &[Segment]) -> Vec<Held> {
    let held = |row: &Row| {
        let segment = segments.get(row.segment)?.clone();
        let range = row.offset..row.offset + row.bytes;
        (range.end <= segment.bytes().len()).then_some(Held {
            segment,
            range,
            hash: OnceLock::new(),
        })
    };
    plan.rows.iter().map_while(held).collect()
}

/// For each row of `plan` that of `before` which begins with the same part of the state.
fn places(before: &Plan, plan: &Plan) -> Vec<Option<usize>> {
    let there: BTreeMap<Part<'_>, usize> = parts(before).into_iter().collect();
    let mut places = vec![None; plan.rows.len()];
    for (part, row) in parts(plan) {
        let of = there.get(&part).copied();
        places[row] = of.filter(|of| before.rows[*of].bytes == plan.rows[row].bytes);
    }
    places
}

/// The part of the state that each row of `plan` begins with.
fn parts(plan: &Plan) -> Vec<(Part<'_>, usize)> {
    let mut parts = Vec::with_capacity(plan.rows.len());
    for tensor in &plan.tensors {
        let component = &plan.components[tensor.component as usize].name;
        for shard in &plan.shards[tensor.shards.start as usize..tensor.shards.end as usize] {
            if shard.chunk_offset != 0 || shard.extent.sizes.contains(&0) {
                continue;
            }
            let bytes = shard.extent.elements().and_then(|count| tensor.dtype.bytes_of(count));
            let mut left = bytes.unwrap_or(0);
            let rows = plan.rows.iter().enumerate().skip(shard.first_chunk as usize);
            for (i, (row, place)) in (0..).zip(rows) {
                if left == 0 {
                    break;
                }
                let part = (component.as_str(), tensor.name.as_str());
                parts.push(((part.0, part.1, shard.extent.offsets.as_slice(), i), row));
                left = left.saturating_sub(place.bytes as u64);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests;
