//! Fingerprints of what was captured, tensor by tensor, for the journal: computed on the copy, and only where
//! bytes have changed.

use std::collections::BTreeSet;
use std::sync::Arc;

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
    plan: Arc<Plan>,
    pieces: Arc<[Vec<Piece>]>,
    rows: Vec<(Hash, Sums)>,
}

/// Finds the fingerprints of one capture.
#[derive(Debug)]
pub(crate) struct Digesting {
    /// By row.
    pieces: Arc<[Vec<Piece>]>,
    before: Option<Arc<Before>>,
}

impl Digesting {
    /// Of what `plan` lays out. Rows that are as they were `before` are not looked at.
    pub(crate) fn new(plan: &Arc<Plan>, before: Option<Arc<Before>>) -> Result<Self> {
        let is_same = |before: &Arc<Before>| {
            Arc::ptr_eq(&before.plan, plan)
                || (before.plan.tensors == plan.tensors && before.plan.shards == plan.shards)
        };
        let before = before.filter(is_same);
        let pieces = match &before {
            Some(before) => Arc::clone(&before.pieces),
            None => pieces(plan)?.into(),
        };
        Ok(Self { pieces, before })
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
        self.pieces[row].iter().map(piece).collect()
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

/// The parts of shards that lie in each row.
fn pieces(plan: &Plan) -> Result<Vec<Vec<Piece>>> {
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
    Ok(rows)
}

/// What to remember for the next save.
pub(crate) fn remember(
    plan: &Arc<Plan>,
    digesting: &Digesting,
    rows: Vec<(Hash, Sums)>,
) -> Arc<Before> {
    let (plan, pieces) = (Arc::clone(plan), Arc::clone(&digesting.pieces));
    Arc::new(Before { plan, pieces, rows })
}

/// The part of the state that one rank holds, as the journal tells it.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    /// The layouts that were told.
    told: BTreeSet<Hash>,
    /// The plan that was told of last, and its layout.
    last: Option<(Arc<Plan>, Hash)>,
}

impl Teller {
    /// Records the fingerprints of this rank's part of every tensor at `step`: the table of names if it is
    /// another one than before, and the sums in its order. `source` says what was captured for.
    pub(crate) fn tell(
        &mut self,
        (journal, lane): (&Journal, Lane),
        plan: &Arc<Plan>,
        sums: impl IntoIterator<Item = (u32, Fingerprint)>,
        (step, source): (u64, &str),
    ) -> Result<()> {
        let mut found = vec![Fingerprint::ZERO; plan.tensors.len()];
        for (tensor, sum) in sums {
            found[tensor as usize] += sum;
        }
        let layout = self.layout((journal, lane), plan)?;
        let layout_bytes = Value::from(&layout.as_bytes()[..16]);
        let held = found.iter().zip(&plan.tensors);
        let held = held.filter(|(_, tensor)| !tensor.shards.is_empty());
        let sums: Vec<[u8; 16]> = held.map(|(sum, _)| sum.to_bytes()).collect();
        let parts: Vec<&[[u8; 16]]> = match sums.is_empty() {
            true => vec![&[]],
            false => sums.chunks(EVENT_BYTES / 16).collect(),
        };
        let count = parts.len() as u64;
        for (i, part) in (0u64..).zip(parts) {
            append(
                (journal, lane),
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

    /// The layout of `plan`, which is recorded unless it was before.
    fn layout(&mut self, to: (&Journal, Lane), plan: &Arc<Plan>) -> Result<Hash> {
        if let Some((last, layout)) = &self.last
            && Arc::ptr_eq(last, plan)
        {
            return Ok(*layout);
        }
        let held = plan.tensors.iter().enumerate().filter(|(_, held)| !held.shards.is_empty());
        let names: Vec<Value> = held.map(|(i, _)| describe(plan, i)).collect();
        let layout = Hash::of(&Value::Array(names.clone()).encode()?);
        if !self.told.contains(&layout) {
            let parts = cut(names)?;
            let count = parts.len() as u64;
            for (i, part) in (0u64..).zip(parts) {
                append(
                    to,
                    Kind::STATE_LAYOUT,
                    Value::map([
                        ("layout", (&layout.as_bytes()[..16]).into()),
                        ("part", i.into()),
                        ("parts", count.into()),
                        ("tensors", Value::Array(part)),
                    ]),
                )?;
            }
            self.told.insert(layout);
        }
        self.last = Some((Arc::clone(plan), layout));
        Ok(layout)
    }
}

fn append((journal, lane): (&Journal, Lane), kind: Kind, value: Value) -> Result<()> {
    journal.append(&Event { lane, kind, step: 0, value }).map(drop)
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
