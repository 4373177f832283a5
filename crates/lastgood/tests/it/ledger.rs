//! One history for everybody: heads, damage, entries of later versions, and outcomes that nobody knows.

use std::sync::Arc;

use lastgood::branch::{self, Origin};
use lastgood::ledger::{Appended, Decision, Ledger, Standing, Writer};
use lastgood::{Error, ErrorKind, Hash, Repository, Result, attempt};
use lastgood_format::ledger::{Entry, Kind};
use lastgood_format::{key, sealed};
use lastgood_store::{MemoryStore, Store, SystemEnv};
use serde_json::{Value, json};

use crate::fixture::{in_folder, in_memory, on, open_alone, run_name, save_bytes, tapped};
use crate::tap::{Act, Op};

const OPERATOR: u64 = 0;

fn writer() -> Writer {
    Writer { attempt: OPERATOR, actor: "operator".into() }
}

fn open(repository: &Repository) -> Result<Ledger> {
    repository.ledger(&run_name())
}

/// An entry that changes nothing but the history's length.
fn incident(i: u64) -> Kind {
    Kind::IncidentOpened { reason: format!("number {i}"), class: None }
}

fn append(repository: &Repository, ledger: &mut Ledger, kind: &Kind) -> Result<Appended> {
    repository.block_on(ledger.append(&writer(), |_| Ok(Decision::Append(kind.clone()))))
}

fn mark(repository: &Repository, ledger: &mut Ledger, id: &Hash, standing: Standing, why: &str) {
    repository.block_on(lastgood::mark(ledger, &writer(), id, standing, why)).unwrap();
}

/// A run with a checkpoint and at least `entries` entries, among them marks and attempts.
fn long(entries: u64) -> (MemoryStore, Repository, Hash) {
    let (store, repository) = in_memory();
    let id = save_bytes(&mut open_alone(&repository, "a"), 1, &[1, 2, 3]).unwrap();
    let mut ledger = open(&repository).unwrap();
    for i in 0.. {
        match i % 5 {
            0 => drop(open_alone(&repository, &format!("attempt {i}"))),
            1 | 2 => {
                let standing = if i % 2 == 0 { Standing::Good } else { Standing::Bad };
                mark(&repository, &mut ledger, &id, standing, &i.to_string());
            }
            _ => drop(append(&repository, &mut ledger, &incident(i)).unwrap()),
        }
        if ledger.history().entries() >= entries {
            return (store, repository, id);
        }
    }
    unreachable!()
}

fn heads(store: &MemoryStore) -> Vec<String> {
    store.keys().into_iter().filter(|key| key.contains("/heads/")).collect()
}

fn without_heads(store: &MemoryStore) -> Repository {
    let copy = store.fork();
    let repository = on(copy.clone());
    for head in heads(store) {
        repository.block_on(copy.delete(&head)).unwrap();
    }
    repository
}

#[test]
fn a_head_and_the_entries_from_the_first_say_the_same() {
    let (store, repository, _) = long(200);
    assert_eq!(heads(&store).len(), 3);
    let by_head = open(&repository).unwrap();
    let by_entries = open(&without_heads(&store)).unwrap();
    assert!(by_head.history() == by_entries.history());
    assert!(by_head.history().entries() >= 200);
    assert_eq!(repository.block_on(by_head.audit()).unwrap(), 3);
    // What the head saves: nobody reads the entries before it.
    let tap = crate::tap::Tap::new(store.clone());
    open(&on(tap.clone())).unwrap();
    let reads = tap.calls().iter().filter(|call| call.op == Op::Get).count();
    assert!(reads < 20, "{reads} reads");
}

#[test]
fn a_damaged_head_is_passed_over() {
    let (store, _, _) = long(200);
    let expected = open(&without_heads(&store)).unwrap().history().clone();
    let all = heads(&store);
    for damaged in [&all[2..], &all[1..], &all[..]] {
        for change in [
            (|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2)) as fn(&mut Vec<u8>),
            |bytes| bytes.clear(),
            |bytes| bytes[30] ^= 1,
        ] {
            let copy = store.fork();
            for head in damaged {
                copy.tamper(head, change);
            }
            let repository = on(copy);
            let ledger = open(&repository).unwrap();
            assert!(*ledger.history() == expected);
            // It costs reads; whoever audits is told.
            let error = repository.block_on(ledger.audit()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert_eq!(error.object(), Some(damaged[0].as_str()));
        }
    }
}

