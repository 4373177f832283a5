use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lastgood::journal::{JournalOptions, StepRecord};
use lastgood::save::{Mode, SaveOptions};
use lastgood::state::Durability;
use lastgood::{Dtype, Run, RunOptions};
use lastgood_format::key;
use lastgood_store::fault::{Fault, FaultPlan, FaultStore, Faults, Operation};
use lastgood_store::{Env, LocalStore, SystemEnv};

use super::*;

/// A save of more bytes fails.
const ROOM: usize = 1 << 20;

fn run() -> RunName {
    "test".parse().unwrap()
}

fn repository(folder: &Path) -> (Faults, Repository) {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::default());
    let faults = Faults::new(FaultPlan::default());
    let store = LocalStore::open(folder).unwrap();
    let store = FaultStore::new(store, &faults, Arc::clone(&env));
    (faults, Repository::create(Arc::new(store), env).unwrap())
}

fn start(repository: &Repository) -> Run {
    let journal = JournalOptions { wait: true, ..JournalOptions::default() };
    let save = SaveOptions { arena_bytes_max: ROOM as u64, ..SaveOptions::default() };
    let options = RunOptions { journal: Some(journal), save, ..RunOptions::default() };
    Run::open(repository, &run(), options).unwrap()
}

fn save(run: &mut Run, step: u64, bytes: usize) -> Result<()> {
    let data = vec![step as u8; bytes];
    let saved = run.save(step, Mode::Sync, |capture| {
        capture.component("m", "t", Durability::Durable)?.tensor(
            "w",
            Dtype::U8,
            &[bytes as u64],
            &data,
        )
    });
    Ok(saved.map(drop)?)
}

/// The facts of a run of two attempts. The first one's second save fails; it is killed, `damage` is done to its open
/// segment, and the second one does the lost steps again.
fn incident(damage: fn(&mut Vec<u8>)) -> Facts {
    let folder = tempfile::tempdir().unwrap();
    let (faults, repository) = repository(folder.path());
    let mut first = start(&repository);
    first.step(StepRecord::new(1));
    save(&mut first, 1, 1000).unwrap();
    save(&mut first, 2, ROOM + 1).unwrap_err();
    (2..=6).for_each(|step| first.step(StepRecord::new(step)));
    // As `kill -9` ends it.
    std::mem::forget(first);
    let open = fs::read_dir(folder.path().join(".journal/test")).unwrap();
    let open = open.map(|entry| entry.unwrap().path()).max().unwrap();
    let mut left = fs::read(&open).unwrap();
    damage(&mut left);
    fs::write(&open, left).unwrap();
    let second = start(&repository);
    let begin = Instant::now();
    while second.journal().unwrap().recovered().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing is recovered");
        std::thread::sleep(Duration::from_millis(5));
    }
    (2..=6).for_each(|step| second.step(StepRecord::new(step)));
    let _ = second.close();
    let ledger = repository.existing(&run()).unwrap();
    // Whoever lists it twice is refused.
    faults.at(Operation::List, &key::journal_folder(&run()), 2, Fault::Refused);
    Facts::read(&repository, &ledger, None, None).unwrap()
}

fn moments(facts: &Facts, mark: Mark) -> Vec<&str> {
    let marked = facts.moments.iter().filter(|moment| moment.mark == mark);
    marked.map(|moment| moment.what.as_str()).collect()
}

#[test]
fn failures_are_moments_and_the_journal_is_listed_once() {
    let facts = incident(|left| left.truncate(left.len() - 30));
    assert!(facts.again.as_ref().is_some_and(|again| again.divergences.is_empty()));
    let faults = moments(&facts, Mark::Fault);
    let [save] = &faults[..] else { panic!("{faults:?}") };
    assert!(save.starts_with("rank 0: the save of step 2 failed: "), "{save}");
    assert!(save.contains("1048577 bytes"), "{save}");
    let decisions = moments(&facts, Mark::Decision);
    let [cut] = &decisions[..] else { panic!("{decisions:?}") };
    assert!(cut.contains("bytes that attempt 1 was writing are cut off: "), "{cut}");
}

#[test]
fn damage_of_the_journal_is_a_fault_with_the_place_of_the_file() {
    let facts = incident(|left| {
        let step = left.len() - 200;
        left[step] ^= 4;
    });
    let faults = moments(&facts, Mark::Fault);
    let [_, damage] = &faults[..] else { panic!("{faults:?}") };
    assert!(damage.contains("bytes of the journal of attempt 1 are damaged: "), "{damage}");
    assert!(damage.contains("the file was set aside as /"), "{damage}");
    assert!(moments(&facts, Mark::Decision).is_empty());
}
