//! Saving: `capture → chunk → hash → reuse → codec → pack → put → index → commit`.
//!
//! The call copies the state into an arena; a thread of its own does the rest. What it writes can be
//! seen by nobody until the last rank's shard index is there and somebody has appended the commit.

mod arena;
mod base;
mod batches;
mod choice;
mod complete;
mod copies;
mod deltas;
mod digest;
mod earlier;
mod handle;
mod keeping;
mod packer;
mod pipeline;
mod plan;
mod shared;
mod updates;
mod witness;
mod worker;

use std::collections::BTreeMap;
use std::mem;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arena::{Arena, Segment};
pub(crate) use base::Base;
pub use complete::{Completed, complete};
pub(crate) use digest::Teller;
pub(crate) use earlier::Earlier;
pub use handle::{SaveHandle, SaveStatus};
use lastgood_format::chunk::{CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
use lastgood_format::key::SaveKey;
use lastgood_format::{Error, ErrorKind, Result};
use plan::Plan;
pub(crate) use plan::SEGMENT_BYTES;
pub(crate) use shared::Shared;
use shared::{Queued, Testimony};
pub(crate) use witness::{KEY as ALIKE, check_alike};
pub(crate) use worker::{Recording, Worker};

use crate::journal::rank::{self, RankJournal};
use crate::process::Process;
use crate::state::Capture;
use crate::tier::Slot;

/// Whether a save returns before it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Returns when the checkpoint is committed.
    Sync,
    /// Returns when the state is captured.
    Async,
}

/// Whether chunks are compressed. Lossless always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Chunks are stored as they are, but for chunks of zeros.
    Off,
    /// Every chunk that zstd of this level makes smaller is stored so.
    Zstd(i32),
    /// As with zstd of level 1, and what is smaller as the difference from the save before is stored as that. Keeps
    /// the captured state of the save before in memory, so that there is one arena more.
    Delta {
        /// Every chunk is stored whole once in so many saves, so that a restore needs no more of them: 1 to 64.
        chain: u32,
    },
    /// Off, until the store has shown to be slower than a codec; then zstd of level 1, or deltas if they make a sample
    /// smaller by a fifth and memory for one arena more is free. Metadata `lastgood.compression` of each checkpoint says
    /// which, and why.
    Auto,
}

/// The longest chain of deltas that may be asked for.
pub const CHAIN_MAX: u32 = 64;

/// The chain of deltas unless one is asked for.
pub const CHAIN_DEFAULT: u32 = 8;

/// How saves are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveOptions {
    /// The chunk size in bytes, 64 KiB to 16 MiB: smaller finds more unchanged bytes and costs 53
    /// bytes of index for each chunk. Default 1 MiB.
    pub chunk_bytes: u32,
    /// The most memory of one arena, in bytes; a save needs as much as the state of its rank.
    /// Default no bound.
    pub arena_bytes_max: u64,
    /// How many saves may be captured and not yet durable, each with an arena of its own. With one, a
    /// save waits until the one before is durable. With more, a save that nobody has begun to write is
    /// superseded by a newer one. Default 1.
    pub in_flight_max: usize,
    /// Default [`Compression::Auto`].
    pub compression: Compression,
    /// How long the other ranks' shard indexes are waited for. Default 5 minutes.
    pub commit_wait: Duration,
    /// After this many failed saves in a row, the next save is an error; the one after that is tried
    /// again. Default none: training goes on, and failures are told by handles, by [`Run::take_failures`](crate::Run::take_failures)
    /// and at close.
    pub failures_max: Option<u32>,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            chunk_bytes: CHUNK_BYTES_DEFAULT,
            arena_bytes_max: u64::MAX,
            in_flight_max: 1,
            compression: Compression::Auto,
            commit_wait: Duration::from_secs(300),
            failures_max: None,
        }
    }
}

impl SaveOptions {
    /// What an open says of them.
    ///
    /// # Errors
    /// `Invalid` if an option is out of its range.
    pub fn check(&self) -> Result<()> {
        if !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&self.chunk_bytes) {
            return Err(Error::invalid(format!(
                "chunk_bytes is {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}, given {}",
                self.chunk_bytes
            )));
        }
        if self.in_flight_max == 0 {
            return Err(Error::invalid("in_flight_max is at least 1"));
        }
        if let Compression::Delta { chain } = self.compression
            && !(1..=CHAIN_MAX).contains(&chain)
        {
            return Err(Error::invalid(format!(
                "a chain of deltas is 1 to {CHAIN_MAX} saves long, given {chain}"
            )));
        }
        Ok(())
    }
}

