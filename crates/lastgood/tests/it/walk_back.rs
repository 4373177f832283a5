//! Damage makes a restore go back to the checkpoint before it, and say so.

use lastgood::ledger::Standing;
use lastgood::restore::{Selector, choose, resolve};
use lastgood::state::World;
use lastgood::{ErrorKind, Hash, Repository, Run};
use lastgood_store::{MemoryStore, Store};

use crate::fixture::{
    bytes, in_memory, open, open_all, open_alone, restore_bytes, run_name, save_all, save_bytes,
};

const LENGTH: usize = 100_000;

/// Saves `steps` steps that share no chunk.
fn saved(repository: &Repository, steps: u64) -> Vec<Hash> {
    let mut run = open_alone(repository, "save");
    (1..=steps).map(|step| save_bytes(&mut run, step, &bytes(step, LENGTH)).unwrap()).collect()
}

/// The object of a kind that belongs to `step`.
fn object_of(store: &MemoryStore, kind: &str, step: u64, id: &Hash) -> String {
    let of = |key: &String| match kind {
        "manifest" => key.contains(&format!("/checkpoints/{id}")),
        "index" => key.contains("/saves/") && key.contains(&format!("/{step:012}/")),
        _ => key.contains("/packs/") && key.contains(&format!("/{step:012}/")),
    };
    store.keys().into_iter().find(of).unwrap()
}

fn flip(store: &MemoryStore, key: &str) {
    store.tamper(key, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    });
}

fn delete(repository: &Repository, store: &MemoryStore, key: &str) {
    repository.block_on(store.delete(key)).unwrap();
}

fn standings(repository: &Repository) -> Vec<Standing> {
    let ledger = repository.existing(&run_name()).unwrap();
    ledger.history().checkpoints().iter().map(|c| c.standing).collect()
}

#[test]
fn each_kind_of_object_damaged_or_missing() {
    for kind in ["manifest", "index", "pack"] {
        for missing in [false, true] {
            let (store, repository) = in_memory();
            let ids = saved(&repository, 3);
            let key = object_of(&store, kind, 3, &ids[2]);
            match missing {
                true => delete(&repository, &store, &key),
                false => flip(&store, &key),
            }
            let mut run = open_alone(&repository, "restore");
            let (restored, data) = restore_bytes(&mut run, LENGTH).unwrap().unwrap();
            assert_eq!((restored.step, restored.checkpoint), (2, ids[1]), "{kind}");
            assert!(data == bytes(2, LENGTH), "{kind}");
            let [notice] = restored.notices.as_slice() else { unreachable!() };
            let says = notice.contains(&ids[2].short().to_string()) && notice.contains(&key);
            assert!(says, "{kind}: {notice}");
            use Standing::{Bad, Committed};
            assert_eq!(standings(&repository), [Committed, Committed, Bad], "{kind}");
            let ledger = repository.existing(&run_name()).unwrap();
            let reason = ledger.history().checkpoint(&ids[2]).unwrap().reason.clone().unwrap();
            assert!(reason.contains(&key), "{reason}");
            // The next attempt begins with the one that is whole, and has nothing to say.
            let mut run = open_alone(&repository, "again");
            let (restored, _) = restore_bytes(&mut run, LENGTH).unwrap().unwrap();
            assert_eq!((restored.step, restored.notices.len()), (2, 0), "{kind}");
            // What is saved now does not stand on the damaged one.
            let id = save_bytes(&mut run, 4, &bytes(3, LENGTH)).unwrap();
            let ledger = repository.existing(&run_name()).unwrap();
            repository.verify(&ledger, &id, &|_, _| ()).unwrap();
        }
    }
}

#[test]
fn several_damaged_and_all_damaged() {
    let (store, repository) = in_memory();
    let ids = saved(&repository, 4);
    for step in 2..=4 {
        flip(&store, &object_of(&store, "pack", step, &ids[step as usize - 1]));
    }
    let (restored, data) =
        restore_bytes(&mut open_alone(&repository, "a"), LENGTH).unwrap().unwrap();
    assert_eq!((restored.step, restored.notices.len()), (1, 3));
    assert!(data == bytes(1, LENGTH));
    flip(&store, &object_of(&store, "index", 1, &ids[0]));
    let mut run = open_alone(&repository, "b");
    let error = restore_bytes(&mut run, LENGTH).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(&ids[0].short().to_string()), "{error}");
    // Asked again, it does not begin a fresh run as if there had never been a checkpoint.
    let error = restore_bytes(&mut run, LENGTH).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let error = restore_bytes(&mut open_alone(&repository, "c"), LENGTH).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    for id in &ids {
        assert!(error.to_string().contains(&id.short().to_string()), "{error}");
    }
}

