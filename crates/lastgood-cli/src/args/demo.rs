//! The arguments of the demo.

use clap::{Args as ClapArgs, ValueEnum};

/// A component of the demo's state that can be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Component {
    /// The weights
    Model,
    /// The moments of the optimizer
    Optimizer,
    /// The generators of random numbers
    Rng,
}

/// Arguments of `lastgood demo`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Demo {
    /// How many times a random rank is killed
    #[arg(long, default_value_t = 5)]
    pub(crate) kills: u32,
    /// Decides whom, when, and where in a save
    #[arg(long, default_value_t = 7)]
    pub(crate) seed: u64,
    /// The number of rank processes
    #[arg(long, default_value_t = 4)]
    pub(crate) ranks: u32,
    /// Training steps
    #[arg(long, default_value_t = 300)]
    pub(crate) steps: u64,
    /// Save every so many steps
    #[arg(long, default_value_t = 5)]
    pub(crate) every: u64,
    /// Do not replace a rank that is killed: the training goes on with fewer, at least with one
    #[arg(long)]
    pub(crate) shrink: bool,
    /// Leave one component out of the saves, to see that the comparison notices it
    #[arg(long, value_enum, value_name = "COMPONENT")]
    pub(crate) forget: Option<Component>,
    /// Keep the repository of the killed run here; a temporary folder unless given
    #[arg(long, env = "LASTGOOD_STORE", hide_env_values = true, value_name = "URL")]
    pub(crate) store: Option<String>,
}

/// Arguments of one rank of the demo.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct DemoRank {
    /// Leave this component out of the saves
    #[arg(long, value_enum)]
    pub(crate) forget: Option<Component>,
    /// Training steps
    #[arg(long)]
    pub(crate) steps: u64,
    /// Save every so many steps
    #[arg(long)]
    pub(crate) every: u64,
    /// Digest the state every so many steps, between saves too; 0 for never
    #[arg(long, default_value_t = 0)]
    pub(crate) digest_every: u64,
    /// Rest so many milliseconds in each step
    #[arg(long)]
    pub(crate) rest_ms: Option<u64>,
    /// Flip one bit of a weight after this step, as memory that fails does
    #[arg(long)]
    pub(crate) flip: Option<u64>,
    /// End after this step without a word, as a crash does
    #[arg(long)]
    pub(crate) crash: Option<u64>,
}
