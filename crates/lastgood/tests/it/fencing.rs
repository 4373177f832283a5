//! A new attempt fences the old one, wherever in a save the old one stands.

use std::sync::{Arc, Mutex};

use lastgood::ledger::Standing;
use lastgood::restore::Selector;
use lastgood::save::Mode;
use lastgood::state::World;
use lastgood::{ErrorKind, Repository, Run};

use crate::fixture::{
    bytes, capture_bytes, in_memory, on, open, open_alone, options, read_bytes, run_name,
    save_bytes, tapped,
};
use crate::tap::Act;

fn old() -> Vec<u8> {
    bytes(1, 150_000)
}

fn new() -> Vec<u8> {
    bytes(2, 150_000)
}

#[test]
fn a_fenced_rank_is_told_by_the_handle_and_by_the_next_save() {
    let (store, repository) = in_memory();
    let mut first = open_alone(&repository, "old");
    save_bytes(&mut first, 1, &old()).unwrap();
    let mut second = open_alone(&repository, "new");
    let data = old();
    let handle = first.save(2, Mode::Async, |c| capture_bytes(c, &data)).unwrap();
    let error = handle.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert!(error.to_string().contains("attempt 1 was fenced: attempt 2"), "{error}");
    let before = store.keys();
    for mode in [Mode::Async, Mode::Sync] {
        let data = old();
        let refused = first.save(3, mode, |c| capture_bytes(c, &data)).map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Fenced);
    }
    let id = second.history().checkpoints()[0].id;
    assert_eq!(first.mark(&id, Standing::Bad, "no").unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(store.keys(), before, "a fenced rank wrote");
    assert_eq!(first.close().unwrap_err().kind(), ErrorKind::Fenced);
    save_bytes(&mut second, 2, &new()).unwrap();
    second.close().unwrap();
}

#[test]
fn a_late_rank_of_an_old_incarnation_fences_nobody() {
    let (_store, repository) = in_memory();
    let world = |rank| World { rank, size: 2 };
    let _first = open(&repository, world(0), "old");
    let second = open(&repository, world(0), "new");
    let late = Run::open(&repository, &run_name(), options(world(1), "old"));
    assert_eq!(late.map(|_| ()).unwrap_err().kind(), ErrorKind::Fenced);
    let joined = open(&repository, world(1), "new");
    assert_eq!((second.attempt().number, joined.attempt().number), (2, 2));
    let other = Run::open(&repository, &run_name(), options(World { rank: 2, size: 3 }, "new"));
    let error = other.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("2 ranks") && error.to_string().contains('3'), "{error}");
}

/// The old attempt saves step 2; before its store call `n` the new attempt starts, and saves step 2
/// itself if `saves`. Gives false if the save has no such call.
fn fence_at(n: usize, saves: bool) -> bool {
    let (store, tap, repository) = tapped();
    let mut first = open_alone(&repository, "old");
    save_bytes(&mut first, 1, &old()).unwrap();
    let fence = Arc::new(Mutex::new(None::<Run>));
    {
        let (fence, beside) = (Arc::clone(&fence), on(store.clone()));
        tap.play(move |call| {
            if call.n == n {
                // The call is made by a thread that drives asynchronous work.
                let (beside, fence) = (beside.clone(), Arc::clone(&fence));
                let other = std::thread::spawn(move || {
                    let mut run = open_alone(&beside, "new");
                    if saves {
                        save_bytes(&mut run, 2, &new()).unwrap();
                    }
                    *fence.lock().unwrap() = Some(run);
                });
                other.join().unwrap();
            }
            Act::Pass
        });
    }
    let mut changed = old();
    changed[0] ^= 1;
    let saved = save_bytes(&mut first, 2, &changed);
    let Some(mut second) = fence.lock().unwrap().take() else { return false };
    let beside = on(store);
    check(&beside, n, saved.as_ref().map_err(|e| e.kind()).map(|_| ()), &changed, saves);
    // Whether or not the save was in time, the next one of the fenced rank is not.
    let next = first.save(3, Mode::Sync, |c| capture_bytes(c, &changed)).map(|_| ());
    assert_eq!(next.unwrap_err().kind(), ErrorKind::Fenced, "call {n}");
    let before = history(&beside);
    drop(first);
    assert_eq!(history(&beside), before, "call {n}");
    save_bytes(&mut second, 4, &new()).unwrap();
    assert_eq!(read_bytes(&beside, &Selector::Latest, new().len()).unwrap(), (4, new()));
    true
}

fn history(repository: &Repository) -> Vec<(u64, u64)> {
    let ledger = repository.existing(&run_name()).unwrap();
    ledger.history().checkpoints().iter().map(|c| (c.attempt, c.step)).collect()
}

/// The old attempt's save came before the fence, whole, or not at all; the new one's are as saved.
fn check(
    repository: &Repository,
    n: usize,
    saved: Result<(), ErrorKind>,
    changed: &[u8],
    saves: bool,
) {
    let mut expected = vec![(1, 1)];
    match saved {
        Ok(()) => expected.push((1, 2)),
        Err(kind) => assert_eq!(kind, ErrorKind::Fenced, "call {n}"),
    }
    if saves {
        expected.push((2, 2));
    }
    assert_eq!(history(repository), expected, "call {n}");
    let ledger = repository.existing(&run_name()).unwrap();
    for checkpoint in ledger.history().checkpoints() {
        repository.verify(&ledger, &checkpoint.id, &|_, _| ()).unwrap();
        let selector = Selector::Id(checkpoint.id.to_string());
        let found = read_bytes(repository, &selector, changed.len()).unwrap().1;
        let right = match (checkpoint.attempt, checkpoint.step) {
            (1, 1) => found == old(),
            (1, _) => found == changed,
            _ => found == new(),
        };
        assert!(right, "call {n}: step {} of attempt {}", checkpoint.step, checkpoint.attempt);
    }
}

#[test]
fn a_fence_at_every_store_call_of_a_save() {
    for saves in [false, true] {
        let calls = (0..).take_while(|n| fence_at(*n, saves)).count();
        assert!(calls >= 8, "only {calls} calls");
    }
}

#[test]
fn two_incarnations_that_start_at_once_have_one_winner() {
    let (_store, repository) = in_memory();
    for round in 0..20 {
        let opened: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|i| {
                    let repository = &repository;
                    scope.spawn(move || {
                        let options = options(World::ALONE, &format!("{round}.{i}"));
                        Run::open(repository, &run_name(), options)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut numbers = Vec::new();
        for run in opened {
            match run {
                Ok(mut run) => {
                    let number = run.attempt().number;
                    let saved = save_bytes(&mut run, 1, &[number as u8]).is_ok();
                    numbers.push((number, saved));
                }
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Fenced),
                    "{error}"
                ),
            }
        }
        numbers.sort_unstable();
        let newest = numbers.pop().unwrap();
        let last = repository.existing(&run_name()).unwrap().history().newest_attempt();
        assert_eq!(newest, (last, true), "round {round}");
        assert!(numbers.iter().all(|(number, saved)| *number < last && !saved), "{numbers:?}");
    }
}
