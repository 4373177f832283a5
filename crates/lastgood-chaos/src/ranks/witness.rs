//! What ranks were told: the promises that must hold ever after.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lastgood_format::key::SaveKey;
use lastgood_format::{Error, Hash};

/// One thing that the library told a caller.
#[derive(Clone, Debug)]
pub enum Told {
    /// An attempt runs under a name.
    Attempt {
        /// The number of the attempt.
        number: u64,
        /// Its name.
        incarnation: String,
    },
    /// A save is a checkpoint.
    Committed {
        /// The save.
        save: SaveKey,
        /// The checkpoint.
        id: Hash,
    },
    /// The ledger ends so.
    Tail {
        /// The number of its entries.
        entries: u64,
        /// The hash of the last one.
        tail: Option<Hash>,
    },
    /// An entry was appended.
    Appended {
        /// Its number.
        n: u64,
        /// What tells it from every other.
        reason: String,
    },
    /// An entry was certainly not appended.
    NotAppended {
        /// What tells it from every other.
        reason: String,
    },
    /// A run was opened.
    Opened {
        /// How much had been told before that began.
        told_before: usize,
        /// The checkpoints that its history has.
        checkpoints: Vec<Hash>,
    },
    /// A checkpoint that the ledger calls usable could not be read.
    Unreadable {
        /// The checkpoint.
        id: Hash,
        /// What reading it said.
        error: Error,
    },
    /// A save met an object that holds something else.
    Collided {
        /// The save.
        save: SaveKey,
        /// What the put said.
        error: Error,
    },
}

#[derive(Debug, Default)]
struct Notes {
    told: Vec<Told>,
    waits: u64,
    lost_bases: u64,
}

/// Notes what is told, in order.
#[derive(Clone, Debug, Default)]
pub struct Witness(Arc<Mutex<Notes>>);

impl Witness {
    /// Notes it.
    pub fn note(&self, told: Told) {
        self.lock().told.push(told);
    }

    /// Notes that a save is not through yet.
    pub fn note_wait(&self) {
        self.lock().waits += 1;
    }

    /// Notes that a save reuses what may not be reused any more.
    pub fn note_lost_base(&self) {
        self.lock().lost_bases += 1;
    }

    /// How often a save reused what might not be reused any more.
    #[must_use]
    pub fn lost_bases(&self) -> u64 {
        self.lock().lost_bases
    }

    /// How often a save was not through yet.
    #[must_use]
    pub fn waits(&self) -> u64 {
        self.lock().waits
    }

    /// What was told so far.
    #[must_use]
    pub fn told(&self) -> Vec<Told> {
        self.lock().told.clone()
    }

    /// The number of things that were told so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().told.len()
    }

    /// Hands out everything that was told, and forgets it.
    #[must_use]
    pub fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.lock().told)
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