/// The stored bytes of an entry after the last one, with `change` made to its body, sealed anew.
fn entry_after(ledger: &Ledger, kind: Kind, change: impl FnOnce(&mut Value)) -> (String, Vec<u8>) {
    let n = ledger.history().entries() + 1;
    let entry = Entry {
        run: run_name(),
        n,
        prev: ledger.history().tail(),
        write_id: 1,
        attempt: OPERATOR,
        at: std::time::SystemTime::UNIX_EPOCH,
        actor: "later".into(),
        kind,
    };
    let stored = entry.encode().unwrap();
    let mut body: Value = serde_json::from_slice(sealed::body(&stored).unwrap()).unwrap();
    change(&mut body);
    (key::ledger_entry(&run_name(), n), sealed::seal(&body).unwrap())
}

fn with_entry(change: impl FnOnce(&mut Value)) -> (MemoryStore, Repository) {
    let (store, repository) = in_memory();
    save_bytes(&mut open_alone(&repository, "a"), 1, &[1, 2, 3]).unwrap();
    let (object, stored) = entry_after(&open(&repository).unwrap(), incident(0), change);
    store.tamper(&object, |bytes| *bytes = stored);
    (store, repository)
}

#[test]
fn a_kind_of_a_later_version_is_passed_over_unless_it_must_be_understood() {
    let unknown = |body: &mut Value| {
        let object = body.as_object_mut().unwrap();
        object.remove("reason");
        object.insert("kind".into(), "tag.set".into());
        object.insert("tag".into(), json!({"name": "x", "to": [1, 2]}));
    };
    let (_store, repository) = with_entry(unknown);
    let ledger = open(&repository).unwrap();
    assert_eq!(ledger.history().entries(), 4);
    save_bytes(&mut open_alone(&repository, "b"), 2, &[4]).unwrap();
    let history = open(&repository).unwrap();
    assert_eq!(history.history().checkpoints().len(), 2);

    let (_store, repository) = with_entry(|body| {
        unknown(body);
        body.as_object_mut().unwrap().insert("must_understand".into(), true.into());
    });
    let error = open(&repository).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("tag.set"), "{error}");
    let error = lastgood::Run::open(
        &repository,
        &run_name(),
        crate::fixture::options(lastgood::state::World::ALONE, "b"),
    );
    assert_eq!(error.map(|_| ()).unwrap_err().kind(), ErrorKind::Incompatible);
}

