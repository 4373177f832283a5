//! Tensors that are taken as they lie in memory, and verified behind the call.
//!
//! Nothing is copied: the process sees the pages themselves, until it writes to one, which gives it a page of its own.
//! Behind the call threads hash what was taken; then they give every page of it memory of its own, so that the next save
//! may be captured where it lies. Until the hashing is done nothing may become durable that comes of it.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use lastgood_format::layout::NdBox;
use lastgood_format::{Error, ErrorKind, Hash, Result};
use lastgood_store::{Mapped, SharedMemory};

use super::held::{Held, Place};
use super::slot::{SLOT_BYTES, Slot};
use crate::restore::Contents;

/// What is smaller is copied rather than mapped.
const BYTES_MIN: usize = 64 << 10;

/// The least common multiple of the sizes of pages.
const PAGE: u64 = 64 << 10;

/// How the memory of a tensor is aligned, in bytes.
const ALIGNMENT: usize = 64;

/// Threads that hash.
const HASHERS: usize = 2;

/// A restore that takes tensors as they lie in memory.
#[derive(Debug)]
pub struct Taking {
    memory: Arc<SharedMemory>,
    /// Empty if nothing can be taken.
    held: Arc<Held>,
    checks: Arc<Checks>,
    taken: Vec<Tensor>,
}

/// A tensor that was taken, and the chunks that it is of.
#[derive(Debug)]
struct Tensor {
    map: Arc<Mapped>,
    chunks: Vec<(Hash, Place)>,
}

/// The memory of a tensor, which this process alone changes.
#[derive(Clone, Debug)]
pub struct Taken {
    map: Arc<Mapped>,
    range: Range<usize>,
}

impl Taken {
    /// The address of its first byte, as long as this or a clone of it is there. It may be read and written to.
    #[must_use]
    pub fn address(&self) -> usize {
        self.map.as_ptr() as usize + self.range.start
    }

    /// The number of its bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// A copy of its bytes as they are now.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.map[self.range.clone()].to_vec()
    }
}

impl Taking {
    pub(super) fn new(memory: &Arc<SharedMemory>, checks: &Arc<Checks>) -> Self {
        let (memory, checks) = (Arc::clone(memory), Arc::clone(checks));
        // What cannot be given memory of its own again would change with the next save.
        let probe = memory.bytes().and_then(|bytes| memory.map_private(0..bytes.min(PAGE)));
        let can_settle = probe.and_then(|map| map.populate()).is_ok();
        let held = if can_settle { checks.held(&memory) } else { Arc::default() };
        Self { held, memory, checks, taken: Vec::new() }
    }

    /// The part `extent` of a tensor of `contents`, if it lies in memory as it was captured: in one piece, and as a rank
    /// captured it.
    pub fn take(
        &mut self,
        contents: &Contents,
        (component, name): (&str, &str),
        extent: &NdBox,
    ) -> Option<Taken> {
        let info = contents.data_of(component, name)?;
        let shards = info.shards.iter().map(|at| (at.0, contents.shard(*at).1));
        let (index, shard) = shards.into_iter().find(|(_, shard)| shard.extent == *extent)?;
        let bytes = extent.elements().and_then(|count| info.dtype.bytes_of(count))?;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes >= BYTES_MIN)?;
        let rows = contents.indexes()[index].chunks.get(shard.first_chunk as usize..)?;
        let mut left = bytes;
        let mut places: Vec<(Hash, Place)> = Vec::new();
        let begin = shard.chunk_offset as usize;
        for chunk in rows {
            let place = self.held.place(&chunk.hash, chunk.decoded_bytes)?;
            if places.last().is_some_and(|(_, last)| !last.is_followed_by(place)) {
                return None;
            }
            left =
                left.saturating_sub(place.range.len() - if places.is_empty() { begin } else { 0 });
            places.push((chunk.hash, place.clone()));
            if left == 0 {
                break;
            }
        }
        let first = &places.first().filter(|_| left == 0)?.1;
        let start = first.range.start + begin;
        if !start.is_multiple_of(ALIGNMENT) {
            return None;
        }
        let in_memory = self.held.number(first)? * SLOT_BYTES + start as u64;
        let page = in_memory / PAGE * PAGE;
        let map = self.memory.map_private(page..in_memory + bytes as u64).ok()?;
        let begin = (in_memory - page) as usize;
        let taken = Taken { map: Arc::new(map), range: begin..begin + bytes };
        self.taken.push(Tensor { map: Arc::clone(&taken.map), chunks: places });
        Some(taken)
    }

    /// Verifies behind the call what was taken, as far as `contents` names it.
    ///
    /// # Errors
    /// `Overloaded` if there is no thread for it.
    pub fn verify_behind(self) -> Result<()> {
        let Self { memory, held, checks, taken } = self;
        if taken.is_empty() {
            return Ok(());
        }
        checks.begin();
        let behind = Arc::clone(&checks);
        let spawned = thread::Builder::new().name("lastgood-verify".into()).spawn(move || {
            let mut end = Ending { checks: &behind, is_verified: false };
            let damaged = verify(&held, &taken);
            if let Some(number) = damaged
                && let Some(slot) = Slot::new(memory, Arc::clone(&behind), number)
            {
                // The next attempt reads the store.
                slot.forget();
            }
            end.verified(damaged.map(|_| damage()));
            for tensor in &taken {
                if let Err(error) = tensor.map.populate() {
                    behind.fail(error.context("the memory of a restored tensor"));
                }
            }
        });
        match spawned {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = Error::new(ErrorKind::Overloaded, format!("no thread: {error}"));
                checks.verified(Some(error.clone()));
                checks.settle();
                Err(error)
            }
        }
    }
}

