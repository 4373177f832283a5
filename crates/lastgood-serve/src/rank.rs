//! What a supervised process learns from its environment.
//!
//! The names are those of `torchrun`, so that a script for it runs unchanged, and lastgood's own.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use lastgood::journal::JournalOptions;
use lastgood::preflight::{Acceptance, PreflightOptions};
use lastgood::replay::{Plan, Replay};
use lastgood::state::World;
use lastgood::tier::Tier;
use lastgood::{Error, Heartbeat, Repository, Result, RunName, RunOptions};
use lastgood_store::{Env, SystemEnv};

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
/// The number that this rank's place had in the first attempt. It differs from the rank when lost ranks are not
/// replaced, whose places stay empty: who takes the device of this number leaves that of a lost rank alone.
pub const PLACE: &str = "LASTGOOD_PLACE";
/// The file to which a rank writes the number of finished steps plus 1: eight bytes, little-endian,
/// at offset 0.
pub const HEARTBEAT: &str = "LASTGOOD_HEARTBEAT";

/// The path of the [memory](lastgood::tier) that outlives this rank's process, which the supervisor holds.
pub const MEMORY: &str = "LASTGOOD_MEMORY";

/// The folder of open segments of journals, on a disk that outlives a process. Unless it is set, they lie beside a
/// local store, and for any other store where the user's state is kept.
pub const JOURNAL: &str = "LASTGOOD_JOURNAL";

/// The [plan](lastgood::replay::Plan) of a replay, as JSON: the process replays instead of doing what it would.
pub const REPLAY: &str = "LASTGOOD_REPLAY";

/// What a preflight does with what it finds: `refuse`, which is the default, `warn` or `off`.
pub const PREFLIGHT: &str = "LASTGOOD_PREFLIGHT";

/// What a preflight [accepts](lastgood::preflight::Acceptance), as JSON.
pub const ACCEPT: &str = "LASTGOOD_ACCEPT";

/// How a run goes on from its checkpoint: `live`, which is the default, or
/// [`replay`](lastgood::replay::Resume::Replay).
pub const RESUME: &str = "LASTGOOD_RESUME";

/// The prefixes of variables that stores take credentials and endpoints from.
pub const STORE_VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// The options of stores in the environment of this process, by lower-case name.
#[must_use]
pub fn store_options() -> BTreeMap<String, String> {
    std::env::vars()
        .filter(|(name, _)| STORE_VARIABLES.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect()
}

/// The repositories that the plan of a replay names.
///
/// # Errors
/// `Invalid`, `Incompatible` if it is no plan; those of [`Repository::open`].
pub fn open_replay(plan: &str, options: &BTreeMap<String, String>) -> Result<Replay> {
    let plan = Plan::decode(plan)?;
    let env: Arc<dyn Env> = Arc::new(SystemEnv::default());
    let open = |url: &str| lastgood_store::open_url(url, options, &env);
    let source = Repository::open(open(&plan.source.store)?, Arc::clone(&env))?;
    let into = Repository::create(open(&plan.into.store)?, Arc::clone(&env))?;
    Ok(Replay { plan, source, into })
}

/// A process as one rank of a run.
#[derive(Clone, Debug, Default)]
pub struct Rank {
    /// The URL of the store, if it was given.
    pub store: Option<String>,
    /// The run, if it was given.
    pub run: Option<RunName>,
    /// World, incarnation, memory, heartbeat, journal and preflight, to open the run with; everything else is the default.
    pub options: RunOptions,
    /// What a person should know: that the rank captures in memory of its own, and why.
    pub notices: Vec<String>,
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
        let accept = variable(ACCEPT).map(|text| Acceptance::decode(&text)).transpose()?;
        let preflight = PreflightOptions {
            mode: parse(PREFLIGHT, variable(PREFLIGHT))?.unwrap_or_default(),
            accept: accept.unwrap_or_default(),
        };
        let replay = variable(REPLAY).map(|plan| open_replay(&plan, &store_options()));
        let (tier, notice) = Tier::take_if_there(variable(MEMORY).as_deref());
        let options = RunOptions {
            world,
            incarnation,
            tier,
            heartbeat,
            journal,
            preflight,
            replay: replay.transpose()?,
            resume: parse(RESUME, variable(RESUME))?.unwrap_or_default(),
            ..RunOptions::default()
        };
        Ok(Self {
            store,
            run: parse(RUN, variable(RUN))?,
            options,
            notices: notice.into_iter().collect(),
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
