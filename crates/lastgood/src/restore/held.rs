//! Placing what the memory tier holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use lastgood_format::{Hash, Result};

use super::contents::Contents;
use super::fetch::{self, At, Parts};
use super::plan::Piece;
use crate::tier::Held;

/// Threads that copy and hash.
const COPIERS: usize = 2;

/// Places the chunks that are `held` and are what the checkpoint says they are, and gives them. What is in the targets
/// of all others means nothing yet.
pub(super) fn place(
    contents: &Contents,
    held: &Held,
    wanted: &[Vec<(At, Piece)>],
    memory: &mut [&mut [u8]],
) -> Result<BTreeSet<At>> {
    if held.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut found: BTreeMap<At, (&[u8], Parts<'_>)> = BTreeMap::new();
    let mut bytes = 0;
    for (pieces, slice) in wanted.iter().zip(memory) {
        let mut rest: &mut [u8] = slice;
        for (at, piece) in pieces {
            let (head, tail) = rest.split_at_mut_checked(piece.bytes).ok_or_else(fetch::overlap)?;
            rest = tail;
            let chunk = contents.indexes()[at.0].chunks[at.1 as usize];
            if let Some(stored) = held.find(&chunk.hash, chunk.decoded_bytes) {
                bytes += piece.bytes as u64;
                found.entry(*at).or_insert((stored, Parts::new())).1.push((piece.from, head));
            }
        }
    }
    let placed = Mutex::new(BTreeSet::new());
    fetch::each(
        found.into_iter().collect(),
        (bytes, COPIERS),
        |(at, (stored, parts)), scratch| {
            let hash = &contents.indexes()[at.0].chunks[at.1 as usize].hash;
            if copy(stored, parts, hash, &mut scratch.decoded) {
                placed.lock().unwrap_or_else(PoisonError::into_inner).insert(at);
            }
            Ok(())
        },
    )?;
    Ok(placed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Copies the `parts` of a chunk, and says whether its bytes are those of `hash`. It is the copy that is hashed: the
/// memory is not this process's alone.
fn copy(stored: &[u8], mut parts: Parts<'_>, hash: &Hash, scratch: &mut Vec<u8>) -> bool {
    if let [(0, whole)] = parts.as_mut_slice()
        && whole.len() == stored.len()
    {
        whole.copy_from_slice(stored);
        return Hash::of(whole) == *hash;
    }
    scratch.clear();
    scratch.extend_from_slice(stored);
    if Hash::of(scratch) != *hash {
        return false;
    }
    for (from, target) in parts {
        target.copy_from_slice(&scratch[from..from + target.len()]);
    }
    true
}
