//! Reading chunks, verifying them, and placing them.
//!
//! A chunk that goes whole and unencoded to one place is read straight into the caller's memory and
//! hashed there; neighbours are read together. Everything else goes through scratch memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use lastgood_format::chunk::{self, Codec};
use lastgood_format::delta::{self, Operand};
use lastgood_format::index::Chunk;
use lastgood_format::pack::PackedChunk;
use lastgood_format::{Error, ErrorKind, Result};
use lastgood_store::Transfers;

use super::contents::Contents;
use super::held;
use super::kept::Kept;
use super::linked::{self, Linked};
use super::plan::{Apply, Memory, Piece, Plan};
use crate::io::Io;
use crate::tier::Held;

/// A chunk by the number of its shard index and its row there.
pub(super) type At = (usize, u32);

/// Parts of a decoded chunk: where each begins, and the memory that it goes to.
pub(super) type Parts<'m> = Vec<(usize, &'m mut [u8])>;

/// What goes to one place and is less than this part of the largest read is read with its neighbours.
const SMALL: u64 = 4;

/// Below this many bytes, starting threads takes longer than they save.
const THREADS_FROM: u64 = 1 << 20;

/// Chunks that lie one after the other in a pack and are read with one request.
struct Job<'m> {
    object: String,
    offset: u64,
    place: Place<'m>,
}

