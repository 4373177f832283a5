//! Tries, waits, budgets, and whose an object is.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lastgood_store::fault::{Fault, FaultPlan, FaultRates, Faults, Operation};
use lastgood_store::{
    Error, ErrorKind, FaultStore, MemoryStore, ObjectMeta, Payload, Put, Result, RetryPolicy,
    RetryStore, Store,
};

use crate::clock::{Clock, block_on};

const OWN: &str = "the bytes of this writer";
const FOREIGN: &str = "the bytes of somebody else";

struct Bench {
    memory: MemoryStore,
    clock: Arc<Clock>,
    faults: Faults,
    store: RetryStore<FaultStore<MemoryStore>>,
}

fn bench(policy: RetryPolicy, plan: FaultPlan) -> Bench {
    let (memory, clock, faults) = (MemoryStore::default(), Clock::new(), Faults::new(plan));
    let env = || Arc::<Clock>::clone(&clock) as _;
    let store = FaultStore::new(memory.clone(), &faults, env());
    let store = RetryStore::with_policy(store, env(), policy);
    Bench { memory, clock, faults, store }
}

/// The first `count` calls of `operation` meet `fault`.
fn first(count: u64, operation: Operation, fault: Fault) -> FaultPlan {
    (1..=count).fold(FaultPlan::default(), |plan, number| plan.at(operation, "", number, fault))
}

fn forever() -> FaultPlan {
    FaultPlan::seeded(1, FaultRates { refused: 1000, ..FaultRates::default() })
}

fn put(store: &dyn Store, bytes: &'static str) -> Result<Put> {
    block_on(store.put_if_absent("key", bytes.into()))
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn every_call_is_tried_again() {
    let operations = [
        Operation::Put,
        Operation::Read,
        Operation::Size,
        Operation::Settle,
        Operation::List,
        Operation::Delete,
    ];
    for fault in [Fault::Refused, Fault::LostAnswer] {
        let plan = operations.into_iter().fold(FaultPlan::default(), |plan, operation| {
            (1..=5).fold(plan, |plan, number| plan.at(operation, "", number, fault))
        });
        let Bench { store, faults, memory, .. } = bench(RetryPolicy::default(), plan);
        block_on(async {
            store.put_if_absent("key", OWN.into()).await?;
            assert_eq!(store.get("key", 100).await?, OWN);
            assert_eq!(store.size("key").await?, Some(OWN.len() as u64));
            store.settle("key").await?;
            assert_eq!(store.list("", None).await?.len(), 1);
            store.delete("key").await
        })
        .unwrap();
        assert!(memory.keys().is_empty());
        assert_eq!(faults.injected().len(), 5 * operations.len());
    }
    for number in 1..=5 {
        let plan = first(number, Operation::Read, Fault::Refused);
        let Bench { store, memory, .. } = bench(RetryPolicy::default(), plan);
        memory.tamper("key", |bytes| *bytes = OWN.into());
        let mut target = [0; 5];
        block_on(store.read_into("key", 4, &mut target)).unwrap();
        assert_eq!(target, OWN.as_bytes()[4..9]);
    }
}

#[test]
fn tries_end() {
    for tries_max in [1, 2, 6] {
        let policy = RetryPolicy { tries_max, ..RetryPolicy::default() };
        let Bench { store, faults, clock, .. } = bench(policy, forever());
        assert_eq!(kind(put(&store, OWN)), Some(ErrorKind::Unavailable));
        assert_eq!(faults.calls(), u64::from(tries_max));
        assert_eq!(clock.sleeps().len() as u32, tries_max - 1);
    }
}

#[test]
fn waits_double_up_to_the_longest() {
    let policy = RetryPolicy {
        tries_max: 10,
        backoff_first: Duration::from_millis(100),
        backoff_max: Duration::from_secs(2),
        ..RetryPolicy::default()
    };
    let doubled: Vec<f64> = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0].into();
    for (random, share) in [(0, 0.1), (u64::MAX / 2, 0.55), (u64::MAX, 1.0)] {
        let Bench { store, clock, .. } = bench(policy, forever());
        clock.set_random(random);
        put(&store, OWN).unwrap_err();
        let waits: Vec<f64> = clock.sleeps().iter().map(Duration::as_secs_f64).collect();
        assert_eq!(waits.len(), doubled.len());
        for (wait, doubled) in waits.iter().zip(&doubled) {
            assert!((wait - doubled * share).abs() < 1e-6, "{share}: {waits:?}");
        }
    }
}

