//! The fault wrapper does what it says, the same every time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lastgood_store::fault::{Fault, FaultPlan, FaultRates, Faults, Injected, Operation};
use lastgood_store::{ErrorKind, FaultStore, MemoryStore, Put, Store};

use crate::clock::{Clock, block_on};

const BYTES: &[u8] = b"some bytes that are worth keeping";

struct Bench {
    memory: MemoryStore,
    clock: Arc<Clock>,
    faults: Faults,
    store: FaultStore<MemoryStore>,
}

fn bench(plan: FaultPlan) -> Bench {
    let (memory, clock, faults) = (MemoryStore::default(), Clock::new(), Faults::new(plan));
    let store = FaultStore::new(memory.clone(), &faults, Arc::<Clock>::clone(&clock) as _);
    Bench { memory, clock, faults, store }
}

/// The first call of `operation` meets `fault`.
fn with(operation: Operation, fault: Fault) -> Bench {
    bench(FaultPlan::default().at(operation, "", 1, fault))
}

fn put(store: &dyn Store, key: &str, bytes: &'static [u8]) -> Result<Put, ErrorKind> {
    block_on(store.put_if_absent(key, bytes.into())).map_err(|error| error.kind())
}

#[test]
fn puts() {
    use ErrorKind::{Overloaded, Unavailable};
    let whole = Some(Bytes::from_static(BYTES));
    for (fault, told, stored) in [
        (Fault::Refused, Err(Unavailable), None),
        (Fault::LostAnswer, Err(Unavailable), whole.clone()),
        (Fault::FullDisk, Err(Overloaded), None),
        (Fault::Delay(Duration::from_secs(7)), Ok(Put::Created), whole.clone()),
        // What has no meaning for a put does nothing to it.
        (Fault::StaleList(1), Ok(Put::Created), whole.clone()),
        (Fault::FlippedBit, Ok(Put::Created), whole.clone()),
    ] {
        let Bench { memory, store, faults, .. } = with(Operation::Put, fault);
        assert_eq!(put(&store, "a/b", BYTES), told, "{fault:?}");
        assert_eq!(memory.peek("a/b"), stored, "{fault:?}");
        let injected = Injected { operation: Operation::Put, key: "a/b".into(), number: 1, fault };
        assert_eq!(faults.injected(), [injected]);
        assert_eq!(faults.calls(), 1);
        // It was for one call.
        let again = if stored.is_some() { Put::Exists } else { Put::Created };
        assert_eq!(put(&store, "a/b", BYTES), Ok(again), "{fault:?}");
        assert_eq!(faults.injected().len(), 1);
    }
}

#[test]
fn a_torn_write_is_seen_by_everybody() {
    let Bench { memory, store, .. } = with(Operation::Put, Fault::TornWrite);
    assert_eq!(put(&store, "a", BYTES), Err(ErrorKind::Unavailable));
    let torn = memory.peek("a").unwrap();
    assert!(torn.len() < BYTES.len() && BYTES.starts_with(&torn), "{torn:?}");
    assert_eq!(put(&store, "a", BYTES), Ok(Put::Exists));
    assert_eq!(memory.peek("a"), Some(torn));
}

#[test]
fn a_delay_is_slept_through_the_environment() {
    let Bench { clock, store, .. } = with(Operation::Read, Fault::Delay(Duration::from_secs(7)));
    put(&store, "a", BYTES).unwrap();
    assert_eq!(block_on(store.get("a", 100)).unwrap(), BYTES);
    assert_eq!(clock.sleeps(), [Duration::from_secs(7)]);
}

/// How many bits of the bytes that were read differ, or how many bytes they are too short.
#[derive(Debug, PartialEq)]
enum Damage {
    None,
    Flipped(u32),
    Cut,
    Told(ErrorKind),
}

fn damage(read: lastgood_store::Result<Bytes>, expected: &[u8]) -> Damage {
    let read = match read {
        Err(error) => return Damage::Told(error.kind()),
        Ok(read) => read,
    };
    if read.len() < expected.len() {
        assert!(expected.starts_with(&read));
        return Damage::Cut;
    }
    match read.iter().zip(expected).map(|(a, b)| (a ^ b).count_ones()).sum() {
        0 => Damage::None,
        bits => Damage::Flipped(bits),
    }
}