enum Place<'m> {
    /// Raw chunks that lie one after the other in the target as well.
    Direct { chunks: Vec<Chunk>, target: &'m mut [u8] },
    /// Chunks that are decoded and cut up.
    Scatter(Vec<(At, Chunk, Parts<'m>)>),
    /// Deltas and what they are made of, of any objects.
    Linked(Linked<'m>),
}

/// Fetches everything that `plan` names, as far as possible from what is `held`; gives the bytes that were placed and
/// those that were read from the store.
pub(crate) fn run(
    io: &dyn Io,
    contents: &Contents,
    plan: Plan<'_>,
    held: &Held,
) -> Result<(u64, u64)> {
    let Plan { targets, chunks, resets, bytes } = plan;
    let mut borrowed = Vec::with_capacity(targets.len());
    let mut owned: Vec<(Vec<u8>, Apply<'_>)> = Vec::new();
    for target in targets {
        match target {
            Memory::Borrowed(memory) => borrowed.push(Ok(memory)),
            Memory::Owned(memory, apply) => {
                borrowed.push(Err(owned.len()));
                owned.push((memory, apply));
            }
        }
    }
    let mut own: Vec<Option<&mut [u8]>> =
        owned.iter_mut().map(|(memory, _)| Some(memory.as_mut_slice())).collect();
    let mut memory: Vec<&mut [u8]> = Vec::with_capacity(borrowed.len());
    for target in borrowed {
        memory.push(match target {
            Ok(slice) => slice,
            Err(i) => own[i].take().unwrap_or_default(),
        });
    }
    let transfers = io.transfers();
    let wanted = by_target(chunks, memory.len());
    let placed = held::place(contents, held, &wanted, &mut memory)?;
    let jobs = jobs(contents, wanted, (memory, &placed), transfers.read_bytes)?;
    let bytes_read = jobs.iter().map(Job::stored_bytes).sum();
    let kept = contents.kept().filter(|_| Kept::takes(bytes_read));
    read_all((io, kept), jobs, transfers.reads)?;
    // Only now, with everything verified, do functions see their bytes.
    for (memory, apply) in owned {
        apply(memory)?;
    }
    for reset in resets {
        reset();
    }
    Ok((bytes, bytes_read))
}

/// Decodes every delta of the checkpoint, and all that it is made of.
pub(super) fn verify_deltas(io: &dyn Io, contents: &Contents) -> Result<()> {
    let deltas = contents.indexes().iter().enumerate();
    let deltas = deltas.flat_map(|(i, index)| index.operands.keys().map(move |row| (i, *row)));
    let Transfers { reads, read_bytes, .. } = io.transfers();
    let rows = linked::rows(contents, deltas);
    let groups = linked::groups(contents, &rows, read_bytes, |_| Parts::new())?;
    let bytes = groups.iter().map(Linked::stored_bytes).sum();
    each(groups, (bytes, reads), |group, _| group.run(io))
}

/// One piece with its target's memory.
struct Cut<'m> {
    at: At,
    from: usize,
    slice: &'m mut [u8],
}

/// The pieces of each of `targets` targets, in their order.
fn by_target(chunks: BTreeMap<At, Vec<Piece>>, targets: usize) -> Vec<Vec<(At, Piece)>> {
    let mut of_target: Vec<Vec<(At, Piece)>> = Vec::new();
    of_target.resize_with(targets, Vec::new);
    for (at, pieces) in chunks {
        for piece in pieces {
            of_target[piece.target].push((at, piece));
        }
    }
    for pieces in &mut of_target {
        pieces.sort_by_key(|(_, piece)| piece.to);
    }
    of_target
}

fn jobs<'m>(
    contents: &Contents,
    of_target: Vec<Vec<(At, Piece)>>,
    (memory, placed): (Vec<&'m mut [u8]>, &BTreeSet<At>),
    read_bytes: u64,
) -> Result<Vec<Job<'m>>> {
    let mut uses: BTreeMap<At, usize> = BTreeMap::new();
    for (at, _) in of_target.iter().flatten().filter(|(at, _)| !placed.contains(at)) {
        *uses.entry(*at).or_default() += 1;
    }
    let mut jobs = Vec::new();
    let linked = linked::rows(contents, uses.keys().copied());
    let mut scattered: BTreeMap<At, Parts<'m>> = BTreeMap::new();
    for (pieces, slice) in of_target.into_iter().zip(memory) {
        let mut rest = slice;
        let (mut i, mut end) = (0, 0);
        while i < pieces.len() {
            // The plan proved that the boxes cover the target; this proves that their bytes do.
            if pieces[i].1.to != end {
                return Err(overlap());
            }
            let sum = |count: usize| pieces[i..i + count].iter().map(|(_, p)| p.bytes).sum();
            let mut count = direct_run(contents, (&uses, &linked), &pieces[i..], read_bytes);
            let mut bytes: usize = sum(count.max(1));
            // A copy of so little costs less than a request of its own.
            if count > 0 && (bytes as u64) < read_bytes / SMALL {
                (count, bytes) = (0, sum(1));
            }
            let (head, tail) = rest.split_at_mut_checked(bytes).ok_or_else(overlap)?;
            rest = tail;
            end += bytes;
            let (at, piece) = pieces[i];
            if placed.contains(&at) {
                // It is there already.
            } else if count == 0 {
                let cut = Cut { at, from: piece.from, slice: head };
                scattered.entry(cut.at).or_default().push((cut.from, cut.slice));
            } else {
                jobs.push(direct(contents, &pieces[i..i + count], head));
            }
            i += count.max(1);
        }
        if !rest.is_empty() {
            return Err(overlap());
        }
    }
    let groups = linked::groups(contents, &linked, read_bytes, |at| {
        scattered.remove(&at).unwrap_or_default()
    })?;
    jobs.extend(groups.into_iter().map(|group| Job {
        object: group.object().to_owned(),
        offset: 0,
        place: Place::Linked(group),
    }));
    place_kept(contents, &mut scattered);
    // Memory for what is stored is taken beside that for what is decoded.
    group_scattered(contents, scattered, read_bytes / 2, &mut jobs);
    Ok(jobs)
}

pub(super) fn overlap() -> Error {
    Error::internal("the pieces of a target do not fill it exactly")
}

/// How many of `pieces` can be read straight into the target with one request; 0 if not even one.
fn direct_run(
    contents: &Contents,
    (uses, linked): (&BTreeMap<At, usize>, &BTreeSet<At>),
    pieces: &[(At, Piece)],
    read_bytes: u64,
) -> usize {
    let mut end: Option<(u32, u64)> = None;
    let mut total = 0;
    for (count, (at, piece)) in pieces.iter().enumerate() {
        let chunk = contents.indexes()[at.0].chunks[at.1 as usize];
        let whole = chunk.codec == Codec::Raw
            && piece.from == 0
            && piece.bytes == chunk.decoded_bytes as usize
            && uses.get(at) == Some(&1)
            && !linked.contains(at);
        let follows = count == 0 || {
            let (before, last) = &pieces[count - 1];
            before.0 == at.0
                && end == Some((chunk.pack, chunk.offset))
                && last.to + last.bytes == piece.to
        };
        total += u64::from(chunk.stored_bytes);
        if !whole || !follows || (count > 0 && total > read_bytes) {
            return count;
        }
        end = Some((chunk.pack, chunk.offset + u64::from(chunk.stored_bytes)));
    }
    pieces.len()
}

pub(super) fn object_of(contents: &Contents, index: usize, chunk: &Chunk) -> String {
    let pack = &contents.indexes()[index].packs[chunk.pack as usize];
    format!("{}{}", contents.folder(), pack.object)
}

fn direct<'m>(contents: &Contents, pieces: &[(At, Piece)], target: &'m mut [u8]) -> Job<'m> {
    let chunks: Vec<Chunk> = pieces
        .iter()
        .map(|((index, row), _)| contents.indexes()[*index].chunks[*row as usize])
        .collect();
    let first = chunks[0];
    Job {
        object: object_of(contents, pieces[0].0.0, &first),
        offset: first.offset,
        place: Place::Direct { chunks, target },
    }
}