fn damage() -> Error {
    Error::corrupt("the memory that the state was restored from is not what was captured there")
        .with_remedy("start again: the next attempt reads the store; look at the machine's memory")
}

/// The number of a slot in which something is not what it should be.
fn verify(held: &Held, taken: &[Tensor]) -> Option<u64> {
    let mut places: Vec<&(Hash, Place)> = taken.iter().flat_map(|tensor| &tensor.chunks).collect();
    places.sort_by_key(|(hash, _)| *hash);
    places.dedup_by_key(|(hash, _)| *hash);
    let parts = places.chunks(places.len().div_ceil(HASHERS).max(1));
    let look = |part: &[&(Hash, Place)]| {
        let is_wrong = |(hash, place): &&(Hash, Place)| {
            held.bytes(place).is_none_or(|bytes| Hash::of(bytes) != *hash)
        };
        let wrong = part.iter().copied().find(is_wrong);
        wrong.map(|(_, place)| held.number(place).unwrap_or_default())
    };
    thread::scope(|scope| {
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || look(part))).collect();
        parts.into_iter().find_map(|part| part.join().unwrap_or(Some(0)))
    })
}

/// What is known of the memory, and of what was taken from it.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    state: Mutex<Checked>,
    changed: Condvar,
    /// What the memory holds, once somebody has asked: a restore asks several times.
    held: Mutex<Option<Arc<Held>>>,
}

#[derive(Debug, Default)]
struct Checked {
    /// Restores that are not verified.
    unverified: usize,
    /// Restores whose pages may still be those of the memory.
    unsettled: usize,
    error: Option<Error>,
}

impl Checks {
    /// What `memory` holds now.
    pub(super) fn held(&self, memory: &Arc<SharedMemory>) -> Arc<Held> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(held.get_or_insert_with(|| Arc::new(Held::new(memory))))
    }

    /// A slot becomes another.
    pub(super) fn changes(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn lock(&self) -> MutexGuard<'_, Checked> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) {
        let mut state = self.lock();
        state.unverified += 1;
        state.unsettled += 1;
    }

    fn verified(&self, error: Option<Error>) {
        let mut state = self.lock();
        state.unverified -= 1;
        state.error = state.error.take().or(error);
        self.changed.notify_all();
    }

    fn fail(&self, error: Error) {
        self.lock().error.get_or_insert(error);
    }

    fn settle(&self) {
        self.lock().unsettled -= 1;
        self.changed.notify_all();
    }

    /// Waits until everything that was taken is verified.
    ///
    /// # Errors
    /// `Corrupt` if something was not what it should be.
    pub(crate) fn wait_verified(&self) -> Result<()> {
        let waits = |state: &mut Checked| state.unverified > 0;
        let state = self.changed.wait_while(self.lock(), waits);
        state.unwrap_or_else(PoisonError::into_inner).error.clone().map_or(Ok(()), Err)
    }

    /// Waits until no process sees the pages of the memory any more that were taken.
    ///
    /// # Errors
    /// As `wait_verified`; `Overloaded` if there was no memory for them.
    pub(super) fn wait_settled(&self) -> Result<()> {
        let waits = |state: &mut Checked| state.unsettled > 0;
        let state = self.changed.wait_while(self.lock(), waits);
        state.unwrap_or_else(PoisonError::into_inner).error.clone().map_or(Ok(()), Err)
    }
}

/// Nobody waits for a thread that has ended, however it did.
struct Ending<'c> {
    checks: &'c Checks,
    is_verified: bool,
}

impl Ending<'_> {
    fn verified(&mut self, error: Option<Error>) {
        self.is_verified = true;
        self.checks.verified(error);
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_verified {
            self.verified(Some(Error::internal("the thread that verifies memory panicked")));
        }
        self.checks.settle();
    }
}
