//! How a rank takes part in a run.

use std::fmt;
use std::sync::Arc;

use crate::journal::JournalOptions;
use crate::policy::Policy;
use crate::preflight::{Environment, PreflightOptions};
use crate::replay::{Replay, Resume};
use crate::save::SaveOptions;
use crate::state::World;
use crate::tier::Tier;

/// Tells a supervisor that a step was reached.
pub type Heartbeat = Arc<dyn Fn(u64) + Send + Sync>;

/// How a rank takes part in a run.
#[derive(Clone)]
pub struct RunOptions {
    /// This rank among all. Default alone.
    pub world: World,
    /// Names the incarnation: ranks that give the same name join one attempt. A supervisor gives it.
    /// Default a random one, which starts an attempt of its own, for a rank alone.
    pub incarnation: Option<String>,
    /// How saves are done.
    pub save: SaveOptions,
    /// When it saves, which [`Run::wants`](crate::Run::wants) says. Default none: the program decides.
    pub policy: Option<Policy>,
    /// Memory that outlives the process, in which it captures. Default none; a supervisor gives it. A replay leaves it
    /// alone.
    pub tier: Option<Tier>,
    /// Called by [`Run::step`](crate::Run::step).
    pub heartbeat: Option<Heartbeat>,
    /// How the journal is written. Default none.
    pub journal: Option<JournalOptions>,
    /// The environment and numerics fingerprint of this process, which the journal records, and which a restore
    /// compares with that of the process that saved.
    pub environment: Environment,
    /// What is done if they differ.
    pub preflight: PreflightOptions,
    /// What to do instead of what the program asks for, if it is to replay. Default none.
    pub replay: Option<Replay>,
    /// How it goes on from its checkpoint: with [`Resume::Replay`] it does again, and compares, what earlier attempts
    /// recorded behind it. Needs a journal. Default live.
    pub resume: Resume,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            world: World::ALONE,
            incarnation: None,
            save: SaveOptions::default(),
            policy: None,
            tier: None,
            heartbeat: None,
            journal: None,
            environment: Environment::new(),
            preflight: PreflightOptions::default(),
            replay: None,
            resume: Resume::Live,
        }
    }
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOptions")
            .field("world", &self.world)
            .field("incarnation", &self.incarnation)
            .field("save", &self.save)
            .field("policy", &self.policy)
            .field("tier", &self.tier)
            .field("journal", &self.journal)
            .finish_non_exhaustive()
    }
}
