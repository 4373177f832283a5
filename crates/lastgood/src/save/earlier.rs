//! What earlier saves have left for the next one: how fast the store is, and what they captured.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use lastgood_format::Hash;

use super::arena::{Arena, Segment};
use super::base::Base;
use super::choice::{self, Choice, Facts, Sample};
use super::deltas::{Deltas, Kept};
use super::pipeline::Written;
use super::plan::Plan;
use super::{Compression, SaveOptions};
use crate::preflight::machine::memory_available;
use crate::tier::{Slot, Tier};

/// What the writing thread knows of the saves before.
#[derive(Debug)]
pub(crate) struct Earlier {
    /// The measured speed of the store, in bytes a second.
    sink_speed: Option<f64>,
    /// What the newest checkpoint has captured, for deltas.
    kept: Option<Kept>,
    /// How many saves were begun.
    count: u64,
    /// What `Compression::Auto` comes to, and a part of what the newest checkpoint has captured, to choose by.
    choice: Choice,
    sample: Option<Sample>,
    /// What that has shown last, when some of it had changed.
    share: Option<f64>,
    /// Where in the memory tier the arena of deltas has its place.
    spare: Option<Slot>,
}

/// The segments of a save as they are captured.
type Segments = Receiver<(usize, Segment)>;

impl Earlier {
    /// Nothing is known. The arena that deltas need beside the others lies behind those in the memory tier.
    pub(crate) fn new(tier: Option<&Tier>, options: &SaveOptions) -> Self {
        Self {
            sink_speed: None,
            kept: None,
            count: 0,
            choice: Choice::new(&Facts::default()),
            sample: None,
            share: None,
            spare: tier.and_then(|tier| tier.slot(options.in_flight_max as u64)),
        }
    }

    /// What is done where `compression` is asked for.
    fn chosen(&self, compression: Compression) -> Compression {
        match compression {
            Compression::Auto => self.choice.compression,
            asked => asked,
        }
    }

    /// What was chosen for the next save and why, if it was left to us.
    pub(super) fn why(&self, compression: Compression) -> Option<&str> {
        (compression == Compression::Auto).then_some(&self.choice.why)
    }

    /// True if it helps to know what optimizers did.
    pub(super) fn predicts(&self, compression: Compression) -> bool {
        match compression {
            Compression::Auto => choice::is_slow(self.sink_speed),
            asked => matches!(asked, Compression::Delta { .. }),
        }
    }

    /// The level of zstd, if chunks are to be compressed.
    pub(super) fn level(&self, compression: Compression) -> Option<i32> {
        match self.chosen(compression) {
            Compression::Off | Compression::Auto => None,
            Compression::Zstd(level) => Some(level),
            Compression::Delta { .. } => Some(1),
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
        let Compression::Delta { chain } = self.chosen(compression) else {
            return (None, segments);
        };
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

    /// Keeps what checkpoint `id` has captured if the next save may be made of it, and gives the memory that is free for
    /// that save; none if that of this one is gone.
    pub(super) fn keep(
        &mut self,
        id: Hash,
        plan: &Arc<Plan>,
        arena: Option<Arena>,
        options: &SaveOptions,
    ) -> Option<Arena> {
        let arena = arena?;
        if options.compression == Compression::Auto {
            self.choose(plan, &arena);
        }
        if !matches!(self.chosen(options.compression), Compression::Delta { .. }) {
            self.spare =
                self.kept.take().and_then(|kept| kept.arena.retire()).or(self.spare.take());
            return Some(arena);
        }
        let kept = Kept { checkpoint: id, plan: Arc::clone(plan), arena };
        let before = self.kept.replace(kept);
        Some(match before {
            Some(before) => before.arena,
            None => Arena::new(options.arena_bytes_max, self.spare.take()),
        })
    }

    /// Chooses what the next save does.
    fn choose(&mut self, plan: &Arc<Plan>, arena: &Arena) {
        let mut facts = Facts {
            store: self.sink_speed,
            state: plan.arena_bytes(),
            kept: self.kept.is_some(),
            ..Facts::default()
        };
        if choice::is_slow(self.sink_speed) {
            let sample = Sample::new(plan, &arena.filled());
            let found = self.sample.as_ref().and_then(|before| sample.share(before));
            self.share = found.or(self.share);
            facts.share = self.share;
            facts.memory = memory_available();
            self.sample = Some(sample);
        }
        self.choice = Choice::new(&facts);
    }
}