#[test]
fn all_damaged_at_once_names_all() {
    let (store, repository) = in_memory();
    let ids = saved(&repository, 3);
    for (step, id) in (1..).zip(&ids) {
        flip(&store, &object_of(&store, "pack", step, id));
    }
    let error = restore_bytes(&mut open_alone(&repository, "a"), LENGTH).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    for id in &ids {
        assert!(error.to_string().contains(&id.short().to_string()), "{error}");
    }
    assert_eq!(standings(&repository), [Standing::Bad; 3]);
}

#[test]
fn several_ranks_go_back_together_in_the_next_attempt() {
    let (store, repository) = in_memory();
    let mut runs = open_all(&repository, 2, "save");
    let mut ids = Vec::new();
    for step in 1..=2 {
        let saved = save_all(&mut runs, step, |capture| {
            let rank = capture.world().rank;
            let mut part = capture.component("m", "t", lastgood::state::Durability::Durable)?;
            part.rank_value("v", &(step, rank))
        });
        ids.push(saved.unwrap());
    }
    drop(runs);
    let restore = |run: &mut Run| {
        let mut value = (0u64, 0u32);
        run.restore(&mut value, |value, targets| {
            let mut slots = targets.component("m", "t", lastgood::state::Durability::Durable)?;
            slots.rank_value("v", value)
        })
        .map(|restored| (restored.unwrap().step, value))
    };
    // Only what rank 1 reads is damaged.
    let pack = store.keys().into_iter().rfind(|key| key.contains("/packs/")).unwrap();
    assert!(pack.ends_with("/1-0.pack"), "{pack}");
    store.tamper(&pack, |bytes| bytes[17] ^= 1);
    let mut runs = open_all(&repository, 2, "damaged");
    assert_eq!(restore(&mut runs[0]).unwrap(), (2, (2, 0)));
    let error = restore(&mut runs[1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let text = error.to_string();
    assert!(text.contains(&ids[1].to_string()) && text.contains("next attempt"), "{text}");
    // From here on no rank of this attempt restores it, not even one that could.
    for run in &mut runs {
        let error = restore(run).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("next attempt"), "{error}");
    }
    let mut late = open(&repository, World { rank: 0, size: 2 }, "damaged");
    assert_eq!(restore(&mut late).unwrap_err().kind(), ErrorKind::Corrupt);
    drop(runs);
    let mut runs = open_all(&repository, 2, "next");
    assert_eq!(restore(&mut runs[0]).unwrap(), (1, (1, 0)));
    assert_eq!(restore(&mut runs[1]).unwrap(), (1, (1, 1)));
}

#[test]
fn what_is_marked_bad_between_opening_and_restoring_is_not_restored() {
    let (_store, repository) = in_memory();
    let ids = saved(&repository, 2);
    let mut run = open_alone(&repository, "a");
    mark(&repository, &ids[1], Standing::Bad).unwrap();
    let (restored, _) = restore_bytes(&mut run, LENGTH).unwrap().unwrap();
    assert_eq!(restored.step, 1);
    assert!(restored.notices[0].contains(&ids[1].short().to_string()), "{:?}", restored.notices);
}

fn mark(repository: &Repository, id: &Hash, standing: Standing) -> lastgood::Result<()> {
    let mut ledger = repository.existing(&run_name()).unwrap();
    let writer = lastgood::ledger::Writer { attempt: 0, actor: "operator".into() };
    repository.block_on(lastgood::mark(&mut ledger, &writer, id, standing, "because"))
}

#[test]
fn good_before_verified_before_committed_and_never_bad() {
    let (_store, repository) = in_memory();
    let ids = saved(&repository, 5);
    let chosen = || {
        let ledger = repository.existing(&run_name()).unwrap();
        choose(ledger.history()).map(|checkpoint| checkpoint.step)
    };
    assert_eq!(chosen(), Some(5));
    let steps = [
        (2, Standing::Verified, Some(2)),
        (3, Standing::Verified, Some(3)),
        (1, Standing::Good, Some(1)),
        (2, Standing::Good, Some(2)),
        (2, Standing::Bad, Some(1)),
        (1, Standing::Bad, Some(3)),
        (3, Standing::Bad, Some(5)),
        (5, Standing::Bad, Some(4)),
        (4, Standing::Bad, None),
        // A person may overrule a bad one.
        (2, Standing::Good, Some(2)),
    ];
    for (i, standing, expected) in steps {
        mark(&repository, &ids[i - 1], standing).unwrap();
        assert_eq!(chosen(), expected, "{i} {standing}");
    }
    let ledger = repository.existing(&run_name()).unwrap();
    let found = |selector: &str| {
        let selector: Selector = selector.parse().unwrap();
        resolve(ledger.history(), &selector).map(|c| c.step).map_err(|e| e.kind())
    };
    assert_eq!(found("last-good"), Ok(2));
    assert_eq!(found("latest"), Ok(2));
    assert_eq!(found("4"), Ok(4));
    assert_eq!(found("9"), Err(ErrorKind::NotFound));
    assert_eq!(found(&format!("id:{:.12}", ids[4].to_string())), Ok(5));
    assert_eq!(found("id:0000000000"), Err(ErrorKind::NotFound));
    for text in ["", "abc", "ABCDEF0123", "-1", "lastgood", "id:", "0x12"] {
        assert_eq!(text.parse::<Selector>().unwrap_err().kind(), ErrorKind::Invalid, "{text:?}");
    }
}

#[test]
fn marks_that_are_refused_or_change_nothing() {
    let (_store, repository) = in_memory();
    let ids = saved(&repository, 1);
    let entries = || repository.existing(&run_name()).unwrap().history().entries();
    let nowhere = Hash::of(b"nowhere");
    assert_eq!(
        mark(&repository, &nowhere, Standing::Good).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        mark(&repository, &ids[0], Standing::Committed).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    mark(&repository, &ids[0], Standing::Verified).unwrap();
    mark(&repository, &ids[0], Standing::Good).unwrap();
    let before = entries();
    mark(&repository, &ids[0], Standing::Good).unwrap();
    mark(&repository, &ids[0], Standing::Verified).unwrap();
    assert_eq!(entries(), before, "a mark that changes nothing was written");
    assert_eq!(standings(&repository), [Standing::Good]);
    mark(&repository, &ids[0], Standing::Bad).unwrap();
    let error = mark(&repository, &ids[0], Standing::Verified).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(standings(&repository), [Standing::Bad]);
}

#[test]
fn a_base_that_is_marked_bad_is_not_reused() {
    let (store, repository) = in_memory();
    let data = bytes(1, LENGTH);
    let mut run = open_alone(&repository, "a");
    let first = save_bytes(&mut run, 1, &data).unwrap();
    flip(&store, &object_of(&store, "pack", 1, &first));
    mark(&repository, &first, Standing::Bad).unwrap();
    let second = save_bytes(&mut run, 2, &data).unwrap();
    let ledger = repository.existing(&run_name()).unwrap();
    repository.verify(&ledger, &second, &|_, _| ()).unwrap();
    assert_eq!(ledger.history().checkpoint(&second).unwrap().parent, Some(first));
    drop(run);
    // Nor after a restore of another one in the same attempt.
    let mut run = open_alone(&repository, "b");
    let (restored, found) = restore_bytes(&mut run, LENGTH).unwrap().unwrap();
    assert_eq!((restored.step, found), (2, data));
}

#[test]
fn what_expired_is_named_by_its_id_alone_and_nothing_stands_on_it() {
    let (_store, repository) = in_memory();
    let data = bytes(1, LENGTH);
    let mut run = open_alone(&repository, "a");
    let first = save_bytes(&mut run, 1, &data).unwrap();
    let second = save_bytes(&mut run, 2, &bytes(2, LENGTH)).unwrap();
    run.expire(&second, "test").unwrap();
    let entries = run.refresh().unwrap().entries();
    run.expire(&second, "again").unwrap();
    let history = run.refresh().unwrap();
    assert_eq!(history.entries(), entries, "an expiry that changes nothing was written");
    assert_eq!(choose(history).unwrap().id, first);
    for selector in ["latest", "last-good"] {
        assert_eq!(resolve(history, &selector.parse().unwrap()).unwrap().id, first);
    }
    let gone = resolve(history, &Selector::Step(2)).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert_eq!(resolve(history, &Selector::Id(second.to_string())).unwrap().id, second);
    let nowhere = run.expire(&Hash::of(b"nowhere"), "test").unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    // The chunks of an expired base are written again.
    run.expire(&first, "test").unwrap();
    let third = save_bytes(&mut run, 3, &data).unwrap();
    let ledger = repository.existing(&run_name()).unwrap();
    repository.verify(&ledger, &third, &|_, _| ()).unwrap();
    assert!(ledger.history().checkpoint(&third).unwrap().new_bytes >= LENGTH as u64);
    drop(run);
    let mut old = open_alone(&repository, "b");
    let mut newer = open_alone(&repository, "c");
    assert_eq!(old.expire(&third, "late").unwrap_err().kind(), ErrorKind::Fenced);
    newer.expire(&third, "test").unwrap();
}
