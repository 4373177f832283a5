//! Every store that needs nothing but this machine, against the conformance suite.

use std::sync::Arc;
use std::time::Duration;

use lastgood_store::conformance::{self, Options, Report};
use lastgood_store::fault::{FaultPlan, FaultRates, Faults};
use lastgood_store::{
    Env, FaultStore, LocalStore, MemoryStore, RetryPolicy, RetryStore, Store, SystemEnv,
};

use crate::clock::block_on;

fn env() -> Arc<dyn Env> {
    Arc::new(SystemEnv::default())
}

fn run<S: Store>(options: &Options, open: impl Fn() -> S + Sync) -> Report {
    block_on(conformance::run(&|| Ok(Arc::new(open())), &SystemEnv::default(), options))
}

#[test]
fn memory() {
    let store = MemoryStore::default();
    let report = run(&Options::default(), || store.clone());
    assert!(report.passed(), "{report}");
    assert_eq!(report.outcomes.len(), conformance::names().len());
}

#[test]
fn local() {
    let folder = tempfile::tempdir().unwrap();
    let report = run(&Options::default(), || LocalStore::open(folder.path()).unwrap());
    assert!(report.passed(), "{report}");
    let staging = std::fs::read_dir(folder.path().join(".staging")).unwrap();
    assert_eq!(staging.count(), 0, "staging files are left");
}

/// Faults that retries see through: nothing that breaks the promises of the store below.
fn moderate(seed: u64) -> Faults {
    Faults::new(FaultPlan::seeded(
        seed,
        FaultRates {
            refused: 40,
            lost: 40,
            delayed: 20,
            delay_max: Duration::from_millis(2),
            stale: 100,
            ..FaultRates::default()
        },
    ))
}

/// Patience with a store that fails one call in twelve.
fn patient() -> RetryPolicy {
    RetryPolicy {
        tries_max: 10,
        backoff_first: Duration::from_micros(100),
        backoff_max: Duration::from_millis(2),
        budget: 100_000,
        ..RetryPolicy::default()
    }
}

fn run_with_faults<S: Store>(seed: u64, open: impl Fn() -> S + Sync) {
    let faults = moderate(seed);
    let options = Options { large_bytes: 3 << 20, repeats_puts: true, ..Options::default() };
    let report = run(&options, || {
        RetryStore::with_policy(FaultStore::new(open(), &faults, env()), env(), patient())
    });
    assert!(report.passed(), "seed {seed}: {report}");
    let (calls, injected) = (faults.calls() as usize, faults.injected().len());
    assert!(injected > calls / 20, "{injected} faults in {calls} calls are too few");
}

#[test]
fn retries_over_a_faulty_memory() {
    let store = MemoryStore::default();
    run_with_faults(11, || store.clone());
}

#[test]
fn retries_over_a_faulty_folder() {
    let folder = tempfile::tempdir().unwrap();
    run_with_faults(12, || LocalStore::open(folder.path()).unwrap());
}

/// Without the retries, the same faults are seen.
#[test]
fn faults_are_no_conformance() {
    let store = MemoryStore::default();
    let faults = moderate(13);
    let options = Options { large_bytes: 1 << 20, race_rounds: 5, ..Options::default() };
    let report = run(&options, || FaultStore::new(store.clone(), &faults, env()));
    assert!(report.broken().len() > conformance::names().len() / 2, "{report}");
}
