//! The ledger: a run's append-only list of decisions, the only truth about what exists.
//!
//! One linearizable log per run, with nothing but put-if-absent below it (DESIGN.md §5). Entry `n`
//! names the hash of entry `n - 1`; whoever creates object `n` has decided entry `n`. There is no
//! lock, no leader and no clock in it.

mod append;
mod head;
mod history;
mod read;
mod rules;

use std::sync::Arc;

pub use append::{Appended, Decision, Unknown, Writer};
pub use history::{Attempt, Checkpoint, History, Standing};
use lastgood_format::{Result, RunName};
use lastgood_store::{Env, Store};
pub(crate) use rules::fenced;
pub use rules::{Rules, Strict, admit_attempt, admit_branch, admit_commit};

/// A reader and writer of one run's ledger.
///
/// It holds the history as of the last entry that it has read; [`Ledger::refresh`] reads on.
#[derive(Clone, Debug)]
pub struct Ledger {
    store: Arc<dyn Store>,
    env: Arc<dyn Env>,
    rules: Arc<dyn Rules>,
    history: History,
    /// Entries up to this one are known to survive the loss of power.
    settled: u64,
}

impl Ledger {
    /// The ledger of `run`, read to its tail. A run that does not exist has an empty history.
    ///
    /// # Errors
    /// `Unavailable` if the store does not answer; `Corrupt` if an entry is damaged; `Incompatible`
    /// if an entry must be understood and is not.
    pub async fn open(store: Arc<dyn Store>, env: Arc<dyn Env>, run: RunName) -> Result<Self> {
        Self::open_with(store, env, run, Arc::new(Strict)).await
    }

    /// As [`Ledger::open`], under other rules. Only tests of the rules have a reason to call it.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    #[doc(hidden)]
    pub async fn open_with(
        store: Arc<dyn Store>,
        env: Arc<dyn Env>,
        run: RunName,
        rules: Arc<dyn Rules>,
    ) -> Result<Self> {
        let mut ledger = Self { store, env, rules, history: History::new(run), settled: 0 };
        ledger.seek().await?;
        Ok(ledger)
    }

    /// The run.
    #[must_use]
    pub fn run(&self) -> &RunName {
        self.history.run()
    }

    /// What the entries that were read so far say.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The clock and randomness.
    #[must_use]
    pub fn env(&self) -> &Arc<dyn Env> {
        &self.env
    }
}
