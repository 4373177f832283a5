//! What the saving and the writing thread share: the queue, the arenas, and what went wrong.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lastgood_format::{Error, ErrorKind, Result};

use super::arena::{Arena, Segment};
use super::base::Base;
use super::handle::{Promise, SaveStatus};
use super::plan::Plan;
use super::{Compression, SaveOptions};
use crate::tier::{Slot, Tier};

/// A captured save that nobody has begun to write.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(super) plan: Arc<Plan>,
    pub(super) segments: Receiver<(usize, Segment)>,
    /// Where the capturing thread leaves the arena when it is full.
    pub(super) arena: Arc<Mutex<Option<Arena>>>,
    pub(super) metadata: BTreeMap<String, String>,
    /// Nothing comes if the capture failed.
    pub(super) witness: Receiver<Testimony>,
    pub(super) handle: Promise,
    /// False if nothing is to be written, and only the fingerprints are wanted.
    pub(super) is_saved: bool,
}

/// What is known only when everything is copied.
#[derive(Clone, Debug)]
pub(crate) struct Testimony {
    pub(super) metadata: BTreeMap<String, String>,
    /// Where the memory tier has all that was captured.
    pub(super) slot: Option<Slot>,
}

/// What the saving and the writing thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    pub(super) changed: Condvar,
}

/// What both threads see, under one lock.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) queue: VecDeque<Queued>,
    pub(super) free: Vec<Arena>,
    /// A newer save takes the place of one that nobody has begun to write.
    pub(super) supersedes: bool,
    /// The saving thread waits for an arena.
    pub(super) wanted: bool,
    pub(super) closing: bool,
    pub(super) ended: bool,
    pub(super) base: Option<Arc<Base>>,
    /// How often each step was saved, so that a second save of it never meets the first one's
    /// objects. Every rank counts the same.
    pub(super) generations: BTreeMap<u64, u32>,
    pub(super) failures: Vec<Error>,
    pub(super) failures_in_a_row: u32,
    /// It helps to know what optimizers did.
    pub(super) predicts: bool,
    /// A newer attempt owns the run: nothing that is saved here can be committed any more.
    pub(super) fenced: Option<Error>,
}

impl Shared {
    pub(crate) fn new(options: &SaveOptions, tier: Option<&Tier>) -> Self {
        let slots = (0..).map(|number| tier.and_then(|tier| tier.slot(number)));
        let arenas = slots.take(options.in_flight_max);
        let free = arenas.map(|slot| Arena::new(options.arena_bytes_max, slot));
        let inner = Inner {
            queue: VecDeque::new(),
            free: free.collect(),
            supersedes: options.in_flight_max > 1,
            wanted: false,
            closing: false,
            ended: false,
            base: None,
            generations: BTreeMap::new(),
            failures: Vec::new(),
            failures_in_a_row: 0,
            predicts: matches!(options.compression, Compression::Delta { .. }),
            fenced: None,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a new save is refused with. Failures in a row are told once: whoever goes on after that
    /// has the next save tried.
    pub(super) fn refuse(&self, failures_max: Option<u32>) -> Result<()> {
        let mut inner = self.lock();
        if let Some(error) = &inner.fenced {
            return Err(error.clone());
        }
        if inner.ended {
            return Err(closed());
        }
        if failures_max.is_none_or(|max| inner.failures_in_a_row < max) {
            return Ok(());
        }
        let count = std::mem::take(&mut inner.failures_in_a_row);
        let last = inner.failures.last().cloned();
        Err(last
            .unwrap_or_else(|| Error::unavailable("saves failed"))
            .context(format!("{count} saves in a row failed, the last one")))
    }

    /// A free arena: at once, or that of a queued save, if there may be several and the new one
    /// supersedes it, or when the save in flight is through.
    pub(super) fn take_arena(&self) -> Result<Arena> {
        let mut inner = self.lock();
        loop {
            if inner.ended {
                return Err(closed());
            }
            if let Some(arena) = inner.free.pop() {
                inner.wanted = false;
                return Ok(arena);
            }
            if inner.supersedes
                && let Some(queued) = inner.queue.pop_back()
            {
                let Queued { segments, arena, handle, .. } = queued;
                // The segments in the channel must go first: they share the arena's memory.
                drop(segments);
                handle.set(SaveStatus::Superseded);
                if let Some(arena) = arena.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    return Ok(arena);
                }
            }
            inner.wanted = true;
            self.changed.notify_all();
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn give_arena(&self, arena: Arena) {
        self.lock().free.push(arena);
        self.changed.notify_all();
    }

    pub(super) fn next_generation(&self, step: u64) -> u32 {
        let mut inner = self.lock();
        let generation = inner.generations.entry(step).or_insert(0);
        *generation += 1;
        *generation - 1
    }

    pub(super) fn enqueue(&self, queued: Queued) {
        self.lock().queue.push_back(queued);
        self.changed.notify_all();
    }

    pub(super) fn set_base(&self, base: Base) {
        self.lock().base = Some(Arc::new(base));
    }

    pub(super) fn take_failures(&self) -> Vec<Error> {
        std::mem::take(&mut self.lock().failures)
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }
}

/// What the saving thread is told once the writing thread is gone.
pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "saving has ended").with_remedy("open the run again")
}

/// Says that the writing thread is gone, and that what is still queued will never be written.
pub(super) struct End(pub(super) Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.ended = true;
        inner.queue.clear();
        drop(inner);
        self.0.changed.notify_all();
    }
}
