//! Which chunks of a save may be deltas of those of the save before, and of which.
//!
//! What the save before captured is kept in memory, and is believed only where it still has the hash that was
//! committed: a bit that flipped there must not become part of a checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood_format::delta::{self, Operand, Prediction, Rule};
use lastgood_format::{Hash, Result, chunk};

use super::arena::{Arena, Segment};
use super::base::Base;
use super::pipeline::OperandRow;
use super::plan::Plan;

/// A delta must be this much smaller than what the chunk is without others, in hundredths.
const WORTH: usize = 97;

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
    base: Arc<Base>,
    before: Arc<Plan>,
    segments: Vec<Segment>,
    /// For each row of the plan the row of the save before that holds the same part of the state, if it may be a
    /// delta of that.
    rows: Vec<Option<usize>>,
}

/// A chunk as a delta.
#[derive(Debug)]
pub(crate) struct Delta<'d> {
    pub(crate) stored: Vec<u8>,
    pub(crate) operands: Vec<Operand<'d>>,
    pub(crate) rows: Vec<OperandRow>,
}

/// Names the part of the state that a row begins with: component, tensor, offsets of the shard, and which of its chunks.
type Part<'p> = (&'p str, &'p str, &'p [u64], u32);

impl Deltas {
    /// The deltas of `plan` against what was kept, which `base` stores. Every chunk is stored whole once in `chain`
    /// saves; `number` counts them, and not all of them in the same save.
    pub(crate) fn new(
        plan: &Plan,
        kept: &Kept,
        base: &Arc<Base>,
        (number, chain): (u64, u32),
    ) -> Self {
        let chain = u64::from(chain.max(1));
        let before = &kept.plan;
        let same = before.tensors == plan.tensors
            && before.shards == plan.shards
            && before.rows == plan.rows;
        let places: BTreeMap<Part<'_>, usize> = match same {
            true => BTreeMap::new(),
            false => parts(before).into_iter().collect(),
        };
        let here: BTreeMap<usize, Part<'_>> = match same {
            true => BTreeMap::new(),
            false => parts(plan).into_iter().map(|(part, row)| (row, part)).collect(),
        };
        let rows = (0..plan.rows.len()).map(|row| {
            let of = if same { Some(row) } else { places.get(here.get(&row)?).copied() }?;
            let alike = before.rows.get(of)?.bytes == plan.rows[row].bytes;
            let is_due = (number + row as u64).is_multiple_of(chain);
            // What was reused from elsewhere may be deep already.
            let may = alike && !is_due && u64::from(base.depth(of)) < 2 * chain;
            may.then_some(of)
        });
        let rows = rows.collect();
        Self {
            base: Arc::clone(base),
            before: Arc::clone(before),
            segments: kept.arena.filled(),
            rows,
        }
    }

    /// `bytes`, which are row `row` of the plan, as a delta; `None` if it is none, or if none is worth it.
    ///
    /// # Errors
    /// `Internal` if the encoder fails.
    pub(crate) fn of(
        &self,
        row: usize,
        bytes: &[u8],
        (width, level): (usize, i32),
    ) -> Result<Option<Delta<'_>>> {
        let Some(before) = self.rows.get(row).copied().flatten() else { return Ok(None) };
        let Some(operand) = self.operand(before) else { return Ok(None) };
        let sample = chunk::sample(bytes.len());
        let mut best = (chunk::estimate(&bytes[sample.clone()], width, level) * WORTH / 100, None);
        for rule in [Rule::Difference, Rule::Xor] {
            let prediction = Prediction::plain(rule);
            let operands = [&operand.bytes[sample.clone()]];
            let size =
                delta::estimate(&bytes[sample.clone()], width, &prediction, &operands, level)?;
            if size < best.0 {
                best = (size, Some(prediction));
            }
        }
        let Some(prediction) = best.1 else { return Ok(None) };
        let operands = vec![operand];
        let stored = delta::encode(bytes, width, &prediction, &operands, level)?;
        Ok(stored.map(|stored| Delta { stored, operands, rows: vec![OperandRow::Base(before)] }))
    }

    /// Row `row` of the save before, if it is still what was committed.
    fn operand(&self, row: usize) -> Option<Operand<'_>> {
        let place = self.before.rows.get(row)?;
        let segment = self.segments.get(place.segment)?;
        let bytes = segment.bytes().get(place.offset..place.offset + place.bytes)?;
        let hash = self.base.row(row)?.chunk.hash;
        (Hash::of(bytes) == hash).then_some(Operand { hash, bytes })
    }
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