#[test]
fn hostile_entries_stop_the_run_and_nothing_else() {
    let set = |name: &'static str, value: Value| {
        move |body: &mut Value| {
            body.as_object_mut().unwrap().insert(name.into(), value);
        }
    };
    type Change = Box<dyn FnOnce(&mut Value)>;
    let cases: Vec<(Change, ErrorKind)> = vec![
        (Box::new(set("prev", json!("00".repeat(32)))), ErrorKind::Corrupt),
        (Box::new(set("prev", Value::Null)), ErrorKind::Corrupt),
        (Box::new(set("n", json!(3))), ErrorKind::Corrupt),
        (Box::new(set("n", json!(-1))), ErrorKind::Corrupt),
        (Box::new(set("n", json!(1e300))), ErrorKind::Corrupt),
        (Box::new(set("run", json!("other"))), ErrorKind::Corrupt),
        (Box::new(set("run", json!("../../etc"))), ErrorKind::Corrupt),
        (Box::new(set("write_id", json!("x"))), ErrorKind::Corrupt),
        (Box::new(set("at", json!("yesterday"))), ErrorKind::Corrupt),
        (Box::new(set("kind", json!("checkpoint.good"))), ErrorKind::Corrupt),
        (Box::new(set("kind", json!(7))), ErrorKind::Corrupt),
        (Box::new(set("format", json!(99))), ErrorKind::Incompatible),
        (Box::new(|body| *body = json!([])), ErrorKind::Corrupt),
        (Box::new(|body| *body = Value::Null), ErrorKind::Corrupt),
    ];
    for (i, (change, kind)) in cases.into_iter().enumerate() {
        let (store, repository) = with_entry(change);
        let error = open(&repository).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), kind, "case {i}: {error}");
        assert!(error.to_string().contains("00000000000000000004.json"), "case {i}: {error}");
        // Healed, it goes on where it was.
        let object = key::ledger_entry(&run_name(), 4);
        repository.block_on(store.delete(&object)).unwrap();
        save_bytes(&mut open_alone(&repository, "b"), 2, &[4]).unwrap();
    }
    for stored in [vec![], vec![0; 100], vec![b'{'; 5000], b"null\n".to_vec(), vec![7; 2 << 20]] {
        let (store, repository) = in_memory();
        drop(open_alone(&repository, "a"));
        store.tamper(&key::ledger_entry(&run_name(), 3), |bytes| *bytes = stored);
        assert_eq!(open(&repository).map(|_| ()).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn an_unknown_outcome_is_never_told_as_not_committed() {
    for lands in [true, false] {
        let (store, tap, repository) = tapped();
        drop(open_alone(&repository, "a"));
        let mut ledger = open(&repository).unwrap();
        let n = ledger.history().entries() + 1;
        let slot = key::ledger_entry(&run_name(), n);
        let watched = slot.clone();
        // The first look at the slot is that of the refresh, which must find it empty.
        let looks = std::sync::atomic::AtomicUsize::new(0);
        tap.play(move |call| {
            if call.key != watched {
                return Act::Pass;
            }
            match call.op {
                Op::Put if lands => Act::Lose,
                Op::Put => Act::Fail(ErrorKind::Unavailable),
                Op::Get if looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 => {
                    Act::Pass
                }
                _ => Act::Fail(ErrorKind::Unavailable),
            }
        });
        let appended = append(&repository, &mut ledger, &incident(1));
        let Ok(Appended::Unknown(unknown)) = appended else {
            unreachable!("told as known: {appended:?}")
        };
        assert_eq!((unknown.n, unknown.error.kind()), (n, ErrorKind::Unavailable));
        assert_eq!(store.peek(&slot).is_some(), lands);
        // While the store says nothing, neither is the outcome known.
        let error = repository.block_on(attempt::settle(&mut ledger, &writer(), |_| {
            Ok(Decision::Append(incident(1)))
        }));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unavailable);
        tap.pass();
        // The next append settles it: it sees the entry if it landed, and takes the slot if not.
        let mut seen = 0;
        let settled = repository.block_on(ledger.append(&writer(), |history| {
            seen = history.entries();
            Ok(if history.entries() >= n {
                Decision::Nothing
            } else {
                Decision::Append(incident(1))
            })
        }));
        assert!(matches!(
            (lands, settled.unwrap()),
            (true, Appended::Nothing) | (false, Appended::Committed(_))
        ));
        assert_eq!(seen, if lands { n } else { n - 1 });
        assert_eq!(open(&repository).unwrap().history().entries(), n);
    }
}

#[test]
fn a_gap_is_never_written() {
    // An entry beyond the tail is none of the ledger's, and does not make one.
    let (store, repository) = in_memory();
    drop(open_alone(&repository, "a"));
    let (_, stored) = entry_after(&open(&repository).unwrap(), incident(0), |_| ());
    store.tamper(&key::ledger_entry(&run_name(), 5), |bytes| *bytes = stored.clone());
    assert_eq!(open(&repository).unwrap().history().entries(), 2);
}

/// What every store must carry: racing appends, attempts that fence, commits of several ranks, marks,
/// and the same history for whoever opens it.
pub(crate) fn check_on(store: Arc<dyn Store>) {
    let repository =
        Repository::create(Arc::clone(&store), Arc::new(SystemEnv::default())).unwrap();
    race(&repository, 4, 5);
    let data = crate::fixture::bytes(1, 300_000);
    let mut old = open_alone(&repository, "old");
    let id = save_bytes(&mut old, 1, &data).unwrap();
    let mut runs = crate::fixture::open_all(&repository, 3, "new");
    for step in 2..4 {
        crate::fixture::save_all(&mut runs, step, |capture| {
            let mut part = capture.component("m", "t", lastgood::state::Durability::Durable)?;
            part.replicated("w", lastgood::Dtype::U8, &[300_000], data.clone())
        })
        .unwrap();
    }
    assert_eq!(save_bytes(&mut old, 2, &data).unwrap_err().kind(), ErrorKind::Fenced);
    let mut ledger = open(&repository).unwrap();
    mark(&repository, &mut ledger, &id, Standing::Good, "test");
    let again = Repository::open(store, Arc::new(SystemEnv::default())).unwrap();
    assert_eq!(again.id(), repository.id());
    assert_eq!(again.runs().unwrap(), [run_name()]);
    let other = open(&again).unwrap();
    assert!(other.history() == ledger.history());
    assert_eq!(other.history().checkpoints().len(), 3);
    for checkpoint in other.history().checkpoints() {
        again.verify(&other, &checkpoint.id, &|_, _| ()).unwrap();
    }
    let last_good = lastgood::restore::Selector::LastGood;
    let found = crate::fixture::read_bytes(&again, &last_good, data.len()).unwrap();
    assert!(found == (1, data));
}

/// Threads append `each` entries at once: every one is there exactly once, in one order for all.
fn race(repository: &Repository, threads: u64, each: u64) {
    repository.block_on(attempt::create_run(&mut open(repository).unwrap(), "test")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || -> Result<()> {
                let mut ledger = open(repository)?;
                for i in 0..each {
                    let appended = append(repository, &mut ledger, &incident(100 * thread + i))?;
                    assert!(matches!(appended, Appended::Committed(_)));
                }
                Ok::<(), Error>(())
            });
        }
    });
    let ledger = open(repository).unwrap();
    assert_eq!(ledger.history().entries(), 1 + threads * each);
    let mut found: Vec<String> = (2..=1 + threads * each)
        .map(|n| repository.block_on(ledger.read_entry(n)).unwrap().unwrap().0)
        .map(|entry| match entry.kind {
            Kind::IncidentOpened { reason, .. } => reason,
            other => unreachable!("{other:?}"),
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len() as u64, threads * each);
}

