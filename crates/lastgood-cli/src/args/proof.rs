//! The arguments of the commands that run steps again, and of what they prove.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use lastgood::RunName;
use lastgood::restore::Selector;

use super::RunArgs;

/// What a replay is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReplayMode {
    /// Check every chain, manifest and byte; run nothing
    Audit,
    /// Run the steps again, and compare what they say and the states that they come to
    Reexecute,
    /// Run the steps again, and save the state of the last one as a checkpoint of another run
    Travel,
    /// Go on with the run: do again, and compare, what is recorded behind its last good checkpoint, and then live
    Resume,
    /// Run windows of a run that goes on again, chosen by chance, to find silent corruption
    Shadow,
}

/// Arguments of `lastgood replay`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Replay {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// What to do
    #[arg(long, value_enum, default_value_t = ReplayMode::Reexecute)]
    pub(crate) mode: ReplayMode,
    /// The checkpoint to begin with; the last one before the end unless given, `start` for none
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) from: Option<String>,
    /// The step to end with, or a checkpoint
    #[arg(long, value_name = "SELECTOR", default_value = "last-good")]
    pub(crate) to: Selector,
    /// The number of ranks; as many as the run had unless given
    #[arg(long, value_name = "N")]
    pub(crate) ranks: Option<u32>,
    /// The run that a travel saves into; RUN-at-STEP unless given
    #[arg(long, value_name = "NAME")]
    pub(crate) branch: Option<RunName>,
    /// End a shadow after so many windows; otherwise it looks for new ones until it is told to stop
    #[arg(long, value_name = "N")]
    pub(crate) windows: Option<u64>,
    /// How long a shadow waits where there is no new window
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) every: std::time::Duration,
    /// Keep the repository that the replay records into, here
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// The command of the job and its arguments, as it was run
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// Arguments of `lastgood bisect`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Bisect {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// The checkpoint to begin with, which is trusted; `start` for none
    #[arg(long, value_name = "SELECTOR", default_value = "start")]
    pub(crate) from: String,
    /// The step to end with, or a checkpoint
    #[arg(long, value_name = "SELECTOR", default_value = "last-good")]
    pub(crate) to: Selector,
    /// Compare with this run, by all that both have recorded, instead of running anything again
    #[arg(long, value_name = "NAME", conflicts_with_all = ["command", "from", "to", "ranks"])]
    pub(crate) against: Option<RunName>,
    /// The store of that run; the same one unless given
    #[arg(long, value_name = "URL", requires = "against")]
    pub(crate) against_store: Option<String>,
    /// The number of ranks; as many as the run had unless given
    #[arg(long, value_name = "N")]
    pub(crate) ranks: Option<u32>,
    /// The command of the job and its arguments, as it was run
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// Arguments of `lastgood prove`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Prove {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// The checkpoint to recover; the last one before the end unless given, `start` for none
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) from: Option<String>,
    /// The step to end with, or a checkpoint
    #[arg(long, value_name = "SELECTOR", default_value = "last-good")]
    pub(crate) to: Selector,
    /// The number of ranks; as many as the run had unless given
    #[arg(long, value_name = "N")]
    pub(crate) ranks: Option<u32>,
    /// Write the certificate here
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: PathBuf,
    /// The key that signs it
    #[arg(long, env = "LASTGOOD_KEY", hide_env_values = true, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// The command of the job and its arguments, as it was run
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key: FILE signs, FILE.pub checks
    New {
        /// Write the key here; nobody but its owner may read it
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CertificateCommand {
    /// Check the signature of a certificate, and say what it certifies
    Verify {
        /// The certificate
        file: PathBuf,
        /// The public key that must have signed it; any, unless given
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
}