#[test]
fn no_try_begins_after_the_deadline() {
    let policy = RetryPolicy {
        tries_max: 100,
        backoff_first: Duration::from_secs(1),
        backoff_max: Duration::from_secs(1),
        deadline: Duration::from_secs(5),
        ..RetryPolicy::default()
    };
    let Bench { store, clock, faults, .. } = bench(policy, forever());
    clock.set_random(u64::MAX);
    put(&store, OWN).unwrap_err();
    // At 0, 1, 2, 3 and 4 seconds, and perhaps at 5; nobody sleeps only to give up.
    assert!((5..=6).contains(&faults.calls()), "{}", faults.calls());
    assert!(clock.sleeps().iter().sum::<Duration>() <= policy.deadline);

    // A wait that would end after it is not begun: at 0 and 3 seconds, and not at 6.
    let waits = Duration::from_secs(3);
    let coarse = RetryPolicy { backoff_first: waits, backoff_max: waits, ..policy };
    let Bench { store, clock, faults, .. } = bench(coarse, forever());
    clock.set_random(u64::MAX);
    put(&store, OWN).unwrap_err();
    assert_eq!((faults.calls(), clock.sleeps().len()), (2, 1));

    // A call that takes longer than the deadline is not tried again.
    let slow = first(1, Operation::Put, Fault::LostAnswer).at(
        Operation::Put,
        "",
        1,
        Fault::Delay(Duration::from_secs(6)),
    );
    let Bench { store, faults, .. } = bench(policy, slow);
    put(&store, OWN).unwrap_err();
    assert_eq!(faults.calls(), 1);
}

#[test]
fn a_budget_bounds_the_retries_of_all_calls() {
    let policy = RetryPolicy { budget: 7, ..RetryPolicy::default() };
    let Bench { store, faults, .. } = bench(policy, forever());
    for _ in 0..10 {
        put(&store, OWN).unwrap_err();
    }
    assert_eq!(faults.calls(), 10 + 7);
    // Ten calls that succeed earn one retry, and no more than the budget is kept.
    for (successes, retries) in [(0, 0), (9, 0), (10, 1), (35, 3), (1000, 7)] {
        let Bench { store, faults, .. } = bench(policy, FaultPlan::default());
        let refuse = |count| {
            for number in 1..=count {
                faults.at(Operation::Size, "", number, Fault::Refused);
            }
        };
        refuse(9);
        for _ in 0..2 {
            block_on(store.size("key")).unwrap_err();
        }
        assert_eq!(faults.calls(), 2 + 7, "the budget is spent");
        for _ in 0..successes {
            block_on(store.list("", None)).unwrap();
        }
        let before = faults.calls();
        refuse(10 + retries);
        for _ in 0..10 {
            block_on(store.size("key")).unwrap_err();
        }
        assert_eq!(faults.calls() - before, 10 + retries, "after {successes} successes");
    }
}

#[test]
fn what_will_not_pass_is_not_tried_again() {
    let Bench { store, clock, faults, memory, .. } =
        bench(RetryPolicy::default(), FaultPlan::default());
    memory.tamper("key", |bytes| *bytes = OWN.into());
    assert_eq!(kind(block_on(store.get("gone", 9))), Some(ErrorKind::NotFound));
    assert_eq!(kind(block_on(store.get("key", 3))), Some(ErrorKind::Corrupt));
    assert_eq!(kind(block_on(store.get_range("key", 0..99))), Some(ErrorKind::Corrupt));
    assert_eq!(kind(block_on(store.put_if_absent("../x", OWN.into()))), Some(ErrorKind::Invalid));
    assert_eq!((faults.calls(), clock.sleeps().len()), (4, 0));
}

#[test]
fn what_may_pass_is_tried_again() {
    for fault in [Fault::Refused, Fault::LostAnswer, Fault::FullDisk] {
        let plan = first(3, Operation::Put, fault);
        let Bench { store, memory, .. } = bench(RetryPolicy::default(), plan);
        assert_eq!(put(&store, OWN).unwrap(), Put::Created, "{fault:?}");
        assert_eq!(memory.peek("key").unwrap(), OWN);
    }
}