/// Places what was read before. What is damaged since is left, to be read again.
fn place_kept(contents: &Contents, scattered: &mut BTreeMap<At, Parts<'_>>) {
    let mut scratch = Vec::new();
    scattered.retain(|at, parts| {
        let Some(stored) = contents.kept().and_then(|kept| kept.get(at)) else { return true };
        let Chunk { codec, decoded_bytes, hash, .. } =
            contents.indexes()[at.0].chunks[at.1 as usize];
        match chunk::decode(codec, &stored, &[], decoded_bytes, &hash, &mut scratch) {
            Ok(decoded) => {
                place(parts, decoded);
                false
            }
            Err(_) => true,
        }
    });
}

pub(super) fn place(parts: &mut Parts<'_>, decoded: &[u8]) {
    for (from, target) in parts {
        target.copy_from_slice(&decoded[*from..*from + target.len()]);
    }
}

fn group_scattered<'m>(
    contents: &Contents,
    scattered: BTreeMap<At, Parts<'m>>,
    read_bytes: u64,
    jobs: &mut Vec<Job<'m>>,
) {
    let mut last: Option<(String, u64, u64)> = None;
    let begin = jobs.len();
    for (at, parts) in scattered {
        let chunk = contents.indexes()[at.0].chunks[at.1 as usize];
        let object = object_of(contents, at.0, &chunk);
        let stored = u64::from(chunk.stored_bytes);
        if let Some((pack, end, total)) = &mut last
            && *pack == object
            && *end == chunk.offset
            && *total + stored <= read_bytes
            && jobs.len() > begin
            && let Some(Job { place: Place::Scatter(group), .. }) = jobs.last_mut()
        {
            group.push((at, chunk, parts));
            *end += stored;
            *total += stored;
            continue;
        }
        last = Some((object.clone(), chunk.offset + stored, stored));
        let place = Place::Scatter(vec![(at, chunk, parts)]);
        jobs.push(Job { object, offset: chunk.offset, place });
    }
}

impl Job<'_> {
    fn stored_bytes(&self) -> u64 {
        match &self.place {
            Place::Direct { target, .. } => target.len() as u64,
            Place::Scatter(chunks) => {
                chunks.iter().map(|(_, c, _)| u64::from(c.stored_bytes)).sum()
            }
            Place::Linked(linked) => linked.stored_bytes(),
        }
    }

    fn run(self, (io, kept): (&dyn Io, Option<&Kept>), scratch: &mut Scratch) -> Result<()> {
        let Self { object, offset, place } = self;
        let done = match place {
            Place::Direct { chunks, target } => read_direct(io, &object, offset, &chunks, target),
            Place::Scatter(chunks) => {
                read_scattered((io, kept), (&object, offset), chunks, scratch)
            }
            Place::Linked(linked) => return linked.run(io),
        };
        done.map_err(|error| missing_is_damage(error).with_object(object))
    }
}

/// A pack that a committed checkpoint names and that is not there is damage.
fn missing_is_damage(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::corrupt("the pack is missing"),
        _ => error,
    }
}

/// Reads a range of a pack that must be there.
pub(super) fn read(io: &dyn Io, object: &str, offset: u64, into: &mut [u8]) -> Result<()> {
    twice(|| io.read_into(object, offset, into))
        .map_err(|error| missing_is_damage(error).with_object(object))
}

/// A damaged read is read once more: the flip may have been on the way.
pub(super) fn twice<T>(mut read: impl FnMut() -> Result<T>) -> Result<T> {
    match read() {
        Err(error) if error.kind() == ErrorKind::Corrupt => read(),
        done => done,
    }
}

