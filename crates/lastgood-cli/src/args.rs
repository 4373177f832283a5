//! The arguments of every command.

mod demo;
mod examples;
mod policy;
mod proof;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lastgood::RunName;
use lastgood::journal::{Kind, Lane};
use lastgood::preflight::Acceptance;
use lastgood::replay::Resume;
use lastgood::restore::Selector;

pub(crate) use self::demo::{Component, Demo, DemoRank};
pub(crate) use self::policy::{PolicyCommand, Save};
pub(crate) use self::proof::{Bisect, CertificateCommand, KeyCommand, Prove, Replay, ReplayMode};

/// Keeps the state of training and serving jobs recoverable: atomic, verified checkpoints on any
/// store, and recovery from the last good one.
#[derive(Debug, Parser)]
#[command(name = "lastgood", version, after_help = examples::ALL, max_term_width = 100)]
pub(crate) struct Args {
    /// Print data as JSON, one object a line, to stdout; errors to stderr as {"error": …}
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the data is.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct StoreArgs {
    /// The store: a folder, file:///…, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix
    #[arg(long, env = "LASTGOOD_STORE", hide_env_values = true, value_name = "URL")]
    pub(crate) store: String,
}

/// Where the data is, and of which run.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// The run
    #[arg(long, env = "LASTGOOD_RUN", hide_env_values = true, value_name = "NAME")]
    pub(crate) run: RunName,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    /// It is
    On,
    /// It is not
    Off,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a job under supervision: restart it from the last good checkpoint until it is done
    #[command(after_help = examples::RUN)]
    Run(Supervise),
    /// List runs, or the checkpoints of one
    #[command(after_help = examples::LS)]
    Ls {
        #[command(flatten)]
        store: StoreArgs,
        /// List the checkpoints of this run instead of the runs
        #[arg(long, env = "LASTGOOD_RUN", hide_env_values = true, value_name = "NAME")]
        run: Option<RunName>,
        /// List only the last N of them
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
    /// Show what one checkpoint holds: components, tensors, sizes, parents
    #[command(after_help = examples::SHOW)]
    Show {
        #[command(flatten)]
        run: RunArgs,
        #[command(flatten)]
        at: At,
        /// List every tensor
        #[arg(long)]
        tensors: bool,
    },
    /// Print a run's ledger: every decision, in order; or its journal: every event
    #[command(after_help = examples::LOG, mut_group("Which", |which| which.requires("journal")))]
    Log {
        #[command(flatten)]
        run: RunArgs,
        /// Print only the last N entries
        #[arg(long, value_name = "N", conflicts_with = "journal")]
        last: Option<u64>,
        #[command(flatten)]
        journal: Journal,
    },
    /// Ask a run's journal by SQL: its events as a table
    #[command(after_help = examples::EVENTS)]
    Events(Events),
    /// Say what led to a tensor: the save, the attempt, ranks, hosts, steps, input and learning rates
    #[command(after_help = examples::WHY)]
    Why(Why),
    /// Read back and check every byte of a run, or of one checkpoint
    #[command(after_help = examples::VERIFY)]
    Verify {
        #[command(flatten)]
        run: RunArgs,
        /// Check only this checkpoint: last-good, latest, a step, or digits of an id
        #[arg(long, value_name = "SELECTOR")]
        at: Option<Selector>,
        /// Record the result in the ledger: verified, or bad
        #[arg(long)]
        mark: bool,
    },
    /// Give a checkpoint a standing: good, bad or verified
    #[command(after_help = examples::MARK)]
    Mark {
        #[command(flatten)]
        run: RunArgs,
        #[command(flatten)]
        at: At,
        /// The standing
        #[arg(value_enum)]
        standing: Mark,
        /// Why; recorded in the ledger
        #[arg(long, default_value = "marked by hand")]
        reason: String,
    },
    /// Ask the ranks of a run for a checkpoint: all save the same step, soon
    #[command(after_help = examples::SAVE)]
    Save(Save),
    /// When a run saves
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Say which checkpoints of other tools can be trusted, and which one is the last
    #[command(after_help = examples::DOCTOR)]
    Doctor {
        /// A folder with checkpoints at any depth, or one file
        path: PathBuf,
        /// Check sizes and structure only; do not read the bytes of tensors
        #[arg(long)]
        quick: bool,
        /// Take this name or module in pickles as harmless; may be repeated
        #[arg(long, value_name = "NAME")]
        allow: Vec<String>,
    },
    /// Save what another tool saved as a checkpoint: safetensors, torch.save, Lightning, DCP
    #[command(after_help = examples::IMPORT)]
    Import {
        /// A file of safetensors or torch.save; or a folder of DCP, or of safetensors with an index
        #[arg(value_name = "PATH")]
        file: PathBuf,
        #[command(flatten)]
        run: RunArgs,
        /// The step that it is the state of
        #[arg(long)]
        step: u64,
        /// The component that gets the tensors
        #[arg(long, default_value = "model")]
        component: String,
    },
    /// Write a checkpoint to a folder of safetensors files, verified, atomically
    #[command(visible_alias = "restore", after_help = examples::EXPORT)]
    Export {
        #[command(flatten)]
        run: RunArgs,
        #[command(flatten)]
        at: At,
        /// The folder; it appears whole or not at all, and takes the place of an earlier export at once
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// The format of the files
        #[arg(long, value_enum, default_value_t = Format::Safetensors)]
        format: Format,
        /// Write only this component; may be repeated
        #[arg(long, value_name = "NAME")]
        component: Vec<String>,
        /// Replace a folder that is no earlier export
        #[arg(long)]
        force: bool,
    },
    /// Say whether a restore would succeed and compute as before: environment, data, space, memory, time
    #[command(after_help = examples::PREFLIGHT)]
    Preflight(Preflight),
    /// Run a part of a run again beside what was recorded of it, and compare; or make the state of any step
    #[command(after_help = examples::REPLAY)]
    Replay(Replay),
    /// Find the first step where a run parts from its replay, or from another run, the tensor, and why
    #[command(after_help = examples::BISECT)]
    Bisect(Bisect),
    /// Recover, run the last steps again, compare, and sign what came out: without a person
    #[command(after_help = examples::PROVE)]
    Prove(Prove),
    /// Write what is known of an incident to one HTML file: timeline, checkpoint, steps, certificate
    #[command(after_help = examples::POSTMORTEM)]
    Postmortem {
        #[command(flatten)]
        run: RunArgs,
        /// The attempt that ended; the newest one that was followed by another unless given
        #[arg(long, value_name = "N")]
        attempt: Option<u64>,
        /// A certificate of the run to put into it, as `lastgood prove` makes them
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        /// The file
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Replace the file if it is there
        #[arg(long)]
        force: bool,
    },
    /// Keys that sign certificates
    #[command(after_help = examples::KEY)]
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Certificates of what was proven
    #[command(after_help = examples::CERTIFICATE)]
    Certificate {
        #[command(subcommand)]
        command: CertificateCommand,
    },
    /// Train a small network on 4 processes, kill some in the middle of saves, compare the end
    #[command(after_help = examples::DEMO)]
    Demo(Demo),
    /// Print a completion script for a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// One rank of the demo's training job
    #[command(hide = true, name = "__demo-rank")]
    DemoRank(DemoRank),
    /// Ends what ranks have started when their supervisor is gone
    #[command(hide = true, name = "__guard")]
    Guard,
    /// Ties a rank's life to its supervisor's, and becomes the rank
    #[command(hide = true, name = "__rank")]
    Rank {
        /// The process that must live for the rank to live
        #[arg(long)]
        parent: u32,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

/// The journal instead of the ledger.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Journal {
    /// Print the journal instead: what went into each step, and digests of what came out
    #[arg(long)]
    pub(crate) journal: bool,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Count them by attempt and kind instead of printing them
    #[arg(long, requires = "journal")]
    pub(crate) count: bool,
}

/// Which events of the journal.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Which {
    /// Only of these steps: N, N..M (both counted), N.. or ..M
    #[arg(long, value_name = "RANGE", value_parser = steps)]
    pub(crate) steps: Option<RangeInclusive<u64>>,
    /// Only of this logical rank, or of `control`; may be repeated
    #[arg(long = "rank", value_name = "RANK")]
    pub(crate) ranks: Vec<Lane>,
    /// Only of this kind, such as step or state.digest; may be repeated
    #[arg(long = "kind", value_name = "KIND")]
    pub(crate) kinds: Vec<Kind>,
    /// Only those that name this tensor
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: Option<String>,
    /// Only those whose cause holds this text
    #[arg(long, value_name = "TEXT")]
    pub(crate) cause: Option<String>,
    /// What overtaken and fenced attempts wrote as well, which is no part of the history
    #[arg(long)]
    pub(crate) all: bool,
}

/// Arguments of `lastgood events`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Events {
    /// The store: a folder, file:///…, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix
    #[arg(long, env = "LASTGOOD_STORE", hide_env_values = true, value_name = "URL")]
    #[arg(required_unless_present = "schema")]
    pub(crate) store: Option<String>,
    /// The run
    #[arg(long, env = "LASTGOOD_RUN", hide_env_values = true, value_name = "NAME")]
    #[arg(required_unless_present = "schema")]
    pub(crate) run: Option<RunName>,
    /// The query, in the SQL of SQLite; it can only read
    #[arg(long, value_name = "QUERY", allow_hyphen_values = true)]
    pub(crate) sql: Option<String>,
    /// Print the columns of the table, and what events of each kind hold; needs no store
    #[arg(long, conflicts_with_all = ["sql", "export"])]
    pub(crate) schema: bool,
    /// Write the table to this file, a database of SQLite, for other tools
    #[arg(long, value_name = "FILE", conflicts_with = "sql")]
    pub(crate) export: Option<PathBuf>,
    /// Replace the file
    #[arg(long, requires = "export")]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) which: Which,
}

