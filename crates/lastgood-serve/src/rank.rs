//! What a supervised process learns from its environment.
//!
//! The names are those of `torchrun`, so that a script for it runs unchanged, and lastgood's own.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use lastgood::journal::JournalOptions;
use lastgood::state::World;
use lastgood::{Error, Heartbeat, Result, RunName, RunOptions};

/// The rank's number among all, from 0.
pub const RANK: &str = "RANK";
/// The number of all ranks.
pub const WORLD_SIZE: &str = "WORLD_SIZE";
/// The URL of the repository's store.
pub const STORE: &str = "LASTGOOD_STORE";
/// The name of the run.
pub const RUN: &str = "LASTGOOD_RUN";
/// The number of the attempt, for messages.
pub const ATTEMPT: &str = "LASTGOOD_ATTEMPT";
/// The name by which the ranks of one attempt find each other in the ledger.
pub const INCARNATION: &str = "LASTGOOD_INCARNATION";
/// The file to which a rank writes the number of finished steps plus 1: eight bytes, little-endian,
/// at offset 0.
pub const HEARTBEAT: &str = "LASTGOOD_HEARTBEAT";

/// The folder of open segments of journals, on a disk that outlives a process. Unless it is set, they lie beside a
/// local store, and for any other store where the user's state is kept.
pub const JOURNAL: &str = "LASTGOOD_JOURNAL";

/// A process as one rank of a run.
#[derive(Clone, Debug, Default)]
pub struct Rank {
    /// The URL of the store, if it was given.
    pub store: Option<String>,
    /// The run, if it was given.
    pub run: Option<RunName>,
    /// World, incarnation, heartbeat and journal, to open the run with; everything else is the default.
    pub options: RunOptions,
}

impl Rank {
    /// Reads the environment of this process. Without a supervisor it is a rank alone.
    ///
    /// # Errors
    /// `Invalid` naming the variable that cannot be read, or that is missing beside the others.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`Rank::from_env`], from `variable`.
    ///
    /// # Errors
    /// As [`Rank::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let rank = parse(RANK, variable(RANK))?;
        let size = parse(WORLD_SIZE, variable(WORLD_SIZE))?;
        let world = match (rank, size) {
            (None, None) => World::ALONE,
            (Some(rank), Some(size)) if rank < size => World { rank, size },
            (Some(rank), Some(size)) => {
                return Err(Error::invalid(format!("{RANK} is {rank} and {WORLD_SIZE} {size}"))
                    .with_remedy("ranks count from 0 to the world size less 1"));
            }
            _ => {
                return Err(Error::invalid(format!("only one of {RANK} and {WORLD_SIZE} is set"))
                    .with_remedy("set both, or start the job by `lastgood run`"));
            }
        };
        let incarnation = variable(INCARNATION);
        if world.size > 1 && incarnation.is_none() {
            return Err(Error::invalid(format!("{INCARNATION} is not set")).with_remedy(
                "give all ranks of one start the same unique name, or use `lastgood run`",
            ));
        }
        let heartbeat = variable(HEARTBEAT).map(|path| heartbeat(&path)).transpose()?;
        let store = variable(STORE);
        let folder = journal_folder(store.as_deref(), &variable);
        let journal = Some(JournalOptions { folder, ..JournalOptions::default() });
        Ok(Self {
            store,
            run: parse(RUN, variable(RUN))?,
            options: RunOptions { world, incarnation, heartbeat, journal, ..RunOptions::default() },
        })
    }
}

/// Where open segments lie for a store, unless that is beside it.
fn journal_folder(
    store: Option<&str>,
    variable: &impl Fn(&str) -> Option<String>,
) -> Option<PathBuf> {
    if let Some(folder) = variable(JOURNAL) {
        return Some(PathBuf::from(folder));
    }
    store.filter(|url| url.contains("://") && !url.starts_with("file://"))?;
    let state = variable("XDG_STATE_HOME").map(PathBuf::from);
    let state =
        state.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".local/state")));
    state.map(|state| state.join("lastgood/journal"))
}

fn parse<T: FromStr<Err: std::fmt::Display>>(
    name: &str,
    value: Option<String>,
) -> Result<Option<T>> {
    let parsed = value.map(|value| {
        value.parse().map_err(|error| Error::invalid(format!("{name} is {value:?}: {error}")))
    });
    parsed.transpose()
}

fn heartbeat(path: &str) -> Result<Heartbeat> {
    let file = OpenOptions::new().write(true).open(path).map_err(|error| {
        Error::invalid(format!("the file of {HEARTBEAT} cannot be written: {error}"))
            .with_object(path)
            .with_remedy("leave the variable to `lastgood run`, or unset it")
    })?;
    Ok(Arc::new(move |step: u64| {
        // A heart that cannot be heard must not stop the training; the supervisor then sees a stall.
        file.write_at(&step.saturating_add(1).to_le_bytes(), 0).ok();
    }))
}
