//! Chunks that a first look at a checkpoint has read, and that a second one need not read again.
//!
//! Values are read before it is known which tensors are wanted, and share chunks with small tensors.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fetch::At;

/// More than this is never kept.
const BYTES_MAX: usize = 4 << 20;

/// Stored bytes by the place of their chunk. They are verified whenever they are used.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    chunks: BTreeMap<At, Arc<[u8]>>,
    bytes: usize,
}

impl Kept {
    /// True for reads of so little that they are kept.
    pub(super) fn takes(bytes: u64) -> bool {
        bytes <= BYTES_MAX as u64
    }

    /// Keeps the stored bytes of a chunk, if there is room for them.
    pub(super) fn keep(&self, at: At, stored: &[u8]) {
        let mut held = self.lock();
        if held.bytes + stored.len() <= BYTES_MAX && !held.chunks.contains_key(&at) {
            held.bytes += stored.len();
            held.chunks.insert(at, stored.into());
        }
    }

    pub(super) fn get(&self, at: &At) -> Option<Arc<[u8]>> {
        self.lock().chunks.get(at).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