impl Events {
    /// Where the data is; `None` if that was left out, as it may be for the schema.
    pub(crate) fn place(&self) -> Option<RunArgs> {
        let (store, run) = (self.store.clone()?, self.run.clone()?);
        Some(RunArgs { store: StoreArgs { store }, run })
    }
}

/// Arguments of `lastgood why`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Why {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// The tensor, as `lastgood show --tensors` names it, or COMPONENT/TENSOR
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: String,
    /// After which step
    #[arg(long = "at", value_name = "STEP")]
    pub(crate) step: u64,
    /// Only what this logical rank read, and the part that its process saved
    #[arg(long, value_name = "RANK")]
    pub(crate) rank: Option<u32>,
}

/// `N`, `N..M`, `N..` or `..M`.
fn steps(text: &str) -> Result<RangeInclusive<u64>, String> {
    let number = |text: &str, empty: u64| match text {
        "" => Ok(empty),
        _ => text.parse().map_err(|_| format!("{text:?} is no step")),
    };
    let range = match text.split_once("..") {
        Some((first, last)) => number(first, 0)?..=number(last, u64::MAX)?,
        None => text.parse().map(|step| step..=step).map_err(|_| format!("{text:?} is no step"))?,
    };
    if range.is_empty() { Err("the range is empty".into()) } else { Ok(range) }
}

