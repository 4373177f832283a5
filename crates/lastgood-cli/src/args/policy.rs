//! Arguments of what is about when a run saves.

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::{RunArgs, examples};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say how often a run saves, what that was made of, and what would change it
    #[command(after_help = examples::POLICY_EXPLAIN)]
    Explain {
        #[command(flatten)]
        run: RunArgs,
    },
}

/// Arguments of `lastgood save`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Save {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Why; recorded in the ledger
    #[arg(long, value_name = "TEXT", default_value = "asked for by `lastgood save`")]
    pub(crate) reason: String,
    /// How long the checkpoint is waited for
    #[arg(long, default_value = "10m", value_name = "DURATION",
          value_parser = humantime::parse_duration)]
    pub(crate) wait: Duration,
}
