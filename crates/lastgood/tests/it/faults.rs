//! Every store call of opening, saving and restoring fails, once or for ever.

use std::time::Duration;

use lastgood::restore::Selector;
use lastgood::save::{Mode, SaveOptions};
use lastgood::state::World;
use lastgood::{ErrorKind, Hash, Repository, Result, Run, RunOptions};
use lastgood_store::MemoryStore;

use crate::fixture::{
    bytes, capture_bytes, on, open_alone, options, quick, read_bytes, restore_bytes, run_name,
    save_bytes, tapped,
};
use crate::tap::{Act, Call, Op, Tap};

const LENGTH: usize = 200_000;

fn before() -> Vec<u8> {
    bytes(1, LENGTH)
}

fn after() -> Vec<u8> {
    let mut data = before();
    data[100_000..].copy_from_slice(&bytes(2, 100_000));
    data
}

/// A run with one checkpoint, of step 1.
fn with_a_checkpoint() -> (MemoryStore, Tap, Repository) {
    let (store, tap, repository) = tapped();
    save_bytes(&mut open_alone(&repository, "first"), 1, &before()).unwrap();
    tap.pass();
    (store, tap, repository)
}

fn impatient() -> RunOptions {
    let save = SaveOptions { commit_wait: Duration::from_millis(30), ..quick() };
    RunOptions { save, ..options(World::ALONE, "second") }
}

fn work(repository: &Repository) -> Result<Hash> {
    let mut run = Run::open(repository, &run_name(), impatient())?;
    let restored = restore_bytes(&mut run, LENGTH)?;
    let (restored, data) = restored.unwrap();
    assert_eq!(restored.step, 1);
    assert!(data == before(), "wrong bytes");
    let data = after();
    run.save(2, Mode::Sync, |c| capture_bytes(c, &data))?.wait()
}

/// What must hold after `work` under faults: what was committed is whole, what was acknowledged is
/// committed, and the same work can be done now.
fn check(store: &MemoryStore, worked: &Result<Hash>, what: &str) {
    let repository = on(store.clone());
    let ledger = repository.existing(&run_name()).unwrap();
    let checkpoints = ledger.history().checkpoints().to_vec();
    if let Ok(id) = worked {
        assert!(checkpoints.iter().any(|c| c.id == *id), "{what}: acknowledged and not there");
    }
    let good = checkpoints.iter().filter(|c| c.standing != lastgood::ledger::Standing::Bad);
    for checkpoint in good.clone() {
        repository.verify(&ledger, &checkpoint.id, &|_, _| ()).expect(what);
        let selector = Selector::Id(checkpoint.id.to_string());
        let (step, data) = read_bytes(&repository, &selector, LENGTH).expect(what);
        assert!(data == if step == 1 { before() } else { after() }, "{what}: step {step}");
    }
    assert!(good.count() > 0, "{what}: no checkpoint is left");
    let mut run = open_alone(&repository, "third");
    restore_bytes(&mut run, LENGTH).expect(what).unwrap();
    save_bytes(&mut run, 2, &after()).expect(what);
    assert!(read_bytes(&repository, &Selector::Latest, LENGTH).unwrap() == (2, after()), "{what}");
}

/// Does the work with `act` at call `n`, for as long as `plant` says, and checks.
fn enumerate(act: Act, plant: fn(usize, &Call) -> bool, kinds: &[ErrorKind]) -> (usize, usize) {
    let mut failed = 0;
    for n in 0.. {
        let (store, tap, repository) = with_a_checkpoint();
        tap.play(move |call| if plant(n, call) { act } else { Act::Pass });
        let worked = work(&repository);
        let calls = tap.calls().len();
        tap.pass();
        if n >= calls {
            worked.unwrap();
            return (n, failed);
        }
        let what = format!("{act:?} at call {n}");
        if let Err(error) = &worked {
            failed += 1;
            assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
        }
        check(&store, &worked, &what);
    }
    unreachable!()
}

const ONCE: fn(usize, &Call) -> bool = |n, call| call.n == n;
const FOR_EVER: fn(usize, &Call) -> bool = |n, call| call.n >= n;

#[test]
fn no_answer_once() {
    let (calls, failed) =
        enumerate(Act::Fail(ErrorKind::Unavailable), ONCE, &[ErrorKind::Unavailable]);
    assert!(calls > 20 && failed < calls, "{failed} of {calls}");
}

#[test]
fn no_answer_for_ever() {
    let (calls, failed) =
        enumerate(Act::Fail(ErrorKind::Unavailable), FOR_EVER, &[ErrorKind::Unavailable]);
    // Only what comes after the decision may fail without a word.
    assert!(failed + 3 >= calls, "{failed} of {calls}");
}

#[test]
fn a_full_store_for_ever() {
    enumerate(Act::Fail(ErrorKind::Overloaded), FOR_EVER, &[ErrorKind::Overloaded]);
}

#[test]
fn denied_once_and_for_ever() {
    for plant in [ONCE, FOR_EVER] {
        enumerate(Act::Fail(ErrorKind::Denied), plant, &[ErrorKind::Denied]);
    }
}

#[test]
fn an_answer_is_lost_once() {
    enumerate(Act::Lose, ONCE, &[ErrorKind::Unavailable]);
}

#[test]
fn every_answer_is_lost_from_some_call_on() {
    enumerate(Act::Lose, FOR_EVER, &[ErrorKind::Unavailable]);
}

#[test]
fn a_put_is_torn() {
    let torn: fn(usize, &Call) -> bool = |n, call| call.n == n && call.op == Op::Put;
    let mut whole = 0;
    for n in 0..60 {
        let (store, tap, repository) = with_a_checkpoint();
        tap.play(move |call| if torn(n, call) { Act::Tear } else { Act::Pass });
        let worked = work(&repository);
        let hit = tap.calls().get(n).filter(|call| call.op == Op::Put).cloned();
        tap.pass();
        let Some(call) = hit else { continue };
        if call.key.contains("/ledger/") {
            // Half a ledger entry is the one damage that stops a run until it is healed.
            let error = worked.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{call:?}");
            assert_eq!(error.object(), Some(call.key.as_str()), "{error}");
            let opened = on(store).existing(&run_name()).map(|_| ());
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::Corrupt, "{call:?}");
            continue;
        }
        whole += 1;
        let error = worked.as_ref().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{call:?}: {error}");
        assert_eq!(error.object(), Some(call.key.as_str()), "{error}");
        check(&store, &worked, &format!("torn {}", call.key));
    }
    assert!(whole >= 3, "{whole} kinds of objects");
}

#[test]
fn a_flip_on_the_way_heals_by_reading_again() {
    let (calls, failed) = enumerate(Act::Flip, ONCE, &[]);
    assert!(calls > 20 && failed == 0);
}

#[test]
fn flips_of_one_object_on_every_read_are_damage_of_it() {
    for part in [".pack", ".idx", "/checkpoints/"] {
        let (_store, tap, repository) = with_a_checkpoint();
        let mut run = Run::open(&repository, &run_name(), impatient()).unwrap();
        tap.play(move |call| if call.key.contains(part) { Act::Flip } else { Act::Pass });
        let error = restore_bytes(&mut run, LENGTH).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}
