//! Handing captured chunks to the hashing threads, in order and not too far ahead of the packer.
//!
//! What is encoded is no part of the arena. Without a bound, a thread that is held up with one chunk
//! would let the others encode the rest of the state behind it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::arena::Segment;
use super::plan::Plan;

/// Large enough that handing over costs nothing beside hashing.
const BATCH_BYTES: usize = 2 << 20;
/// The most bytes that are being encoded or wait for the packer.
const AHEAD_BYTES: usize = 8 << 20;
/// The most batches of which that is true, whatever their size.
const AHEAD_BATCHES: usize = 64;

/// Chunks that follow each other in one segment.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Batches are packed in the order of their numbers, from 0.
    pub(crate) number: usize,
    pub(crate) segment: Segment,
    /// Rows of the plan.
    pub(crate) rows: Range<usize>,
    /// What the batch takes of the room ahead of the packer.
    cost: usize,
}

/// The batches of one save.
pub(crate) struct Batches<'j> {
    plan: &'j Plan,
    /// Whether encoding makes bytes of its own.
    encodes: bool,
    feed: Mutex<Feed>,
    room: Mutex<Room>,
    changed: Condvar,
    failed: AtomicBool,
}

struct Feed {
    segments: Receiver<(usize, Segment)>,
    /// What is left of the segment that was taken last.
    rest: Option<(Segment, Range<usize>)>,
    next: usize,
}

#[derive(Default)]
struct Room {
    /// The number of the batch that is packed next.
    packed: usize,
    ahead: usize,
}

impl<'j> Batches<'j> {
    pub(crate) fn new(plan: &'j Plan, encodes: bool, segments: Receiver<(usize, Segment)>) -> Self {
        Self {
            plan,
            encodes,
            feed: Mutex::new(Feed { segments, rest: None, next: 0 }),
            room: Mutex::default(),
            changed: Condvar::new(),
            failed: AtomicBool::new(false),
        }
    }

    /// The next batch, once there is room for it; `None` after the last.
    pub(crate) fn next(&self) -> Option<Batch> {
        // Whoever waits for room keeps the others from the feed: they would wait for more of it.
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        let (segment, rows) = loop {
            if let Some(rest) = feed.rest.take() {
                break rest;
            }
            let (i, segment) = feed.segments.recv().ok()?;
            feed.rest = Some((segment, self.plan.rows_of(i))).filter(|(_, rows)| !rows.is_empty());
        };
        let mut end = rows.start + 1;
        let mut bytes = self.plan.rows[rows.start].bytes;
        while end < rows.end && bytes + self.plan.rows[end].bytes <= BATCH_BYTES {
            bytes += self.plan.rows[end].bytes;
            end += 1;
        }
        if end < rows.end {
            feed.rest = Some((segment.clone(), end..rows.end));
        }
        let number = feed.next;
        feed.next += 1;
        let cost = if self.encodes { bytes } else { 0 };
        self.await_room(number, cost);
        Some(Batch { number, segment, rows: rows.start..end, cost })
    }

    /// The batch that the packer waits for always has room, so that nobody waits for ever.
    fn await_room(&self, number: usize, cost: usize) {
        let mut room = self.room();
        while !self.has_failed()
            && number != room.packed
            && (room.ahead + cost > AHEAD_BYTES || number >= room.packed + AHEAD_BATCHES)
        {
            room = self.changed.wait(room).unwrap_or_else(PoisonError::into_inner);
        }
        room.ahead += cost;
    }

    /// Makes room after a batch was packed.
    pub(crate) fn packed(&self, batch: &Batch) {
        let mut room = self.room();
        room.packed += 1;
        room.ahead = room.ahead.saturating_sub(batch.cost);
        drop(room);
        self.changed.notify_all();
    }

    /// From here on batches are taken and thrown away, so that nobody waits for what will not come.
    pub(crate) fn fail(&self) {
        // Under the lock, so that it does not fall between a look and a wait.
        let room = self.room();
        self.failed.store(true, Ordering::Relaxed);
        drop(room);
        self.changed.notify_all();
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