/// An arena while it is being filled; it is left to the writing thread even if a source of the capture
/// panics.
struct Lent {
    arena: Option<Arena>,
    slot: Arc<Mutex<Option<Arena>>>,
}

impl Lent {
    fn fill(
        &mut self,
        capture: &Capture<'_>,
        plan: &Plan,
        full: impl FnMut(usize, Segment) -> Result<()>,
    ) -> Result<()> {
        match &mut self.arena {
            Some(arena) => arena.fill(capture, plan, full),
            None => Err(Error::internal("an arena was left before it was filled")),
        }
    }

    fn whole_slot(&self) -> Option<Slot> {
        self.arena.as_ref().and_then(Arena::whole_slot).cloned()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.arena.take();
    }
}

/// A save that the writing thread waits for.
struct Begun {
    plan: Arc<Plan>,
    lent: Lent,
    full: Sender<(usize, Segment)>,
    witness: Sender<Testimony>,
    handle: SaveHandle,
}

impl Begun {
    /// Copies the state and hands it on.
    fn fill(self, capture: &Capture<'_>) -> Result<()> {
        // The arena last, so that a panic drops it before the sender: see below.
        let Self { plan, full, witness, handle, mut lent } = self;
        let filled = lent
            .fill(capture, &plan, |i, segment| {
                full.send((i, segment)).map_err(|_| shared::closed())
            })
            .and_then(|()| capture.checks.iter().try_for_each(|check| check.0()))
            .and_then(|()| witness::testify(capture, handle.step()));
        match &filled {
            // Nobody is left to read it if the writing thread is gone.
            Ok(metadata) => {
                let (metadata, slot) = (metadata.clone(), lent.whole_slot());
                witness.send(Testimony { metadata, slot }).unwrap_or_default();
            }
            Err(error) => handle.set(SaveStatus::Failed(error.clone())),
        }
        // The arena first: the writing thread looks for it as soon as the last segment is through,
        // and an arena that comes later than that would be lost to every save after this one.
        drop(lent);
        drop(full);
        filled?;
        handle.set(SaveStatus::Captured);
        Ok(())
    }
}

/// The saves of one rank of one attempt.
#[derive(Debug)]
pub(crate) struct Saver {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    options: SaveOptions,
    attempt: u64,
    process: Process,
    /// The plan of the save before.
    planned: Option<Arc<Plan>>,
}

impl Saver {
    /// Starts the thread that writes.
    pub(crate) fn start(worker: Worker, options: SaveOptions) -> Result<Self> {
        let shared = Arc::clone(&worker.shared);
        let attempt = worker.writer.attempt;
        let worker = std::thread::Builder::new()
            .name("lastgood-save".into())
            .spawn(move || worker.run())
            .map_err(|e| Error::new(ErrorKind::Overloaded, format!("no thread for saves: {e}")))?;
        let process = Process::this();
        Ok(Self { shared, worker: Some(worker), options, attempt, process, planned: None })
    }

    /// Captures `capture` as the state at `step` and hands it to the writing thread.
    pub(crate) fn save(
        &mut self,
        step: u64,
        capture: &Capture<'_>,
        mode: Mode,
        journal: Option<&RankJournal>,
    ) -> Result<SaveHandle> {
        let begun = self.begin(step, capture, journal)?;
        let handle = begun.handle.clone();
        begun.fill(capture)?;
        if mode == Mode::Sync {
            handle.wait()?;
        }
        Ok(handle)
    }

    /// As `save`, but a thread of its own does the copying.
    pub(crate) fn save_overlapped(
        &mut self,
        step: u64,
        capture: Capture<'static>,
        journal: Option<&RankJournal>,
    ) -> Result<SaveHandle> {
        let begun = self.begin(step, &capture, journal)?;
        let handle = begun.handle.clone();
        std::thread::Builder::new()
            .name("lastgood-capture".into())
            .spawn(move || begun.fill(&capture).ok())
            .map_err(|e| Error::new(ErrorKind::Overloaded, format!("no thread to copy: {e}")))?;
        Ok(handle)
    }