/// Decodes a chunk whose stored bytes were read into `stored`, and gives the decoded ones to `place`. A damaged
/// chunk is read once more, alone: the flip may have been on the way.
pub(super) fn decode(
    io: &dyn Io,
    object: &str,
    (chunk, operands): (&PackedChunk, &[Operand<'_>]),
    stored: &mut [u8],
    scratch: &mut Vec<u8>,
    place: impl FnOnce(&[u8]),
) -> Result<()> {
    let PackedChunk { hash, offset, decoded_bytes, codec, .. } = chunk;
    let mut decoded = chunk::decode(*codec, stored, operands, *decoded_bytes, hash, scratch);
    let damaged = decoded.as_ref().is_err_and(|error| error.kind() == ErrorKind::Corrupt);
    if damaged && let Some(again) = read_again(io, object, *offset, stored)? {
        stored.copy_from_slice(&again);
        decoded = chunk::decode(*codec, stored, operands, *decoded_bytes, hash, scratch);
    }
    decoded.map(place)
}

/// Checks that a delta is what was stored; it is read once more if it is not.
pub(super) fn check_delta(
    io: &dyn Io,
    object: &str,
    chunk: &PackedChunk,
    stored: &[u8],
) -> Result<()> {
    match delta::check(stored) {
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            match read_again(io, object, chunk.offset, stored)? {
                Some(again) => delta::check(&again),
                None => Err(error),
            }
        }
        checked => checked,
    }
}

/// What is there now instead of `stored`, if it is something else.
fn read_again(io: &dyn Io, object: &str, offset: u64, stored: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut again = vec![0; stored.len()];
    if !again.is_empty() {
        io.read_into(object, offset, &mut again)?;
    }
    Ok((again != stored).then_some(again))
}

/// Memory that a thread reads into, again and again: what is allocated anew, the kernel clears anew.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) stored: Vec<u8>,
    pub(super) decoded: Vec<u8>,
}

fn read_direct(
    io: &dyn Io,
    object: &str,
    offset: u64,
    chunks: &[Chunk],
    target: &mut [u8],
) -> Result<()> {
    twice(|| io.read_into(object, offset, target))?;
    let mut rest = target;
    for chunk in chunks {
        let (bytes, tail) = rest.split_at_mut(chunk.decoded_bytes as usize);
        decode(io, object, (&packed(chunk), &[]), bytes, &mut Vec::new(), |_| {})
            .map_err(|e| at_offset(e, chunk))?;
        rest = tail;
    }
    Ok(())
}

fn read_scattered(
    (io, kept): (&dyn Io, Option<&Kept>),
    (object, offset): (&str, u64),
    chunks: Vec<(At, Chunk, Parts<'_>)>,
    scratch: &mut Scratch,
) -> Result<()> {
    let Scratch { stored, decoded } = scratch;
    let total: usize = chunks.iter().map(|(_, chunk, _)| chunk.stored_bytes as usize).sum();
    stored.resize(total, 0);
    if total > 0 {
        twice(|| io.read_into(object, offset, stored))?;
    }
    let mut rest = stored.as_mut_slice();
    for (at, chunk, mut parts) in chunks {
        let (bytes, tail) = rest.split_at_mut(chunk.stored_bytes as usize);
        rest = tail;
        decode(io, object, (&packed(&chunk), &[]), bytes, decoded, |decoded| {
            place(&mut parts, decoded);
        })
        .map_err(|e| at_offset(e, &chunk))?;
        if let Some(kept) = kept {
            kept.keep(at, bytes);
        }
    }
    Ok(())
}

pub(super) fn packed(chunk: &Chunk) -> PackedChunk {
    let Chunk { hash, offset, stored_bytes, decoded_bytes, codec, .. } = *chunk;
    PackedChunk { hash, offset, stored_bytes, decoded_bytes, codec }
}

pub(super) fn at_offset(error: Error, chunk: &Chunk) -> Error {
    error.context(format!("{} bytes at offset {}", chunk.stored_bytes, chunk.offset))
}

fn read_all(io: (&dyn Io, Option<&Kept>), mut jobs: Vec<Job<'_>>, reads: usize) -> Result<()> {
    jobs.sort_by(|a, b| (&a.object, a.offset).cmp(&(&b.object, b.offset)));
    let bytes = jobs.iter().map(Job::stored_bytes).sum();
    each(jobs, (bytes, reads), |job, scratch| job.run(io, scratch))
}

/// Runs `work` on every item and gives the first error; `bytes` is how much there is to read in all, `threads` how
/// many items are worked on at a time: more than there are cores, since they wait for the store in turn.
pub(super) fn each<T: Send>(
    items: Vec<T>,
    (bytes, threads): (u64, usize),
    work: impl Fn(T, &mut Scratch) -> Result<()> + Sync,
) -> Result<()> {
    let failed = AtomicBool::new(false);
    let threads = if bytes < THREADS_FROM { 1 } else { threads.min(items.len()) };
    let queue = Mutex::new(items.into_iter());
    let reader = || {
        let mut scratch = Scratch::default();
        loop {
            let item = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = item.filter(|_| !failed.load(Ordering::Relaxed)) else {
                return Ok(());
            };
            if let Err(error) = work(item, &mut scratch) {
                failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
    };
    if threads <= 1 {
        return reader();
    }
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(reader)).collect();
        let mut result = Ok(());
        for reader in readers {
            let done = reader
                .join()
                .unwrap_or_else(|_| Err(Error::internal("a thread that reads panicked")));
            result = result.and(done);
        }
        result
    })
}
