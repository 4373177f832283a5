//! The byte pipeline of a save: hash, reuse, codec, pack, put.
//!
//! Plain threads behind bounded queues, above [`Io`] alone. Segments come in as they are captured;
//! workers hash and encode them; the packer fills packs in the order of the chunks, so that the same
//! state makes the same packs; putters write them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lastgood_format::chunk::{self, Codec, Encoded};
use lastgood_format::index::{Chunk, Pack};
use lastgood_format::{Error, Hash, Result};
use lastgood_store::Payload;

use super::arena::Segment;
use super::base::{Base, Stored};
use super::packer::Packer;
use super::plan::Plan;
use crate::io::Io;

/// Hashing is the only heavy work; beyond two threads the disk is the limit.
const WORKERS_MAX: usize = 2;
const PUTTERS: usize = 2;

/// What the pipeline needs to know of a save.
pub(crate) struct Job<'j> {
    pub(crate) plan: &'j Plan,
    /// The chunks that exist already.
    pub(crate) base: Option<&'j Base>,
    /// The zstd level, or none to store chunks as they are.
    pub(crate) level: Option<i32>,
    /// Names pack `i`: relative to the run's folder.
    pub(crate) name: &'j (dyn Fn(u32) -> String + Sync),
    /// The run's folder in the store.
    pub(crate) folder: &'j str,
}

/// What the pipeline wrote.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) packs: Vec<Pack>,
    /// True if some chunk is one of the base's.
    pub(crate) reused: bool,
    /// The bytes and the time of all puts, to know the speed of the store.
    pub(crate) put_bytes: u64,
    pub(crate) put_time: Duration,
}

/// One chunk after hashing.
#[derive(Debug)]
pub(crate) struct Hashed {
    pub(crate) hash: Hash,
    pub(crate) source: Source,
}

/// Where a chunk's stored bytes come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// They are stored already.
    Stored(Stored),
    /// They are to be stored.
    New(Encoded),
}

struct HashedSegment {
    i: usize,
    segment: Segment,
    rows: Vec<Hashed>,
}

/// A pack on its way to the store.
#[derive(Debug)]
pub(crate) struct FullPack {
    pub(crate) object: String,
    pub(crate) payload: Payload,
}

/// Runs the pipeline until every segment that `segments` gives is durable.
///
/// # Errors
/// The first error of any stage, after every stage has ended: `Unavailable`, `Overloaded`, `Denied`,
/// `Conflict` from the store; `Internal`.
pub(crate) fn run(
    io: &dyn Io,
    job: &Job<'_>,
    segments: Receiver<(usize, Segment)>,
) -> Result<Written> {
    let failed = AtomicBool::new(false);
    let segments = Mutex::new(segments);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let (hashed_in, hashed_out) = sync_channel::<Result<HashedSegment>>(workers);
    let (packs_in, packs_out) = sync_channel::<FullPack>(1);
    let packs_out = Mutex::new(packs_out);
    thread::scope(|scope| {
        for _ in 0..workers {
            let hashed_in = hashed_in.clone();
            let (segments, failed) = (&segments, &failed);
            scope.spawn(move || hash_segments(job, segments, &hashed_in, failed));
        }
        drop(hashed_in);
        let putters: Vec<_> = (0..PUTTERS)
            .map(|_| scope.spawn(|| put_packs(io, job.folder, &packs_out, &failed)))
            .collect();
        let packed = pack_segments(job, &hashed_out, packs_in);
        if packed.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
        // Workers that wait to hand on a segment must not wait for ever.
        drop(hashed_out);
        let mut put = (0, Duration::ZERO);
        let mut error = None;
        for putter in putters {
            match putter.join() {
                Ok(Ok((bytes, time))) => put = (put.0 + bytes, put.1.max(time)),
                Ok(Err(e)) => error = Some(e),
                Err(_) => error = Some(Error::internal("a thread that puts packs panicked")),
            }
        }
        match error {
            Some(error) => Err(error),
            None => packed.map(|w| Written { put_bytes: put.0, put_time: put.1, ..w }),
        }
    })
}

fn hash_segments(
    job: &Job<'_>,
    segments: &Mutex<Receiver<(usize, Segment)>>,
    out: &SyncSender<Result<HashedSegment>>,
    failed: &AtomicBool,
) {
    loop {
        let next = segments.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((i, segment)) = next else { return };
        // After a failure segments are still taken, so that the capture is not held up.
        if failed.load(Ordering::Relaxed) {
            continue;
        }
        let rows = job.plan.rows.iter().filter(|row| row.segment == i);
        let hashed: Result<Vec<_>> = rows
            .map(|row| hash_chunk(job, &segment.bytes()[row.offset..row.offset + row.bytes]))
            .collect();
        let sent = out.send(hashed.map(|rows| HashedSegment { i, segment, rows }));
        if sent.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
    }
}

fn hash_chunk(job: &Job<'_>, bytes: &[u8]) -> Result<Hashed> {
    let hash = Hash::of(bytes);
    let source = match job.base.and_then(|base| base.find(&hash, bytes.len())) {
        Some(stored) => Source::Stored(stored),
        None => Source::New(encode(bytes, job.level, &hash)?),
    };
    Ok(Hashed { hash, source })
}

/// What is encoded is decoded again before it is relied on: a fault of codec or memory between
/// capture and use must not pass.
fn encode(bytes: &[u8], level: Option<i32>, hash: &Hash) -> Result<Encoded> {
    let level = level.filter(|level| chunk::seems_compressible(bytes, *level));
    let encoded = chunk::encode(bytes, level)?;
    if let Encoded::Zstd(frame) = &encoded {
        let mut back = vec![0; bytes.len()];
        chunk::decode_into(Codec::Zstd, frame, &mut back, hash)
            .map_err(|e| e.context("a chunk does not decode to what was encoded"))?;
    }
    Ok(encoded)
}

/// Feeds the packer in the order of the segments, whatever order they were hashed in.
fn pack_segments(
    job: &Job<'_>,
    hashed: &Receiver<Result<HashedSegment>>,
    packs: SyncSender<FullPack>,
) -> Result<Written> {
    let mut packer = Packer::new(job, packs);
    let mut early: BTreeMap<usize, HashedSegment> = BTreeMap::new();
    let mut next = 0;
    while next < job.plan.segments.len() {
        let segment = match early.remove(&next) {
            Some(segment) => segment,
            None => match hashed.recv() {
                Ok(Ok(segment)) if segment.i == next => segment,
                Ok(Ok(segment)) => {
                    early.insert(segment.i, segment);
                    continue;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(Error::internal("the capture ended before its last segment")),
            },
        };
        packer.add(&segment.segment, segment.rows, next)?;
        next += 1;
    }
    packer.finish()
}

fn put_packs(
    io: &dyn Io,
    folder: &str,
    packs: &Mutex<Receiver<FullPack>>,
    failed: &AtomicBool,
) -> Result<(u64, Duration)> {
    let (mut bytes, mut time) = (0, Duration::ZERO);
    let mut result = Ok(());
    loop {
        let next = packs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(pack) = next else { return result.map(|()| (bytes, time)) };
        if failed.load(Ordering::Relaxed) {
            continue;
        }
        let begin = io.elapsed();
        bytes += pack.payload.len();
        if let Err(error) = io.put_same(&format!("{folder}{}", pack.object), pack.payload) {
            failed.store(true, Ordering::Relaxed);
            result = Err(error);
        }
        time += io.elapsed().saturating_sub(begin);
    }
}
