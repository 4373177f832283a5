//! What is attacked: the real code, or the real code with a planted bug.
//!
//! A bug enters through a seam below or beside the code: the store, the disk, the clock and randomness, the
//! ledger's judge.

use std::sync::Arc;

use lastgood::ledger::{Rules, Strict};
use lastgood_store::{Disk, Env, Store};

/// What something is put behind; the identity unless a bug is planted.
pub type Wrap<T> = fn(Arc<T>) -> Arc<T>;

/// What is attacked.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The ledger's judge.
    pub rules: Arc<dyn Rules>,
    /// What every store is put behind.
    pub store: Wrap<dyn Store>,
    /// What every disk is put behind.
    pub disk: Wrap<dyn Disk>,
    /// Every simulated ledger has a past that is about to get a head, not one in ten.
    pub has_past: bool,
    /// What every clock is put behind.
    pub env: Wrap<dyn Env>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            rules: Arc::new(Strict),
            store: |store| store,
            disk: |disk| disk,
            has_past: false,
            env: |env| env,
        }
    }
}
