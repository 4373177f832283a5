//! What grows with the history of a run, counted in requests and bytes, which no busy machine changes.

use lastgood::ledger::{Decision, Ledger, Standing, Writer};
use lastgood::{ErrorKind, Hash, Repository};
use lastgood_format::ledger::Kind;
use lastgood_store::{MemoryStore, Store};

use crate::fixture::{in_memory, on, open_alone, run_name, save_bytes, tapped};
use crate::tap::{Op, Tap};

/// A head stands at every so many entries, and goes on from the one at a multiple of eight times as many.
const HEAD: u64 = 64;

fn id(n: u64) -> Hash {
    Hash::of(&n.to_le_bytes())
}

fn append(repository: &Repository, ledger: &mut Ledger, kind: &Kind) {
    let writer = Writer { attempt: 1, actor: "rank 0".into() };
    let appended = ledger.append(&writer, |_| Ok(Decision::Append(kind.clone())));
    let _ = repository.block_on(appended).unwrap();
}

/// Commits checkpoints until the ledger has `entries` entries.
fn grow(repository: &Repository, ledger: &mut Ledger, entries: u64) {
    while ledger.history().entries() < entries {
        let n = ledger.history().checkpoints().len() as u64;
        let kind = Kind::CheckpointCommitted {
            checkpoint: id(n),
            step: n,
            generation: 0,
            world_size: 1,
            parent: n.checked_sub(1).map(id),
            reuses: Vec::new(),
            bytes: 1 << 30,
            new_bytes: 1 << 20,
        };
        append(repository, ledger, &kind);
    }
}

fn ledger(repository: &Repository) -> Ledger {
    repository.ledger(&run_name()).unwrap()
}

fn head(n: u64) -> String {
    lastgood_format::key::ledger_head(&run_name(), n)
}

fn heads(store: &MemoryStore) -> u64 {
    let keys = store.keys().into_iter().filter(|key| key.contains("/heads/"));
    keys.map(|key| store.peek(&key).unwrap().len() as u64).sum()
}

fn without_heads(store: &MemoryStore) -> Repository {
    let copy = store.fork();
    let repository = on(copy.clone());
    for key in copy.keys().into_iter().filter(|key| key.contains("/heads/")) {
        repository.block_on(copy.delete(&key)).unwrap();
    }
    repository
}

#[test]
fn heads_tell_of_what_changed_since_an_earlier_one() {
    let (store, repository) = in_memory();
    drop(open_alone(&repository, "a"));
    let mut ledger_of = ledger(&repository);
    grow(&repository, &mut ledger_of, 8 * HEAD + 20);
    // What happens to a checkpoint that an earlier head tells of stands in the next one.
    let checkpoint = ledger_of.history().checkpoints()[3].id;
    let bad = Kind::CheckpointBad { checkpoint, reason: "a test says so".into() };
    append(&repository, &mut ledger_of, &bad);
    grow(&repository, &mut ledger_of, 10 * HEAD + 1);
    let by_heads = ledger(&repository);
    assert_eq!(by_heads.history().checkpoint(&checkpoint).unwrap().standing, Standing::Bad);
    assert!(by_heads.history() == ledger(&without_heads(&store)).history());
    assert_eq!(repository.block_on(by_heads.audit()).unwrap(), 10);
    let of = |n: u64| String::from_utf8(store.peek(&head(n)).unwrap().to_vec()).unwrap();
    assert!(of(8 * HEAD).matches("\"parent\"").count() > 500);
    assert_eq!(of(9 * HEAD).matches("\"parent\"").count() as u64, HEAD);
    // A head that is gone costs reads: those before it are still of use.
    for (lost, reads) in [(8, 3 * HEAD), (9, 2 * HEAD), (10, HEAD)] {
        let tap = Tap::new(store.fork());
        let repository = on(tap.clone());
        repository.block_on(tap.delete(&head(lost * HEAD))).unwrap();
        tap.pass();
        assert!(ledger(&repository).history() == by_heads.history(), "without head {lost}");
        let found = tap.calls().iter().filter(|call| call.op == Op::Get).count() as u64;
        assert!(found < reads + 10, "{found} reads without head {lost}");
    }
    let damaged = store.fork();
    damaged.tamper(&head(9 * HEAD), |bytes| bytes[30] ^= 1);
    let repository = on(damaged);
    let error = repository.block_on(ledger(&repository).audit()).unwrap_err();
    assert_eq!((error.kind(), error.object()), (ErrorKind::Corrupt, Some(&*head(9 * HEAD))));
}

#[test]
fn heads_grow_as_the_history_does() {
    let (store, repository) = in_memory();
    drop(open_alone(&repository, "a"));
    let mut ledger_of = ledger(&repository);
    grow(&repository, &mut ledger_of, 8 * HEAD);
    let few = heads(&store);
    grow(&repository, &mut ledger_of, 64 * HEAD);
    let many = heads(&store);
    // If each told of everything it would be 58 times as much.
    assert!(many < 18 * few, "{few} bytes, then {many}");
    // The last one of all is never far, whatever it goes on from.
    grow(&repository, &mut ledger_of, 64 * HEAD + 9 * HEAD + 3);
    let tap = Tap::new(store);
    let opened = ledger(&on(tap.clone()));
    assert!(opened.history() == ledger_of.history());
    assert!(tap.calls().len() < 45, "{} calls", tap.calls().len());
}

#[test]
fn a_late_save_takes_the_requests_and_bytes_of_an_early_one() {
    let (_, tap, repository) = tapped();
    let mut run = open_alone(&repository, "a");
    let mut data = vec![1u8; 200_000];
    let mut cost = |run: &mut lastgood::Run, step: u64| {
        data[step as usize % 1000 * 200] ^= step as u8 | 1;
        tap.pass();
        let before = tap.bytes_put();
        save_bytes(run, step, &data).unwrap();
        let calls = tap.calls().iter().filter(|call| !call.key.contains("/heads/")).count();
        (calls, tap.bytes_put() - before)
    };
    let mut costs = Vec::new();
    for step in 1..=330 {
        costs.push(cost(&mut run, step));
    }
    // Neither is at a head; the numbers in the ledger have more digits.
    let (early, late) = (costs[9], costs[299]);
    assert_eq!(early.0, late.0, "{early:?}, then {late:?}");
    assert!(late.1 <= early.1 + 200, "{early:?}, then {late:?}");
}