#[test]
fn a_lost_answer_is_settled_by_reading() {
    let lost = || first(1, Operation::Put, Fault::LostAnswer);
    let refused = || first(1, Operation::Put, Fault::Refused);
    let flip = |plan: FaultPlan, number| plan.at(Operation::Read, "", number, Fault::FlippedBit);
    let cut = |plan: FaultPlan, number| plan.at(Operation::Read, "", number, Fault::CutAnswer);
    let cases = [
        ("its own", lost(), None, Ok(Put::Created)),
        ("somebody else's", lost(), Some(FOREIGN), Ok(Put::Exists)),
        ("somebody else's, and nothing of it came", refused(), Some(FOREIGN), Ok(Put::Exists)),
        (
            "somebody else's, longer",
            refused(),
            Some("much longer than its own bytes are, by far"),
            Ok(Put::Exists),
        ),
        ("somebody else's, empty", refused(), Some(""), Ok(Put::Exists)),
        ("its own, and the first read is damaged", flip(lost(), 1), None, Ok(Put::Created)),
        ("its own, and the first read is cut", cut(lost(), 1), None, Ok(Put::Created)),
        ("its own, and two reads are damaged", cut(flip(lost(), 1), 2), None, Ok(Put::Created)),
        (
            "foreign, and the second read is damaged",
            flip(refused(), 2),
            Some(FOREIGN),
            Ok(Put::Exists),
        ),
        (
            "its own, and no read is right",
            (1..=9).fold(lost(), |plan, number| {
                if number % 2 == 0 { cut(plan, number) } else { flip(plan, number) }
            }),
            None,
            Err(ErrorKind::Unavailable),
        ),
        (
            "its own, and nothing can be read",
            (1..=9).fold(lost(), |plan, n| plan.at(Operation::Read, "", n, Fault::Refused)),
            None,
            Err(ErrorKind::Unavailable),
        ),
    ];
    for (name, plan, stored, expected) in cases {
        let Bench { store, memory, .. } = bench(RetryPolicy::default(), plan);
        if let Some(stored) = stored {
            memory.tamper("key", |bytes| *bytes = stored.into());
        }
        let told = put(&store, OWN).map_err(|error| error.kind());
        assert_eq!(told, expected, "{name}");
        assert_eq!(memory.peek("key").unwrap(), stored.unwrap_or(OWN), "{name}");
    }
}

/// Without an error before it, `Exists` is what it says, whatever the bytes are.
#[test]
fn a_first_try_is_not_doubted() {
    let Bench { store, memory, faults, .. } = bench(RetryPolicy::default(), FaultPlan::default());
    memory.tamper("key", |bytes| *bytes = OWN.into());
    assert_eq!(put(&store, OWN).unwrap(), Put::Exists);
    assert_eq!(faults.calls(), 1);
}

/// An object that is gone again, or may not be read, is nobody's.
#[test]
fn what_cannot_be_told_is_unknown() {
    for kind in [ErrorKind::NotFound, ErrorKind::Denied] {
        let clock = Clock::new();
        let store = Unreadable { kind, tries: Arc::default() };
        let store = RetryStore::new(store, clock);
        let error = put(&store, OWN).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(error.object(), Some("key"));
        assert!(error.remedy().is_some());
    }
}

/// A store whose first put fails, whose second finds an object, and which shows it to nobody.
#[derive(Debug)]
struct Unreadable {
    kind: ErrorKind,
    tries: Arc<AtomicU32>,
}

#[async_trait]
impl Store for Unreadable {
    fn location(&self) -> String {
        "unreadable:".into()
    }

    async fn put_if_absent(&self, _: &str, _: Payload) -> Result<Put> {
        match self.tries.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Error::unavailable("the answer was lost")),
            _ => Ok(Put::Exists),
        }
    }

    async fn get(&self, _: &str, _: u64) -> Result<Bytes> {
        Err(Error::new(self.kind, "not for you"))
    }

    async fn get_range(&self, key: &str, _: Range<u64>) -> Result<Bytes> {
        self.get(key, 0).await
    }

    async fn size(&self, _: &str) -> Result<Option<u64>> {
        Ok(None)
    }

    async fn list(&self, _: &str, _: Option<&str>) -> Result<Vec<ObjectMeta>> {
        Ok(Vec::new())
    }

    async fn delete(&self, _: &str) -> Result<()> {
        Ok(())
    }
}