#[test]
fn reads() {
    for (fault, of_get, into_memory) in [
        (Fault::FlippedBit, Damage::Flipped(1), Damage::Flipped(1)),
        (Fault::CutAnswer, Damage::Cut, Damage::Told(ErrorKind::Corrupt)),
        (Fault::TornWrite, Damage::None, Damage::None),
        (
            Fault::LostAnswer,
            Damage::Told(ErrorKind::Unavailable),
            Damage::Told(ErrorKind::Unavailable),
        ),
    ] {
        let plan = (1..=3).fold(FaultPlan::default(), |plan, number| {
            plan.at(Operation::Read, "a", number, fault)
        });
        let Bench { memory, store, .. } = bench(plan);
        put(&store, "a", BYTES).unwrap();
        assert_eq!(damage(block_on(store.get("a", 100)), BYTES), of_get, "{fault:?}");
        let range = block_on(store.get_range("a", 3..20));
        assert_eq!(damage(range, &BYTES[3..20]), of_get, "{fault:?}");
        let mut target = [0; 9];
        let read = block_on(store.read_into("a", 5, &mut target));
        let read = read.map(|()| Bytes::copy_from_slice(&target));
        assert_eq!(damage(read, &BYTES[5..14]), into_memory, "{fault:?}");
        // The way was damaged, not the object.
        assert_eq!(memory.peek("a").unwrap(), BYTES);
        assert_eq!(damage(block_on(store.get("a", 100)), BYTES), Damage::None, "{fault:?}");
    }
}

#[test]
fn damage_of_nothing_is_none() {
    for fault in [Fault::FlippedBit, Fault::CutAnswer, Fault::TornWrite] {
        let Bench { store, .. } = bench(FaultPlan::default().at(Operation::Read, "", 1, fault).at(
            Operation::Read,
            "",
            2,
            fault,
        ));
        put(&store, "empty", b"").unwrap();
        assert_eq!(block_on(store.get("empty", 0)).unwrap(), "");
        block_on(store.read_into("empty", 0, &mut [])).unwrap();
    }
}

#[test]
fn a_full_disk_is_full_until_it_has_room() {
    let Bench { store, faults, memory, .. } = bench(FaultPlan::default().bytes_left(10));
    assert_eq!(put(&store, "a", b"123456"), Ok(Put::Created));
    assert_eq!(put(&store, "b", b"12345"), Err(ErrorKind::Overloaded));
    assert_eq!(memory.peek("b"), None);
    // What exists takes no room, and neither does a put that finds it.
    assert_eq!(put(&store, "a", b"1234567890"), Ok(Put::Exists));
    assert_eq!(put(&store, "c", b"1234"), Ok(Put::Created));
    assert_eq!(put(&store, "d", b"1"), Err(ErrorKind::Overloaded));
    assert_eq!(put(&store, "e", b""), Ok(Put::Created));
    faults.set_bytes_left(Some(1));
    assert_eq!(put(&store, "d", b"1"), Ok(Put::Created));
    assert_eq!(put(&store, "b", b"12345"), Err(ErrorKind::Overloaded));
    faults.set_bytes_left(None);
    assert_eq!(put(&store, "b", b"12345"), Ok(Put::Created));
}

#[test]
fn a_stale_listing_lacks_the_newest() {
    let Bench { store, .. } = with(Operation::List, Fault::StaleList(2));
    for key in ["d", "a", "c", "b"] {
        put(&store, key, b"").unwrap();
    }
    let list = || {
        let found = block_on(store.list("", None)).unwrap();
        found.into_iter().map(|object| object.key).collect::<Vec<_>>()
    };
    assert_eq!(list(), ["a", "d"]);
    assert_eq!(list(), ["a", "b", "c", "d"]);
}

#[test]
fn calls_are_counted_by_operation_and_prefix() {
    let Bench { store, faults, .. } =
        bench(FaultPlan::default().at(Operation::Put, "runs/a/", 3, Fault::Refused));
    for (key, told) in [
        ("runs/b/1", Ok(Put::Created)),
        ("runs/a/1", Ok(Put::Created)),
        ("runs/a/2", Ok(Put::Created)),
        ("runs/b/2", Ok(Put::Created)),
        ("runs/a/3", Err(ErrorKind::Unavailable)),
        ("runs/a/3", Ok(Put::Created)),
    ] {
        // Other operations do not count.
        block_on(store.size("runs/a/1")).unwrap();
        assert_eq!(put(&store, key, b""), told, "{key}");
    }
    // A fault may be planned while it runs; it counts from then.
    faults.at(Operation::Put, "runs/a/", 2, Fault::FullDisk);
    assert_eq!(put(&store, "runs/a/4", b""), Ok(Put::Created));
    assert_eq!(put(&store, "runs/a/5", b""), Err(ErrorKind::Overloaded));
    faults.at(Operation::Put, "", 1, Fault::Refused);
    faults.stop();
    assert_eq!(put(&store, "runs/a/6", b""), Ok(Put::Created));
}

