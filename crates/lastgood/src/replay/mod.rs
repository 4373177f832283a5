//! Replay: re-executing a part of a run beside what was recorded of it.
//!
//! A replay runs the same program, told by a [`Plan`] instead of by its own wishes: it restores the checkpoint that
//! the window begins with, from the *source*; records into another repository, so that the source is never
//! written to; and ends at the last step of the window. The two journals are then compared, event by event and
//! tensor by tensor.
//!
//! | module | what it does |
//! |---|---|
//! | [`Plan`] | what a replaying process is told |
//! | `mode` | what a [`Run`](crate::Run) does differently in a replay |
//! | [`resume`] | going on after a crash: what is recorded first, live then |
//! | [`span`] | which steps, from which checkpoint |
//! | [`judge`] | what was recorded beside what came out |
//! | [`window`] | what a journal says of some steps |
//! | [`state`] | fingerprints of a whole state, from the journal or from a checkpoint |
//! | [`compare`] | the first place where two windows part |

pub mod compare;
mod external;
pub mod judge;
pub(crate) mod mode;
pub mod resume;
pub mod span;
pub mod state;
pub mod window;

use std::collections::BTreeSet;

use lastgood_format::{Error, ErrorKind, Hash, Result, RunName};
pub use mode::Due;
pub use resume::Resume;
use serde::{Deserialize, Serialize};
pub use span::Span;

use crate::branch::{self, Origin};
use crate::ledger::Ledger;
use crate::repository::Repository;
use window::Window;

/// The version of [`Plan`] that this library understands.
const VERSION: u32 = 1;

/// A run in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The URL of the store.
    pub store: String,
    /// The run.
    pub run: RunName,
}

/// What a replaying process is told, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The version of the plan.
    pub version: u32,
    /// The run that is replayed. It is only read.
    pub source: Place,
    /// Where the replay records, and saves what it is told to save.
    pub into: Place,
    /// The checkpoint that it restores; `None` to begin as a fresh run.
    pub from: Option<Hash>,
    /// The step of that checkpoint; 0 without one.
    pub from_step: u64,
    /// It ends after this step.
    pub to: u64,
    /// The steps after which the state is digested; the last one always is.
    pub digests: BTreeSet<u64>,
    /// Whether the state after the last step is saved.
    pub save: bool,
    /// It does nothing but look whether it could restore, records what it found, and ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preflight: bool,
}

impl Plan {
    /// A plan of the steps after `from_step` up to and with `to`.
    #[must_use]
    pub fn new(source: Place, into: Place, from: Option<(Hash, u64)>, to: u64) -> Self {
        Self {
            version: VERSION,
            source,
            into,
            from: from.map(|(id, _)| id),
            from_step: from.map_or(0, |(_, step)| step),
            to,
            digests: BTreeSet::new(),
            save: false,
            preflight: false,
        }
    }

    /// A plan to look whether the checkpoint `from` could be restored.
    #[must_use]
    pub fn to_look(source: Place, into: Place, from: (Hash, u64)) -> Self {
        Self { preflight: true, ..Self::new(source, into, Some(from), from.1) }
    }

    /// The plan as a process is given it.
    ///
    /// # Errors
    /// `Internal` if it cannot be written as JSON.
    pub fn encode(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|e| Error::internal(format!("cannot write the plan of a replay: {e}")))
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// `Invalid` if it is none; `Incompatible` if it is of a newer version.
    pub fn decode(text: &str) -> Result<Self> {
        let plan: Self = serde_json::from_str(text)
            .map_err(|e| Error::invalid(format!("the plan of a replay is not understood: {e}")))?;
        if plan.version != VERSION {
            return Err(Error::incompatible(format!(
                "the plan of a replay has version {}, this lastgood understands {VERSION}",
                plan.version
            ))
            .with_remedy("replay with the lastgood that the program uses"));
        }
        if plan.to <= plan.from_step && !plan.preflight {
            return Err(Error::invalid(format!(
                "a replay from step {} to step {} has nothing to do",
                plan.from_step, plan.to
            )));
        }
        Ok(plan)
    }
}

/// A plan with the repositories that it names, for [`RunOptions`](crate::RunOptions).
#[derive(Clone, Debug)]
pub struct Replay {
    /// What to do.
    pub plan: Plan,
    /// Where the run is that is replayed.
    pub source: Repository,
    /// Where the replay records.
    pub into: Repository,
}

/// What a replay is compared with, and what the processes that run it are told.
#[derive(Debug)]
pub struct Prepared {
    /// What they are told.
    pub plan: Plan,
    /// What is recorded of the steps.
    pub recorded: Window,
}

/// Prepares a replay of `span` that records into `into`, which must be no run yet; with `save` the state at the end is
/// saved there, as a branch.
///
/// # Errors
/// `NotFound` if the steps are not recorded; `Conflict` if the run to record into is there already; `Corrupt`,
/// `Unavailable`, `Denied`.
pub fn prepare(
    (source, ledger, store): (&Repository, &Ledger, &str),
    span: &Span,
    (target, into): (&Repository, &Place),
    save: bool,
) -> Result<Prepared> {
    let recorded = Window::read(source, ledger, span.from_step + 1..=span.to, span.from.as_ref())?;
    span.check_recorded(&recorded)?;
    let place = Place { store: store.to_owned(), run: ledger.run().clone() };
    let from = span.from.map(|id| (id, span.from_step));
    let mut plan = Plan::new(place, into.clone(), from, span.to);
    plan.digests = recorded.states.keys().copied().collect();
    plan.save = save;
    let mut there = target.ledger(&into.run)?;
    if there.history().entries() > 0 {
        let message = format!("{} holds a run {} already", into.store, into.run);
        return Err(Error::new(ErrorKind::Conflict, message)
            .with_remedy("name another --branch, or another folder to --keep"));
    }
    if save {
        let origin = Origin {
            repository: source.id().to_owned(),
            run: ledger.run().clone(),
            from: span.from,
            from_step: span.from_step,
            step: span.to,
        };
        target.block_on(branch::create(&mut there, "lastgood replay", &origin))?;
    }
    Ok(Prepared { plan, recorded })
}
