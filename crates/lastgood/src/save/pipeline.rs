//! The byte pipeline of a save: hash, reuse, codec, pack, put.
//!
//! Plain threads behind bounded queues, above [`Io`] alone. Segments come in as they are captured;
//! workers hash and encode them; the packer fills packs in the order of the chunks, so that the same
//! state makes the same packs; putters write them.

use std::collections::BTreeMap;
use std::mem;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lastgood_format::chunk::{self, Codec, Encoded, Guess};
use lastgood_format::delta::Operand;
use lastgood_format::index::{Chunk, Pack};
use lastgood_format::{Error, Hash, Result};
use lastgood_store::Payload;

use super::arena::Segment;
use super::base::{Base, Stored};
use super::batches::{Batch, Batches};
use super::deltas::{Deltas, Root};
use super::digest::{Digesting, Sums};
use super::packer::Packer;
use super::plan::Plan;
use crate::io::Io;

/// Hashing is the only heavy work; beyond two threads the disk is the limit.
const WORKERS_MAX: usize = 2;

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
    /// Finds fingerprints as well.
    pub(crate) digesting: Option<&'j Digesting>,
    /// What may be stored as deltas.
    pub(crate) deltas: Option<&'j Deltas>,
}

/// What the pipeline wrote.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) chunks: Vec<Chunk>,
    /// What deltas are made of, and which, as in a shard index.
    pub(crate) bases: Vec<Chunk>,
    pub(crate) operands: BTreeMap<u32, Vec<u32>>,
    pub(crate) packs: Vec<Pack>,
    /// True if some chunk is one of the base's.
    pub(crate) reused: bool,
    /// The bytes and the time of all puts, to know the speed of the store.
    pub(crate) put_bytes: u64,
    pub(crate) put_time: Duration,
    /// What each row counts in the fingerprints, if they are to be found.
    pub(crate) sums: Vec<(Hash, Sums)>,
}

/// One chunk after hashing.
#[derive(Debug)]
pub(crate) struct Hashed {
    pub(crate) hash: Hash,
    pub(crate) source: Source,
    sums: Sums,
}

/// Where a chunk's stored bytes come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// They are stored already, as this row of the base.
    Stored(usize),
    /// They are to be stored.
    New(Encoded),
    /// They are to be stored, and are a delta of these.
    Delta(Vec<u8>, Vec<OperandRow>),
}

/// What a delta is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperandRow {
    /// A row of the base.
    Base(usize),
    /// A row of the plan.
    Own(usize),
}

