//! The memory tier: what a rank captured last, in memory that outlives its process.
//!
//! `lastgood run` holds a [`SharedMemory`] for each rank, and the rank's arenas lie in it. When the process crashes, the
//! next attempt finds there what it would read from the store otherwise, and the supervisor completes the commit of what
//! was captured and not committed yet.
//!
//! The memory has a slot for each arena:
//!
//! ```text
//! slot k, at k × 1 TiB     page      magic, state, where the table is
//!         + 2 MiB          segments  of the arena, 64 MiB apart
//!         behind them      table     a shard index: which chunk lies where
//! ```
//!
//! Nothing of it is trusted. The table ends with its hash, as every shard index does. A chunk is found by the hash that
//! the checkpoint gives it, and hashed again when it is read; if it is not what it was, it is read from the store.
//!
//! A restore may also take a tensor as it lies there, without a copy ([`Taking`]): it is hashed behind the call, and nothing
//! that came of it becomes durable before that is done.
//!
//! A slot is `filling` from the moment at which its arena may change; then `captured`, when all of a save is in it and
//! the save's journal is on disk; then `hashed`, when the table has the hashes of the chunks.

mod held;
mod left;
mod slot;
mod taken;

use std::sync::Arc;

pub(crate) use held::Held;
use lastgood_format::{Error, ErrorKind, Result};
use lastgood_store::SharedMemory;
pub(crate) use left::Left;
pub(crate) use slot::{Slot, State, table};
use taken::Checks;
pub use taken::{Taken, Taking};

/// A rank's part of the memory tier, in which it alone writes.
#[derive(Clone, Debug)]
pub struct Tier {
    memory: Arc<SharedMemory>,
    checks: Arc<Checks>,
}

impl Tier {
    /// Takes the memory at `path`, which a supervisor holds.
    ///
    /// # Errors
    /// `NotFound` if the supervisor has ended; `Denied` if it is another user's; `Invalid` if it is no such memory;
    /// `Conflict` if another process has taken it; `Incompatible` if this system has none.
    pub fn open(path: &str) -> Result<Self> {
        let memory = SharedMemory::open(path)?;
        if !memory.lock()? {
            let error = Error::new(ErrorKind::Conflict, "another process has taken the memory");
            return Err(error.with_object(path).with_remedy(
                "each rank needs memory of its own: start every rank by `lastgood run`, or run it with --memory off",
            ));
        }
        Ok(Self::new(memory))
    }

    /// As [`Tier::open`], for a rank that can do without: what it captures is then lost in a crash, until it is in the
    /// store. Beside the tier it gives what a person should know.
    #[must_use]
    pub fn take_if_there(path: Option<&str>) -> (Option<Self>, Option<String>) {
        match path.map(Self::open).transpose() {
            Ok(tier) => (tier, None),
            Err(error) => (None, Some(format!("it captures in memory of its own: {error}"))),
        }
    }

    /// The tier in `memory`, which nobody else writes to.
    #[must_use]
    pub fn new(memory: SharedMemory) -> Self {
        Self { memory: Arc::new(memory), checks: Arc::default() }
    }

    /// The slot of arena `number`, below [`SLOTS_MAX`](slot::SLOTS_MAX).
    pub(crate) fn slot(&self, number: u64) -> Option<Slot> {
        Slot::new(Arc::clone(&self.memory), Arc::clone(&self.checks), number)
    }

    /// The saves that are whole in it.
    pub(crate) fn left(&self) -> Vec<Left> {
        Left::all(&self.memory)
    }

    /// Begins a restore that takes tensors as they lie in memory.
    #[must_use]
    pub fn take(&self) -> Taking {
        Taking::new(&self.memory, &self.checks)
    }

    /// Waits until everything that was taken is verified.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged: nothing that came of it may become durable.
    pub fn wait_verified(&self) -> Result<()> {
        self.checks.wait_verified()
    }

    /// What is in it now.
    pub(crate) fn held(&self) -> Arc<Held> {
        self.checks.held(&self.memory)
    }
}
