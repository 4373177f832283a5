//! Opening what the arguments name.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood::ledger::Ledger;
use lastgood::{Repository, Result};
use lastgood_store::{Env, Store, SystemEnv};

use crate::args::{RunArgs, StoreArgs};

/// Variables that stores take credentials and endpoints from.
const STORE_VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// The options of stores in the environment, by lower-case name.
pub(crate) fn store_options() -> BTreeMap<String, String> {
    std::env::vars()
        .filter(|(name, _)| STORE_VARIABLES.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect()
}

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
    let ledger = repository.existing(&args.run)?;
    Ok((repository, ledger))
}