struct HashedBatch {
    batch: Batch,
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
    let batches = Batches::new(job.plan, job.level.is_some(), segments);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let (hashed_in, hashed_out) = sync_channel::<Result<HashedBatch>>(workers);
    // No pack waits in between: each one may hold encoded bytes, which are no part of the arena.
    let (packs_in, packs_out) = sync_channel::<FullPack>(0);
    let packs_out = Mutex::new(packs_out);
    thread::scope(|scope| {
        for _ in 0..workers {
            let hashed_in = hashed_in.clone();
            let batches = &batches;
            scope.spawn(move || hash_batches((io, job), batches, &hashed_in));
        }
        drop(hashed_in);
        let putters: Vec<_> = (0..io.transfers().puts)
            .map(|_| scope.spawn(|| put_packs(io, job.folder, &packs_out, &batches)))
            .collect();
        let packed = pack_batches(job, &batches, &hashed_out, packs_in);
        if packed.is_err() {
            batches.fail();
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

fn hash_batches(
    (io, job): (&dyn Io, &Job<'_>),
    batches: &Batches<'_>,
    out: &SyncSender<Result<HashedBatch>>,
) {
    let _guard = FailOnPanic(batches);
    let mut back = Vec::new();
    while let Some(batch) = batches.next() {
        // After a failure batches are still taken, so that the capture is not held up.
        if batches.has_failed() {
            continue;
        }
        let bytes = batch.segment.bytes();
        let hashed: Result<Vec<_>> = batch
            .rows
            .clone()
            .map(|i| {
                let row = &job.plan.rows[i];
                hash_chunk((io, job), i, &bytes[row.offset..row.offset + row.bytes], &mut back)
            })
            .collect();
        if out.send(hashed.map(|rows| HashedBatch { batch, rows })).is_err() {
            batches.fail();
        }
    }
}

/// The batch of a thread that panics never comes: the others must not wait for it.
struct FailOnPanic<'b>(&'b Batches<'b>);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail();
        }
    }
}

fn hash_chunk(
    (io, job): (&dyn Io, &Job<'_>),
    row: usize,
    bytes: &[u8],
    back: &mut Vec<u8>,
) -> Result<Hashed> {
    let hash = Hash::of(bytes);
    let source = match job.base.and_then(|base| base.find(&hash, bytes.len())) {
        Some(stored) => Source::Stored(stored),
        None => encode((io, job), row, bytes, (&hash, back))?,
    };
    let sums = match job.digesting {
        Some(digesting) => digesting.row(job.plan, row, bytes, Some(&hash))?,
        None => Sums::new(),
    };
    Ok(Hashed { hash, source, sums })
}

/// What is encoded is decoded again before it is relied on: a fault of codec or memory between
/// capture and use must not pass.
fn encode(
    (io, job): (&dyn Io, &Job<'_>),
    row: usize,
    bytes: &[u8],
    (hash, back): (&Hash, &mut Vec<u8>),
) -> Result<Source> {
    let width = usize::from(job.plan.rows[row].width);
    let mut check = |codec, coded: &[u8], operands: &[Operand<'_>]| {
        back.resize(bytes.len(), 0);
        chunk::decode_into(codec, coded, operands, back, hash)
            .map_err(|e| e.context("a chunk does not decode to what was encoded"))
    };
    let Some(level) = job.level else {
        return chunk::encode(bytes, width, None).map(Source::New);
    };
    if chunk::is_zero(bytes) {
        return Ok(Source::New(Encoded::Zero));
    }
    let guess = Guess::new(bytes, width, level);
    let root = job.deltas.and_then(|deltas| deltas.root(row));
    let root = root.and_then(|(row, stored)| read_root(io, job, row, stored));
    if let Some(deltas) = job.deltas
        && let Some(delta) =
            deltas.of(row, bytes, (width, level), (guess.bytes(), root.as_ref()))?
    {
        check(Codec::Delta, &delta.stored, &delta.operands)?;
        return Ok(Source::Delta(delta.stored, delta.rows));
    }
    let encoded = guess.encode(bytes)?;
    if let Encoded::Coded(codec, coded) = &encoded {
        check(*codec, coded, &[])?;
    }
    Ok(Source::New(encoded))
}

/// The chunk that a chain begins with; `None` if it cannot be read or is damaged: whoever restores is told of that, and a
/// save does without it.
fn read_root(io: &dyn Io, job: &Job<'_>, row: usize, stored: &Stored) -> Option<Root> {
    let Stored { chunk, pack, .. } = stored;
    let mut coded = vec![0; chunk.stored_bytes as usize];
    if !coded.is_empty() {
        io.read_into(&format!("{}{pack}", job.folder), chunk.offset, &mut coded).ok()?;
    }
    let mut bytes = vec![0; chunk.decoded_bytes as usize];
    chunk::decode_into(chunk.codec, &coded, &[], &mut bytes, &chunk.hash).ok()?;
    Some(Root { row, hash: chunk.hash, bytes })
}

/// Feeds the packer in the order of the batches, whatever order they were hashed in.
fn pack_batches(
    job: &Job<'_>,
    batches: &Batches<'_>,
    hashed: &Receiver<Result<HashedBatch>>,
    packs: SyncSender<FullPack>,
) -> Result<Written> {
    let mut sums = Vec::new();
    let mut packer = Packer::new(job, packs);
    let mut early: BTreeMap<usize, HashedBatch> = BTreeMap::new();
    let (mut next, mut rows) = (0, 0);
    while rows < job.plan.rows.len() {
        let HashedBatch { batch, rows: mut hashed } = match early.remove(&next) {
            Some(batch) => batch,
            None => match hashed.recv() {
                Ok(Ok(hashed)) if hashed.batch.number == next => hashed,
                Ok(Ok(hashed)) => {
                    early.insert(hashed.batch.number, hashed);
                    continue;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(Error::internal("the capture ended before its last segment")),
            },
        };
        if job.digesting.is_some() {
            sums.extend(hashed.iter_mut().map(|row| (row.hash, mem::take(&mut row.sums))));
        }
        packer.add(&batch, hashed)?;
        batches.packed(&batch);
        next += 1;
        rows = batch.rows.end;
    }
    packer.finish().map(|written| Written { sums, ..written })
}

fn put_packs(
    io: &dyn Io,
    folder: &str,
    packs: &Mutex<Receiver<FullPack>>,
    batches: &Batches<'_>,
) -> Result<(u64, Duration)> {
    let (mut bytes, mut time) = (0, Duration::ZERO);
    let mut result = Ok(());
    loop {
        let next = packs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(pack) = next else { return result.map(|()| (bytes, time)) };
        if batches.has_failed() {
            continue;
        }
        let begin = io.elapsed();
        bytes += pack.payload.len();
        if let Err(error) = io.put_same(&format!("{folder}{}", pack.object), pack.payload) {
            batches.fail();
            result = Err(error);
        }
        time += io.elapsed().saturating_sub(begin);
    }
}