#[test]
fn every_operation_can_be_refused_and_lost() {
    for fault in [Fault::Refused, Fault::LostAnswer] {
        let operations = [
            Operation::Put,
            Operation::Read,
            Operation::Size,
            Operation::Settle,
            Operation::List,
            Operation::Delete,
        ];
        let plan = operations
            .into_iter()
            .fold(FaultPlan::default(), |plan, operation| plan.at(operation, "", 1, fault));
        let Bench { store, memory, faults, .. } = bench(plan);
        let failed = [
            put(&store, "a", BYTES).err(),
            block_on(store.get("a", 100)).err().map(|error| error.kind()),
            block_on(store.size("a")).err().map(|error| error.kind()),
            block_on(store.settle("a")).err().map(|error| error.kind()),
            block_on(store.list("", None)).err().map(|error| error.kind()),
            block_on(store.delete("a")).err().map(|error| error.kind()),
        ];
        // The put whose answer was lost happened, and so did the delete.
        assert_eq!(failed, [Some(ErrorKind::Unavailable); 6], "{fault:?}");
        assert!(memory.keys().is_empty());
        assert_eq!(faults.injected().len(), operations.len());
    }
}

const RATES: FaultRates = FaultRates {
    refused: 100,
    lost: 100,
    delayed: 200,
    delay_max: Duration::from_millis(100),
    torn: 100,
    stale: 200,
    damaged: 100,
};

/// Many calls on many keys, in the order that `order` says.
fn play(seed: u64, order: impl Fn(usize) -> usize) -> (Vec<Injected>, Vec<Duration>) {
    let Bench { store, faults, clock, .. } = bench(FaultPlan::seeded(seed, RATES));
    for i in 0..300 {
        let key = format!("key-{}", order(i) % 25);
        block_on(async {
            let _ = store.put_if_absent(&key, BYTES.into()).await;
            let _ = store.get(&key, 100).await;
            let _ = store.list(&key, None).await;
            let _ = store.delete(&key).await;
        });
    }
    (faults.injected(), clock.sleeps())
}

#[test]
fn the_same_seed_and_calls_meet_the_same_faults() {
    let first = play(1, |i| i);
    assert_eq!(first, play(1, |i| i));
    assert_ne!(first.0, play(2, |i| i).0);
    // In another order each key meets what it met before.
    let by_key = |injected: Vec<Injected>| {
        let mut faults: BTreeMap<String, Vec<Injected>> = BTreeMap::new();
        for fault in injected {
            faults.entry(fault.key.clone()).or_default().push(fault);
        }
        faults
    };
    assert_eq!(by_key(first.0), by_key(play(1, |i| 299 - i).0));
}

#[test]
fn rates_are_kept() {
    let mut injected = Vec::new();
    let seeds = 1..=20;
    for seed in seeds.clone() {
        injected.extend(play(seed, |i| i).0);
    }
    let calls = 300 * seeds.count();
    let share = |operation: Operation, is: fn(&Fault) -> bool| {
        let of = |one: &&Injected| one.operation == operation && is(&one.fault);
        injected.iter().filter(of).count() * 1000 / calls
    };
    for (operation, is, rate) in [
        (Operation::Put, (|fault| *fault == Fault::Refused) as fn(&Fault) -> bool, 100),
        (Operation::Put, |fault| *fault == Fault::LostAnswer, 100),
        (Operation::Put, |fault| *fault == Fault::TornWrite, 100),
        (Operation::Delete, |fault| *fault == Fault::Refused, 100),
        (Operation::List, |fault| matches!(fault, Fault::StaleList(1..=3)), 200),
        (Operation::Put, |fault| matches!(fault, Fault::Delay(_)), 200),
        // A tenth, less those that would have followed another.
        (Operation::Read, |fault| matches!(fault, Fault::FlippedBit | Fault::CutAnswer), 90),
        (Operation::Read, |fault| *fault == Fault::FlippedBit, 45),
    ] {
        let found = share(operation, is) as i64;
        assert!((found - rate).abs() < 15, "{operation:?}: {found} of a thousand, not {rate}");
    }
    let long = |one: &Injected| matches!(one.fault, Fault::Delay(delay) if delay > RATES.delay_max);
    assert!(!injected.iter().any(long));
}

#[test]
fn no_object_is_damaged_by_two_reads_in_a_row() {
    let rates = FaultRates { damaged: 900, ..FaultRates::default() };
    for seed in 0..50 {
        let Bench { store, .. } = bench(FaultPlan::seeded(seed, rates));
        put(&store, "a", BYTES).unwrap();
        let damaged: Vec<bool> =
            (0..50).map(|_| damage(block_on(store.get("a", 100)), BYTES) != Damage::None).collect();
        assert!(!damaged.windows(2).any(|pair| pair == [true, true]), "{damaged:?}");
        assert!(damaged.contains(&true));
    }
}