    /// Captures `capture` as the state at `step` for its fingerprints alone, which are recorded behind it.
    pub(crate) fn digest(&mut self, step: u64, capture: &Capture<'_>) -> Result<()> {
        self.process.check()?;
        let room = self.make_room(capture)?;
        let handle = SaveHandle::new(SaveKey { attempt: self.attempt, step, generation: 0 });
        self.enqueue(room, handle, BTreeMap::new(), false).fill(capture)
    }

    /// Queues a save whose bytes are not copied yet.
    fn begin(
        &mut self,
        step: u64,
        capture: &Capture<'_>,
        journal: Option<&RankJournal>,
    ) -> Result<Begun> {
        self.process.check()?;
        self.shared.refuse(self.options.failures_max)?;
        let room = self.make_room(capture).inspect_err(|error| {
            if let Some(journal) = journal {
                rank::failed(journal.journal(), journal.own(), step, error);
            }
        })?;
        let generation = self.shared.next_generation(step);
        let handle = SaveHandle::new(SaveKey { attempt: self.attempt, step, generation });
        let mut metadata = capture.metadata.clone();
        if let Some(journal) = journal {
            match journal.captured(&handle.save()) {
                Ok(more) => metadata.extend(more),
                // A checkpoint without a cut is better than none.
                Err(error) => journal.journal().tell(error),
            }
        }
        Ok(self.enqueue(room, handle, metadata, true))
    }

    /// Lays out `capture`, and waits for an arena that has room for it.
    fn make_room(&mut self, capture: &Capture<'_>) -> Result<(Arc<Plan>, Arena)> {
        let plan = match self.planned.take().filter(|plan| plan.is_of(capture)) {
            Some(plan) => plan,
            None => Arc::new(Plan::new(capture, self.options.chunk_bytes as usize)?),
        };
        self.planned = Some(Arc::clone(&plan));
        let mut arena = self.shared.take_arena()?;
        if let Err(error) = arena.reserve(&plan) {
            self.shared.give_arena(arena);
            return Err(error);
        }
        Ok((plan, arena))
    }

    fn enqueue(
        &self,
        (plan, arena): (Arc<Plan>, Arena),
        handle: SaveHandle,
        metadata: BTreeMap<String, String>,
        is_saved: bool,
    ) -> Begun {
        let (full, segments) = channel();
        let (witness, testimony) = channel();
        let slot = Arc::new(Mutex::new(None));
        self.shared.enqueue(Queued {
            plan: Arc::clone(&plan),
            segments,
            arena: Arc::clone(&slot),
            metadata,
            witness: testimony,
            handle: handle.promise(),
            is_saved,
        });
        Begun { plan, lent: Lent { arena: Some(arena), slot }, full, witness, handle }
    }

    /// The chunks that the next save may reuse, and its parent.
    pub(crate) fn set_base(&self, base: Base) {
        self.shared.set_base(base);
    }

    /// True if saves are smaller where it is told what optimizers did.
    pub(crate) fn predicts(&self) -> bool {
        self.shared.lock().predicts
    }

    /// The failures since they were last asked for.
    pub(crate) fn take_failures(&self) -> Vec<Error> {
        self.shared.take_failures()
    }

    /// Waits until every save is committed or has failed, and ends the thread.
    ///
    /// # Errors
    /// What saves failed with; `Closed` in a forked child, where that thread does not exist.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.process.check()?;
        self.shared.close();
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            return Err(Error::internal("the thread that saves panicked"));
        }
        let failures = self.shared.take_failures();
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures[0].clone()),
            n => {
                let kind = failures[n - 1].kind();
                Err(Error::new(kind, format!("{n} saves failed")).with_causes(failures))
            }
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if !self.process.is_this() {
            mem::forget(self.worker.take());
            return;
        }
        if self.worker.is_some()
            && let Err(error) = self.close()
        {
            // Nobody is left to return it to, and a save must not fail silently.
            #[expect(clippy::print_stderr, reason = "the last chance to say that a save failed")]
            {
                eprintln!("lastgood: {error}");
            }
        }
    }
}
