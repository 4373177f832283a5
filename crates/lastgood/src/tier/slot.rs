//! One arena's part of the memory, and how it is written.

use std::ops::Range;
use std::sync::Arc;

use lastgood_format::chunk::Codec;
use lastgood_format::index::{Chunk, Pack, ShardIndex};
use lastgood_format::key;
use lastgood_format::{ErrorKind, Result};
use lastgood_store::{Mapped, SharedMemory};

use super::taken::Checks;
use crate::save::SEGMENT_BYTES;

/// How many slots are looked for.
pub(super) const SLOTS_MAX: u64 = 16;

/// From one slot to the next. What is not written takes no memory.
pub(super) const SLOT_BYTES: u64 = 1 << 40;

/// Where the segments begin: at a huge page.
pub(super) const HEAD_BYTES: u64 = 2 << 20;

/// From one segment to the next.
pub(super) const STRIDE: u64 = SEGMENT_BYTES as u64;

/// The segments that a slot has room for, and a table behind them.
const SEGMENTS_MAX: u64 = (SLOT_BYTES - HEAD_BYTES) / STRIDE - TABLE_BYTES_MAX / STRIDE - 1;

/// A table of more bytes is none.
const TABLE_BYTES_MAX: u64 = ShardIndex::BYTES_MAX;

const MAGIC: &[u8; 8] = b"LGMEMRY1";

/// The bytes of the page that mean something.
const PAGE_BYTES: usize = 32;

/// How far the save in a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It may change at any moment.
    Filling,
    /// It is complete, and its chunks are not hashed: the hashes of the table mean nothing.
    Captured,
    /// The table has the hashes of the chunks.
    Hashed,
}

/// The memory of one arena.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    memory: Arc<SharedMemory>,
    checks: Arc<Checks>,
    begin: u64,
}

/// What the page of a slot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) state: State,
    /// Where the table lies, from the beginning of the slot.
    pub(super) table: Range<u64>,
}

impl Slot {
    pub(super) fn new(memory: Arc<SharedMemory>, checks: Arc<Checks>, number: u64) -> Option<Self> {
        (number < SLOTS_MAX).then(|| Self { memory, checks, begin: number * SLOT_BYTES })
    }

    /// Says that the slot may change from now on, once nobody sees it any more.
    ///
    /// # Errors
    /// `Overloaded` if there is no memory; `Unavailable`; `Corrupt` if what was taken from it is damaged.
    pub(crate) fn begin(&self) -> Result<()> {
        self.checks.wait_settled()?;
        self.memory.grow(self.begin + HEAD_BYTES)?;
        self.write_page(State::Filling, 0..0)
    }

    /// The memory of segment `i`; `None` if the slot has no room for it.
    ///
    /// # Errors
    /// `Overloaded` if there is no memory.
    pub(crate) fn segment(&self, i: usize, bytes: usize) -> Result<Option<Mapped>> {
        let i = i as u64;
        if i >= SEGMENTS_MAX || bytes as u64 > STRIDE || bytes == 0 {
            return Ok(None);
        }
        let begin = self.begin + HEAD_BYTES + i * STRIDE;
        self.memory.grow(begin + STRIDE)?;
        let map = self.memory.map(begin..begin + bytes as u64)?;
        match map.populate() {
            // The first capture is slower then.
            Err(error) if error.kind() != ErrorKind::Incompatible => Err(error),
            Ok(()) | Err(_) => Ok(Some(map)),
        }
    }

    /// Gives back the memory of all segments from number `first` on.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) fn release_from(&self, first: usize) -> Result<()> {
        let first = self.begin + HEAD_BYTES + (first as u64).min(SEGMENTS_MAX) * STRIDE;
        self.memory.release(first..self.begin + SLOT_BYTES)
    }

    /// Says that the save which `table` tells of is in the slot, which stays as it is until the next
    /// [`Slot::begin`].
    ///
    /// # Errors
    /// `Overloaded` if there is no memory; `Unavailable`; `Internal` if the table is not well formed.
    pub(crate) fn tell(&self, state: State, table: &ShardIndex) -> Result<()> {
        let encoded = table.encode()?;
        let last = table.chunks.iter().map(|chunk| chunk.offset).max().unwrap_or(HEAD_BYTES);
        let begin = HEAD_BYTES + ((last - HEAD_BYTES) / STRIDE + 1) * STRIDE;
        let end = begin + encoded.len() as u64;
        self.write_page(State::Filling, 0..0)?;
        self.memory.grow(self.begin + end)?;
        self.memory.write_at(self.begin + begin, &encoded)?;
        self.write_page(state, begin..end)
    }

    /// Says that what is in it is not to be read any more.
    pub(super) fn forget(&self) {
        // If it cannot be said, whoever reads it finds out as well.
        self.write_page(State::Filling, 0..0).unwrap_or_default();
    }

    fn write_page(&self, state: State, table: Range<u64>) -> Result<()> {
        self.checks.changes();
        self.memory.write_at(self.begin, &Page { state, table }.encode())
    }
}

impl Page {
    fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        let state: u64 = match self.state {
            State::Filling => 0,
            State::Captured => 1,
            State::Hashed => 2,
        };
        page[..8].copy_from_slice(MAGIC);
        page[8..16].copy_from_slice(&state.to_le_bytes());
        page[16..24].copy_from_slice(&self.table.start.to_le_bytes());
        page[24..].copy_from_slice(&self.table.end.to_le_bytes());
        page
    }

    /// The page of slot `number`; `None` if there is none that can be understood.
    pub(super) fn read(memory: &SharedMemory, number: u64) -> Option<Self> {
        let mut page = [0; PAGE_BYTES];
        memory.read_at(number * SLOT_BYTES, &mut page).ok()?;
        let word = |i: usize| Some(u64::from_le_bytes(page.get(i..i + 8)?.try_into().ok()?));
        let state = match word(8)? {
            0 => State::Filling,
            1 => State::Captured,
            2 => State::Hashed,
            _ => return None,
        };
        let table = word(16)?..word(24)?;
        let bytes = table.end.checked_sub(table.start)?;
        let fits = table.start >= HEAD_BYTES && table.end <= SLOT_BYTES && bytes <= TABLE_BYTES_MAX;
        (page.starts_with(MAGIC) && (fits || state == State::Filling))
            .then_some(Self { state, table })
    }
}

/// The table of a save: `index` with its chunks where they lie in a slot, each as the segment and the offset in it.
pub(crate) fn table(
    index: &ShardIndex,
    places: impl Iterator<Item = (usize, usize)>,
) -> ShardIndex {
    let chunk = |(chunk, (segment, offset)): (&Chunk, (usize, usize))| Chunk {
        pack: 0,
        offset: HEAD_BYTES + segment as u64 * STRIDE + offset as u64,
        stored_bytes: chunk.decoded_bytes,
        codec: Codec::Raw,
        ..*chunk
    };
    ShardIndex {
        chunks: index.chunks.iter().zip(places).map(chunk).collect(),
        packs: vec![Pack {
            object: key::pack_in_run(&index.save, index.rank, 0),
            bytes: SLOT_BYTES,
            is_new: true,
        }],
        reuses: Vec::new(),
        bases: Vec::new(),
        operands: std::collections::BTreeMap::new(),
        ..index.clone()
    }
}