/// Which checkpoint.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct At {
    /// Which checkpoint: last-good, latest, a step, or at least 8 digits of an id
    #[arg(long, value_name = "SELECTOR", default_value = "last-good")]
    pub(crate) at: Selector,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mark {
    Good,
    Bad,
    Verified,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Safetensors,
}

/// Arguments of `lastgood run`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Supervise {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// The number of ranks
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) ranks: u32,
    /// Go on with fewer ranks when one is lost, instead of replacing it: for a job that comes to the same with any
    /// number of ranks, and restores on it
    #[arg(long)]
    pub(crate) shrink: bool,
    /// With --shrink, go on with at least this many ranks: who is lost of the last ones is replaced
    #[arg(long, default_value_t = 1, value_name = "N", requires = "shrink")]
    pub(crate) min_ranks: u32,
    /// Give up after this many restarts without a new checkpoint between them
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) restarts: u32,
    /// Start again when no rank made progress for this long: finished a step, or, if the job tells of
    /// no steps, printed a line; 0s for never
    #[arg(long, default_value = "30m", value_name = "DURATION",
          value_parser = humantime::parse_duration)]
    pub(crate) stall_timeout: std::time::Duration,
    /// How long ranks may take to end after SIGTERM
    #[arg(long, default_value = "30s", value_name = "DURATION",
          value_parser = humantime::parse_duration)]
    pub(crate) grace: std::time::Duration,
    /// Ranks capture in memory that this process holds: when one crashes, the next attempt need not read its state from
    /// the store, and a save that was in memory alone is completed
    #[arg(long, default_value = "on", value_name = "on|off")]
    pub(crate) memory: OnOff,
    /// What is done if a restore would compute otherwise than the process that saved: refuse, warn or off
    #[arg(long, value_name = "MODE", value_parser = ["refuse", "warn", "off"])]
    pub(crate) preflight: Option<String>,
    #[command(flatten)]
    pub(crate) accept: Accept,
    /// How it goes on from its checkpoint: `live`; or `replay`, which does again what is recorded behind the checkpoint,
    /// and ends if that comes to something else
    #[arg(long, value_name = "HOW", default_value_t = Resume::Live)]
    pub(crate) resume: Resume,
    /// The port of MASTER_PORT; a free one for each attempt unless given
    #[arg(long, value_name = "PORT")]
    pub(crate) master_port: Option<u16>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