#[test]
fn in_memory_and_in_a_folder() {
    let (store, _) = in_memory();
    check_on(Arc::new(store));
    let (folder, _) = in_folder();
    check_on(Arc::new(lastgood_store::LocalStore::open(folder.path()).unwrap()));
}

#[test]
fn a_branch_says_where_it_comes_from_in_its_second_entry_and_nowhere_else() {
    let (_store, repository) = in_memory();
    let mut ledger = open(&repository).unwrap();
    let created = |ledger: &Ledger| repository.block_on(branch::created(ledger)).unwrap();
    assert_eq!(created(&ledger), None);
    let source = "source".parse().unwrap();
    let id = repository.id().to_owned();
    let from = Some(Hash::of(b"checkpoint"));
    let origin = Origin { repository: id.clone(), run: source, from, from_step: 30, step: 33 };
    repository.block_on(branch::create(&mut ledger, "test", &origin)).unwrap();
    for i in 0..70 {
        drop(append(&repository, &mut ledger, &incident(i)).unwrap());
    }
    // A head summarises the entries by now, and says nothing of it.
    let found = created(&open(&repository).unwrap()).unwrap();
    assert_eq!((&found.origin, found.actor.as_str()), (&origin, "test"));

    let again = repository.block_on(branch::create(&mut ledger, "test", &origin)).unwrap_err();
    let late = Kind::BranchCreated {
        repository: id,
        source: origin.run.clone(),
        from,
        from_step: 30,
        step: 33,
    };
    let late = append(&repository, &mut ledger, &late).unwrap_err();
    for error in [again, late] {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    assert_eq!(ledger.history().entries(), 72);
    drop(open_alone(&repository, "next"));
}

#[test]
fn a_run_that_is_no_branch_has_no_origin_and_does_not_become_one() {
    let (_store, repository) = in_memory();
    save_bytes(&mut open_alone(&repository, "a"), 1, &[1]).unwrap();
    let mut ledger = open(&repository).unwrap();
    assert_eq!(repository.block_on(branch::created(&ledger)).unwrap(), None);
    let source = "source".parse().unwrap();
    let id = repository.id().to_owned();
    let origin = Origin { repository: id, run: source, from: None, from_step: 0, step: 1 };
    let error = repository.block_on(branch::create(&mut ledger, "test", &origin)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("a name that no run has"), "{error}");
}
