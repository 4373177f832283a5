//! The journal of a run: what went into each step and digests of what came out, durable step by step.
//!
//! Frames are numbered and chained by hash in *lanes*: one for the run as a whole, one for each logical rank. A
//! process appends the frames of its lanes to a local file, its *open segment*, synced in groups by a thread of
//! its own; from there they are *sealed* into the repository as immutable segments: before a checkpoint is
//! committed, when a segment is full, and after a while. The checkpoint names the *cut* that it includes, so
//! that what an attempt wrote after its last checkpoint, or after it was fenced, is no part of the history.
//!
//! | module | what it does |
//! |---|---|
//! | [`Journal`] | one process's lanes: append, wait, cut, seal |
//! | [`lanes`] | numbers and chains; pure |
//! | [`tail`] | open segments on the local disk |
//! | [`recover`] | what a crash has left of them |
//! | [`read`] | sealed segments, lane by lane and merged |
//! | [`history`] | which frames led to a checkpoint, or to now |
//! | [`audit`] | whether every frame is there and unchanged |

pub mod audit;
pub mod history;
pub mod lanes;
pub(crate) mod rank;
pub mod read;
pub mod record;
pub mod recover;
pub mod tail;
mod writer;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

pub use lanes::Event;
pub use lastgood_format::journal::{Cut, Frame, Kind, Lane, Position, Value};
use lastgood_format::{Error, Result};
pub use record::StepRecord;
pub use writer::{Journal, Ticket};

use crate::repository::Repository;
use crate::state::World;

/// How a rank writes its journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// The logical ranks whose events this process writes: the unit of data and of the order of reduction.
    /// Default its rank alone.
    pub logical: Option<Range<u32>>,
    /// The folder of the open segments, on a disk that outlives a crash of the process, and best of the
    /// machine. Default beside a local store.
    pub folder: Option<PathBuf>,
    /// How long events may stay out of the repository. Default 60 seconds.
    pub seal_after: Duration,
    /// True lets [`Run::step`](crate::Run::step) return when the step's events are durable, which costs it a
    /// sync of the disk; false loses those of the last milliseconds if the machine stops. Default false.
    pub wait: bool,
    /// Whether every save records fingerprints of the state, tensor by tensor, which are the same on any number
    /// of ranks; they cost about as much as the hashes of a save, where bytes have changed. Default true.
    pub digests: bool,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            logical: None,
            folder: None,
            seal_after: Duration::from_secs(60),
            wait: false,
            digests: true,
        }
    }
}

impl JournalOptions {
    /// What an open says of them.
    ///
    /// # Errors
    /// `Invalid` if an option is out of its range.
    pub fn check(&self, world: World) -> Result<()> {
        self.logical(world).map(drop)
    }

    /// The logical ranks of the process of `world`.
    fn logical(&self, world: World) -> Result<Range<u32>> {
        let own = || world.rank..world.rank + 1;
        let logical = self.logical.clone().unwrap_or_else(own);
        if logical.is_empty() || logical.end == u32::MAX {
            return Err(Error::invalid(format!("{logical:?} are no logical ranks"))
                .with_remedy("give the first one and the one behind the last"));
        }
        Ok(logical)
    }

    /// The folder of the open segments of a run's processes on this host.
    fn folder(&self, repository: &Repository, run: &str) -> Result<PathBuf> {
        if let Some(folder) = &self.folder {
            return Ok(folder.join(repository.id()).join(run));
        }
        let location = repository.store().location();
        match location.strip_prefix("file://") {
            Some(root) => Ok(PathBuf::from(root).join(".journal").join(run)),
            None => Err(Error::invalid(format!(
                "the journal of a run in {location} needs a folder on a local disk"
            ))
            .with_remedy("name one that outlives the process, or set LASTGOOD_JOURNAL")),
        }
    }
}
