//! What `Compression::Auto` comes to: chosen after each save for the next one, from what was measured.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood_format::chunk::{self, Guess};
use lastgood_format::delta::{self, Prediction, Rule};

use super::arena::Segment;
use super::plan::Plan;
use super::updates::RowRole;
use super::{CHAIN_DEFAULT, Compression};
use crate::state::Origin;

/// The key of the metadata that says what was chosen, and why.
pub(crate) const KEY: &str = "lastgood.compression";

/// Below this speed of the store, in bytes a second, it is sooner done with fewer bytes.
const SLOW_STORE: f64 = 0.4e9;

/// Deltas are begun with if a sample takes at most this share of what it takes without them, and left if it takes more than
/// the other: a second copy of the state, and twice the work, for less is not worth it.
const BEGIN: f64 = 0.8;
const LEAVE: f64 = 0.9;

/// So much memory must stay free, or a quarter of the state if that is more: what a training takes is not even.
const MARGIN_BYTES: u64 = 1 << 30;

/// The level of zstd.
const LEVEL: i32 = 1;

/// So many places of the state are looked at.
const SAMPLED_ROWS: usize = 24;

/// What is known when the next save is thought of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// The speed of the store, in bytes a second.
    pub(crate) store: Option<f64>,
    /// What a sample of what has changed takes with deltas, of what it takes without.
    pub(crate) share: Option<f64>,
    /// The bytes of memory that can be had.
    pub(crate) memory: Option<u64>,
    /// The bytes that were captured.
    pub(crate) state: u64,
    /// True if the save before is in memory already.
    pub(crate) kept: bool,
}

/// What the next save does, and why, for a person.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) compression: Compression,
    pub(crate) why: String,
}

impl Choice {
    pub(crate) fn new(facts: &Facts) -> Self {
        let (compression, why) = choose(facts);
        let name = match compression {
            Compression::Delta { .. } => "delta",
            Compression::Zstd(_) => "zstd:1",
            _ => "off",
        };
        Self { compression, why: format!("{name}: {why}") }
    }
}

/// True if fewer bytes are sooner durable.
pub(crate) fn is_slow(store: Option<f64>) -> bool {
    store.is_some_and(|speed| speed < SLOW_STORE)
}

fn choose(facts: &Facts) -> (Compression, String) {
    let Some(speed) = facts.store else {
        return (Compression::Off, "how fast the store is is not known yet".into());
    };
    let store = format!("the store takes {} a second", show(speed));
    if !is_slow(facts.store) {
        return (Compression::Off, format!("{store}, so that encoding would take longer"));
    }
    let zstd = |why: &str| (Compression::Zstd(LEVEL), format!("{store}; {why}"));
    let Some(share) = facts.share else {
        return zstd("what deltas would save is not known yet");
    };
    let deltas = format!("deltas of a sample take {share:.2} of what it takes without");
    if share > if facts.kept { LEAVE } else { BEGIN } {
        return zstd(&format!("{deltas}, which is not worth a second copy of the state"));
    }
    let Some(memory) = facts.memory else {
        return zstd(&format!("{deltas}, but how much memory is free is not known"));
    };
    let more = if facts.kept { 0 } else { facts.state };
    let (left, margin) = (memory.saturating_sub(more), MARGIN_BYTES.max(facts.state / 4));
    let left_text = format!("{} of memory stay free", show(left as f64));
    if left < margin {
        return zstd(&format!("{deltas}, but only {left_text}, less than {}", show(margin as f64)));
    }
    (Compression::Delta { chain: CHAIN_DEFAULT }, format!("{store}; {deltas}; {left_text}"))
}

fn show(bytes: f64) -> String {
    match bytes {
        _ if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        _ => format!("{:.0} MB", bytes / 1e6),
    }
}

/// Parts of what a save has captured, to see at the next one what deltas would save.
#[derive(Debug)]
pub(crate) struct Sample {
    plan: Arc<Plan>,
    parts: BTreeMap<usize, Vec<u8>>,
}

impl Sample {
    /// Of rows that are spread over the plan, with those that an optimizer changed with them.
    pub(crate) fn new(plan: &Arc<Plan>, segments: &[Segment]) -> Self {
        let count = plan.rows.len().min(SAMPLED_ROWS);
        let spread = (0..count).map(|i| i * plan.rows.len() / count);
        let rows = spread.flat_map(|row| match plan.roles.get(&row) {
            Some(role) => role.rows.each().map(|(_, row)| row).collect(),
            None => vec![row],
        });
        let part = |row: usize| {
            let place = plan.rows.get(row)?;
            let bytes = segments.get(place.segment)?.bytes();
            let sample = chunk::sample(place.bytes);
            let begin = place.offset + sample.start;
            Some((row, bytes.get(begin..begin + sample.len())?.to_vec()))
        };
        Self { plan: Arc::clone(plan), parts: rows.filter_map(part).collect() }
    }

    /// What the parts that are others than `before` take as deltas, of what they take without; `None` if that cannot be
    /// told.
    pub(crate) fn share(&self, before: &Self) -> Option<f64> {
        let same = Arc::ptr_eq(&self.plan, &before.plan) || self.plan.rows == before.plan.rows;
        if !same {
            return None;
        }
        let (mut plain, mut best) = (0, 0);
        for (row, bytes) in &self.parts {
            let old = before.parts.get(row).filter(|old| old.len() == bytes.len());
            let Some(old) = old.filter(|old| *old != bytes) else { continue };
            let width = usize::from(self.plan.rows[*row].width);
            let without = Guess::new(bytes, width, LEVEL).bytes();
            let ways = [Rule::Difference, Rule::Xor].map(Prediction::plain);
            let mut sizes: Vec<_> =
                ways.iter().map(|way| estimate(bytes, width, way, &[old])).collect();
            sizes.extend(self.predicted(before, *row, bytes));
            plain += without;
            best += sizes.into_iter().flatten().fold(without, usize::min);
        }
        (plain > 0).then(|| best as f64 / plain as f64)
    }

    /// What a row takes if the optimizer predicts it, in each way.
    fn predicted(&self, before: &Self, row: usize, bytes: &[u8]) -> Vec<Option<usize>> {
        let Some(RowRole { role, step: (optimizer, steps), rows }) = self.plan.roles.get(&row)
        else {
            return Vec::new();
        };
        let then = before.plan.roles.get(&row);
        if then.is_none_or(|then| then.step.1 + 1 != *steps) {
            return Vec::new();
        }
        let (from, ways) = optimizer.predictions(*role, *steps);
        let operands = from.into_iter().map(|from| match from {
            Origin::Before(role) => before.parts.get(&rows.of(role)?),
            Origin::Now(role) => self.parts.get(&rows.of(role)?),
        });
        match operands.collect::<Option<Vec<_>>>() {
            Some(operands) => ways.iter().map(|way| estimate(bytes, 4, way, &operands)).collect(),
            None => Vec::new(),
        }
    }
}

fn estimate(bytes: &[u8], width: usize, way: &Prediction, operands: &[&Vec<u8>]) -> Option<usize> {
    let operands: Vec<&[u8]> = operands.iter().map(|bytes| bytes.as_slice()).collect();
    delta::estimate(bytes, width, way, &operands, LEVEL).ok()
}

#[cfg(test)]
mod tests;
