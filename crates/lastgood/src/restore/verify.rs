//! Reading back every byte that a checkpoint stands on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lastgood_format::chunk::Codec;
use lastgood_format::index::Chunk;
use lastgood_format::pack::{self, PackedChunk};
use lastgood_format::{Error, ErrorKind, Result};

use super::contents::Contents;
use super::fetch::{self, Scratch, each, twice};
use crate::io::Io;

/// A pack is about 64 MiB and holds at least one chunk of at most 16 MiB; nothing that is larger than
/// this was written by lastgood.
const PACK_BYTES_MAX: u64 = 1 << 30;

/// So many packs are read at a time, each of them whole.
const PACKS_MAX: usize = 4;

/// By the name of each pack that the checkpoint stands on, its bytes and the chunks that are named in it.
type Packs<'c> = BTreeMap<&'c str, (u64, Vec<&'c Chunk>)>;

/// What is known of packs that were verified, by their keys. One on which several checkpoints stand is read for
/// the first of them alone.
#[derive(Debug, Default)]
pub struct VerifiedPacks(Mutex<BTreeMap<String, Verified>>);

/// The bytes of a pack, and the chunks in it, or how it is damaged.
#[derive(Clone, Debug)]
struct Verified {
    bytes: u64,
    table: Result<Arc<[PackedChunk]>>,
}

impl VerifiedPacks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Verified>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, object: &str, bytes: u64) -> Option<Result<Arc<[PackedChunk]>>> {
        let packs = self.lock();
        packs.get(object).filter(|pack| pack.bytes == bytes).map(|pack| pack.table.clone())
    }

    /// Remembers what was read, unless a later look may find something else.
    fn keep(&self, object: &str, bytes: u64, table: &Result<Arc<[PackedChunk]>>) {
        if table.as_ref().is_ok() || table.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corrupt) {
            self.lock().insert(object.to_owned(), Verified { bytes, table: table.clone() });
        }
    }
}

/// Reads every pack of the checkpoint whole that is not known yet: header, footer, every chunk in it; and checks
/// that the chunks that the shard indexes name are those in the pack. Gives the bytes of the packs.
pub(crate) fn verify_all(
    io: &dyn Io,
    contents: &Contents,
    known: &VerifiedPacks,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<u64> {
    let packs = packs(contents)?;
    let total = packs.values().map(|(bytes, _)| bytes).sum();
    let done = AtomicU64::new(0);
    progress(0, total);
    each(packs.into_iter().collect(), (total, PACKS_MAX), |(object, (bytes, chunks)), scratch| {
        let object = format!("{}{object}", contents.folder());
        let table = known.get(&object, bytes).unwrap_or_else(|| {
            let table = read_pack(io, &object, bytes, scratch).map(Arc::from);
            known.keep(&object, bytes, &table);
            table
        });
        table
            .and_then(|table| check_named(&table, &chunks))
            .map_err(|error| error.with_object(object))?;
        progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
        Ok(())
    })?;
    fetch::verify_deltas(io, contents)?;
    Ok(total)
}

/// Looks whether every pack of the checkpoint is there with its size, and gives how many they are and their bytes.
pub(crate) fn check_sizes(io: &dyn Io, contents: &Contents) -> Result<(u64, u64)> {
    let packs = packs(contents)?;
    let (count, total) = (packs.len() as u64, packs.values().map(|(bytes, _)| bytes).sum());
    // Questions wait for the store and not for this machine: many at once even if there is little to read.
    let at_a_time = (u64::MAX, io.transfers().reads);
    each(packs.into_iter().collect(), at_a_time, |(object, (bytes, _)), _| {
        let object = format!("{}{object}", contents.folder());
        check_size(io, &object, bytes).map_err(|error| error.with_object(object))
    })?;
    Ok((count, total))
}

fn check_size(io: &dyn Io, object: &str, bytes: u64) -> Result<()> {
    let found = io.size(object)?;
    if found != Some(bytes) || bytes > PACK_BYTES_MAX {
        let found = found.map_or_else(|| "no such object".into(), |found| format!("{found} bytes"));
        return Err(Error::corrupt(format!("pack: expected {bytes} bytes, found {found}")));
    }
    Ok(())
}

/// Reads the pack `object` as [`verify_all`] does.
pub(crate) fn verify_one(io: &dyn Io, contents: &Contents, object: &str) -> Result<u64> {
    let mut packs = packs(contents)?;
    let name = object.strip_prefix(contents.folder());
    let (bytes, chunks) = name.and_then(|name| packs.remove(name)).ok_or_else(|| {
        Error::not_found("the checkpoint stands on no such pack").with_object(object)
    })?;
    read_pack(io, object, bytes, &mut Scratch::default())
        .and_then(|table| check_named(&table, &chunks))
        .map_err(|e| e.with_object(object))?;
    Ok(bytes)
}

fn packs(contents: &Contents) -> Result<Packs<'_>> {
    let mut packs = Packs::new();
    for index in contents.indexes() {
        for chunk in index.all_chunks() {
            let pack = &index.packs[chunk.pack as usize];
            let entry = packs.entry(&pack.object).or_insert_with(|| (pack.bytes, Vec::new()));
            if entry.0 != pack.bytes {
                return Err(Error::corrupt("two shard indexes differ on the size of a pack")
                    .with_object(pack.object.clone()));
            }
            entry.1.push(chunk);
        }
    }
    Ok(packs)
}

/// Reads a pack whole and gives the chunks in it, each of them verified.
fn read_pack(
    io: &dyn Io,
    object: &str,
    bytes: u64,
    scratch: &mut Scratch,
) -> Result<Vec<PackedChunk>> {
    check_size(io, object, bytes)?;
    let Scratch { stored, decoded } = scratch;
    stored.resize(bytes as usize, 0);
    let table = twice(|| {
        io.read_into(object, 0, stored)?;
        pack::parse(stored)
    })?;
    for packed in &table {
        let begin = packed.offset as usize;
        let stored = &mut stored[begin..begin + packed.stored_bytes as usize];
        let checked = match packed.codec {
            // What it is made of may lie in other packs: here only that it is what was stored.
            Codec::Delta => fetch::check_delta(io, object, packed, stored),
            _ => fetch::decode(io, object, (packed, &[]), stored, decoded, |_| {}),
        };
        checked.map_err(|e| e.context(format!("chunk at offset {begin}")))?;
    }
    Ok(table)
}

/// Checks that the pack lists all chunks that are `named` in it.
fn check_named(table: &[PackedChunk], named: &[&Chunk]) -> Result<()> {
    let there: BTreeSet<_> = table
        .iter()
        .map(|p| (p.hash, p.offset, p.stored_bytes, p.decoded_bytes, p.codec))
        .collect();
    for chunk in named {
        let key = (chunk.hash, chunk.offset, chunk.stored_bytes, chunk.decoded_bytes, chunk.codec);
        let zero = chunk.codec == Codec::Zero;
        if !zero && !there.contains(&key) {
            return Err(Error::corrupt(format!(
                "the shard index names a chunk at offset {} that the pack does not list",
                chunk.offset
            )));
        }
    }
    Ok(())
}
