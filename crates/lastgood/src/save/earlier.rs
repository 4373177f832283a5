//! What earlier saves have left for the next one: how fast the store is, and what they captured.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use lastgood_format::Hash;

use super::Compression;
use super::arena::{Arena, Segment};
use super::base::Base;
use super::deltas::{Deltas, Kept};
use super::pipeline::Written;
use super::plan::Plan;

/// Below this speed of the store, in bytes a second, `Compression::Auto` compresses.
const SLOW_STORE: f64 = 0.4e9;

/// What the writing thread knows of the saves before.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    /// The measured speed of the store, in bytes a second.
    sink_speed: Option<f64>,
    /// What the newest checkpoint has captured, for deltas.
    kept: Option<Kept>,
    /// How many saves were begun.
    count: u64,
}

/// The segments of a save as they are captured.
type Segments = Receiver<(usize, Segment)>;

impl Earlier {
    /// The level of zstd, if chunks are to be compressed.
    pub(super) fn level(&self, compression: Compression) -> Option<i32> {
        match compression {
            Compression::Off => None,
            Compression::Zstd(level) => Some(level),
            Compression::Delta { .. } => Some(1),
            Compression::Auto => self.sink_speed.filter(|speed| *speed < SLOW_STORE).map(|_| 1),
        }
    }

    /// Only puts that are large enough to be about speed and not about latency count.
    pub(super) fn measure(&mut self, written: &Written) {
        if written.put_bytes >= 8 << 20 {
            let speed = written.put_bytes as f64 / written.put_time.as_secs_f64().max(1e-6);
            self.sink_speed = Some(self.sink_speed.map_or(speed, |old| 0.5 * old + 0.5 * speed));
        }
    }

    /// What of the next save may be stored as deltas against `base`, and its segments, which were waited for if some
    /// chunks may be predicted from others.
    pub(super) fn deltas(
        &mut self,
        plan: &Arc<Plan>,
        base: Option<&Arc<Base>>,
        compression: Compression,
        segments: Segments,
    ) -> (Option<Deltas>, Segments) {
        let number = self.count;
        self.count += 1;
        let Compression::Delta { chain } = compression else { return (None, segments) };
        let mut deltas = Deltas::new(plan, self.kept.as_ref(), base, (number, chain));
        if deltas.is_empty() {
            return (None, segments);
        }
        if !deltas.needs_all() {
            return (Some(deltas), segments);
        }
        let all: Vec<(usize, Segment)> = segments.into_iter().collect();
        let captured: Vec<Segment> = all.iter().map(|(_, segment)| segment.clone()).collect();
        // A capture that failed ends early: the pipeline tells it.
        if captured.len() == plan.segments.len() {
            deltas.set_captured(plan, &captured);
        }
        let (full, segments) = channel();
        for segment in all {
            // The other end is in this very function.
            full.send(segment).unwrap_or_default();
        }
        (Some(deltas), segments)
    }

    /// Keeps what checkpoint `id` has captured, if its memory is still there, and gives the memory that is free now.
    pub(super) fn keep(
        &mut self,
        id: Hash,
        plan: &Arc<Plan>,
        arena: Option<Arena>,
    ) -> Option<Arena> {
        let kept = Kept { checkpoint: id, plan: Arc::clone(plan), arena: arena? };
        self.kept.replace(kept).map(|before| before.arena)
    }
}
