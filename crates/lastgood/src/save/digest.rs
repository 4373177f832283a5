//! Fingerprints of what was captured, tensor by tensor, for the journal: computed on the copy, and only where
//! bytes have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lastgood_format::index::{Shard, Tensor};
use lastgood_format::journal::{Kind, Lane, Value};
use lastgood_format::{Error, Fingerprint, Hash, Result};

use super::arena::Segment;
use super::plan::Plan;
use crate::journal::{Event, Journal};

/// What a row of a plan counts in each tensor that it holds a part of.
pub(crate) type Sums = Vec<(u32, Fingerprint)>;

/// A table of a digest is cut into events of about so many bytes.
const EVENT_BYTES: usize = 256 << 10;

/// The part of a shard that lies in a row.
#[derive(Clone, Copy, Debug)]
struct Piece {
    tensor: u32,
    shard: u32,
    /// Where it begins in the shard.
    offset: u64,
    /// Where it lies in the row.
    begin: usize,
    bytes: usize,
}

/// What was found the last time, by row.
#[derive(Debug)]
pub(crate) struct Before {
    tensors: Vec<Tensor>,
    shards: Vec<Shard>,
    rows: Vec<(Hash, Sums)>,
}

/// Finds the fingerprints of one capture.
#[derive(Debug)]
pub(crate) struct Digesting {
    rows: Vec<Vec<Piece>>,
    before: Option<Arc<Before>>,
}

impl Digesting {
    /// Of what `plan` lays out. Rows that are as they were `before` are not looked at.
    pub(crate) fn new(plan: &Plan, before: Option<Arc<Before>>) -> Result<Self> {
        let mut rows = vec![Vec::new(); plan.rows.len()];
        for (tensor, named) in (0..).zip(&plan.tensors) {
            for shard in named.shards.clone() {
                let held = &plan.shards[shard as usize];
                let elements = held.extent.elements().and_then(|count| named.dtype.bytes_of(count));
                let all = elements.ok_or_else(|| Error::internal("a planned shard overflows"))?;
                let mut offset = 0;
                let mut row = held.first_chunk as usize;
                let mut begin = held.chunk_offset as usize;
                while offset < all {
                    let bytes = (plan.rows[row].bytes - begin).min((all - offset) as usize);
                    rows[row].push(Piece { tensor, shard, offset, begin, bytes });
                    offset += bytes as u64;
                    (row, begin) = (row + 1, 0);
                }
            }
        }
        let before =
            before.filter(|before| before.tensors == plan.tensors && before.shards == plan.shards);
        Ok(Self { rows, before })
    }

    /// What row `row` counts, whose bytes have this hash if it is known.
    pub(crate) fn row(
        &self,
        plan: &Plan,
        row: usize,
        bytes: &[u8],
        hash: Option<&Hash>,
    ) -> Result<Sums> {
        if let (Some(before), Some(hash)) = (&self.before, hash)
            && let Some((known, sums)) = before.rows.get(row)
            && known == hash
        {
            return Ok(sums.clone());
        }
        let piece = |piece: &Piece| {
            let tensor = &plan.tensors[piece.tensor as usize];
            let extent = &plan.shards[piece.shard as usize].extent;
            let part = &bytes[piece.begin..piece.begin + piece.bytes];
            let sum =
                Fingerprint::of_piece(tensor.dtype, &tensor.shape, extent, piece.offset, part)?;
            Ok((piece.tensor, sum))
        };
        self.rows[row].iter().map(piece).collect()
    }

    /// What a whole segment counts.
    pub(crate) fn segment(&self, plan: &Plan, i: usize, segment: &Segment) -> Result<Sums> {
        let mut sums = Sums::new();
        for row in plan.rows_of(i) {
            let at = plan.rows[row];
            let bytes = &segment.bytes()[at.offset..at.offset + at.bytes];
            sums.extend(self.row(plan, row, bytes, None)?);
        }
        Ok(sums)
    }
}

/// What to remember for the next save.
pub(crate) fn remember(plan: &Plan, rows: Vec<(Hash, Sums)>) -> Arc<Before> {
    let (tensors, shards) = (plan.tensors.clone(), plan.shards.clone());
    Arc::new(Before { tensors, shards, rows })
}

/// The part of the state that one rank holds, as the journal tells it.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    /// The layouts that were told.
    told: BTreeSet<Hash>,
}

impl Teller {
    /// Records the fingerprints of this rank's part of every tensor at `step`: the table of names if it is
    /// another one than before, and the sums in its order. `source` says what was captured for.
    pub(crate) fn tell(
        &mut self,
        (journal, lane): (&Journal, Lane),
        plan: &Plan,
        sums: impl IntoIterator<Item = (u32, Fingerprint)>,
        (step, source): (u64, &str),
    ) -> Result<()> {
        let mut found: BTreeMap<u32, Fingerprint> = (0..)
            .zip(&plan.tensors)
            .filter(|(_, tensor)| !tensor.shards.is_empty())
            .map(|(i, _)| (i, Fingerprint::ZERO))
            .collect();
        for (tensor, sum) in sums {
            *found.entry(tensor).or_default() += sum;
        }
        let names: Vec<Value> = found.keys().map(|i| describe(plan, *i as usize)).collect();
        let layout = Hash::of(&Value::Array(names.clone()).encode()?);
        let layout_bytes = Value::from(&layout.as_bytes()[..16]);
        let append = |kind, value| journal.append(&Event { lane, kind, step: 0, value }).map(drop);
        if !self.told.contains(&layout) {
            let parts = cut(names)?;
            let count = parts.len() as u64;
            for (i, part) in (0u64..).zip(parts) {
                append(
                    Kind::STATE_LAYOUT,
                    Value::map([
                        ("layout", layout_bytes.clone()),
                        ("part", i.into()),
                        ("parts", count.into()),
                        ("tensors", Value::Array(part)),
                    ]),
                )?;
            }
            self.told.insert(layout);
        }
        let sums: Vec<[u8; 16]> = found.values().map(|sum| sum.to_bytes()).collect();
        let parts: Vec<&[[u8; 16]]> = match sums.is_empty() {
            true => vec![&[]],
            false => sums.chunks(EVENT_BYTES / 16).collect(),
        };
        let count = parts.len() as u64;
        for (i, part) in (0u64..).zip(parts) {
            append(
                Kind::STATE_DIGEST,
                Value::map([
                    ("at", step.into()),
                    ("source", source.into()),
                    ("layout", layout_bytes.clone()),
                    ("part", i.into()),
                    ("parts", count.into()),
                    ("sums", part.concat().into()),
                ]),
            )?;
        }
        Ok(())
    }
}

/// Component, name, dtype, shape, and whether every rank holds all of it.
fn describe(plan: &Plan, i: usize) -> Value {
    let tensor = &plan.tensors[i];
    let component = plan.components.get(tensor.component as usize);
    Value::Array(vec![
        component.map_or("", |component| component.name.as_str()).into(),
        tensor.name.as_str().into(),
        tensor.dtype.name().into(),
        Value::Array(tensor.shape.iter().map(|size| Value::from(*size)).collect()),
        plan.replicated[i].into(),
    ])
}

/// Cuts a table into parts that fit into an event each.
fn cut(names: Vec<Value>) -> Result<Vec<Vec<Value>>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for name in names {
        let more = name.encode()?.len();
        if bytes + more > EVENT_BYTES && bytes > 0 {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        if let Some(part) = parts.last_mut() {
            part.push(name);
        }
    }
    Ok(parts)
}
