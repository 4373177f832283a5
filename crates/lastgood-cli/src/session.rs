//! Opening what the arguments name.

use std::sync::Arc;

use lastgood::ledger::Ledger;
use lastgood::{Error, Repository, Result};
use lastgood_serve::rank::store_options;
use lastgood_store::{Env, Store, SystemEnv};

use crate::args::{RunArgs, StoreArgs};

pub(crate) fn open_store(url: &str) -> Result<(Arc<dyn Store>, Arc<dyn Env>)> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::default());
    let store = lastgood_store::open_url(url, &store_options(), &env)?;
    Ok((store, env))
}

/// The repository that `args` names; it must exist.
pub(crate) fn repository(args: &StoreArgs) -> Result<Repository> {
    let (store, env) = open_store(&args.store)?;
    Repository::open(store, env)
}

/// The repository that `args` names, created if it does not exist.
pub(crate) fn create_repository(url: &str) -> Result<Repository> {
    let (store, env) = open_store(url)?;
    Repository::create(store, env)
}

/// The repository and the run's ledger; both must exist.
pub(crate) fn ledger(args: &RunArgs) -> Result<(Repository, Ledger)> {
    let repository = repository(&args.store)?;
    let ledger = repository.ledger(&args.run)?;
    if ledger.history().entries() > 0 {
        return Ok((repository, ledger));
    }
    let runs: Vec<String> = repository.runs()?.iter().map(ToString::to_string).collect();
    let store = repository.store().location();
    Err(Error::not_found(format!("{store} has no run {}", args.run)).with_remedy(
        match runs.len() {
            0 => "it has no runs yet".to_owned(),
            1..=10 => format!("it has: {}", runs.join(", ")),
            count => format!("it has {count} runs; `lastgood ls` without --run lists them"),
        },
    ))
}