impl Supervise {
    /// A job that goes on by a replay, and otherwise as it does by default.
    ///
    /// # Errors
    /// None unless an argument without a default was added.
    pub(crate) fn by_replay(
        run: RunArgs,
        ranks: u32,
        command: Vec<OsString>,
    ) -> Result<Self, clap::Error> {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            job: Supervise,
        }
        let Alone { job } =
            Parser::try_parse_from(["run", "--store", ".", "--run", "job", "--", "job"])?;
        Ok(Self { run, ranks, resume: Resume::Replay, command, ..job })
    }
}

/// What of a difference is accepted.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Accept {
    /// Go on although this differs: a key of the environment, or with a dot at its end all keys that begin
    /// so; may be repeated
    #[arg(long = "accept", value_name = "KEY", requires = "reason")]
    pub(crate) keys: Vec<String>,
    /// Why; recorded in the ledger
    #[arg(long, value_name = "TEXT", requires = "keys")]
    pub(crate) reason: Option<String>,
    /// Accept it whatever the values are, and from now on
    #[arg(long, requires = "keys")]
    pub(crate) always: bool,
}

impl Accept {
    /// What was given, if anything was.
    pub(crate) fn acceptance(&self) -> Option<Acceptance> {
        let keys = self.keys.iter().cloned().collect();
        let reason = self.reason.clone()?;
        Some(Acceptance { keys, reason, always: self.always })
    }
}

/// Arguments of `lastgood preflight`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Preflight {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) at: At,
    /// How much of the data is read: none, but every object is there and has its size; some packs, chosen
    /// by chance; or every byte
    #[arg(long, value_name = "DEPTH", default_value = "sample", value_parser = ["size", "sample", "full"])]
    pub(crate) data: String,
    /// The number of ranks that are to restore; as many as saved it unless given
    #[arg(long, value_name = "N")]
    pub(crate) ranks: Option<u32>,
    #[command(flatten)]
    pub(crate) accept: Accept,
    /// The command of the job: it comes as far as its restore, looks, changes nothing, and ends
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}
