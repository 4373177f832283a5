//! Runs that go on by a replay: what is recorded behind the checkpoint is done again, and must come to the same.
#![expect(clippy::disallowed_methods, reason = "a test damages a file of a store by hand")]

use std::fs;
use std::path::Path;

use lastgood::journal::history::everything;
use lastgood::journal::read::Filter;
use lastgood::journal::{JournalOptions, Kind, StepRecord, Value};
use lastgood::ledger::Standing;
use lastgood::replay::Resume;
use lastgood::replay::compare::Difference;
use lastgood::replay::resume::{Resumed, resumed};
use lastgood::restore::Selector;
use lastgood::save::Mode;
use lastgood::state::World;
use lastgood::{Error, ErrorKind, Repository, Result, Run, RunOptions};

use crate::fixture::{bytes, capture_bytes, in_folder, options, run_name, target_bytes};

const LENGTH: usize = 1000;

fn try_start(
    repository: &Repository,
    resume: Resume,
    logical: std::ops::Range<u32>,
    digests: bool,
) -> Result<Run> {
    let incarnation = format!("{:x}", repository.env().random());
    let journal =
        JournalOptions { wait: true, digests, logical: Some(logical), ..JournalOptions::default() };
    let options = RunOptions {
        journal: Some(journal),
        environment: [("python.version".to_owned(), "3.11".to_owned())].into(),
        resume,
        ..options(World::ALONE, &incarnation)
    };
    Run::open(repository, &run_name(), options)
}

fn start(repository: &Repository, resume: Resume) -> Run {
    try_start(repository, resume, 0..1, true).unwrap()
}

fn record(step: u64) -> StepRecord {
    StepRecord::new(step).loss(step as f32).with("seconds", step as f64)
}

fn steps(run: &Run, steps: impl IntoIterator<Item = u64>) {
    steps.into_iter().for_each(|step| run.step(record(step)));
}

fn save(run: &mut Run, step: u64) {
    let data = bytes(step, LENGTH);
    run.save(step, Mode::Sync, |c| capture_bytes(c, &data)).unwrap();
}

fn digest(run: &mut Run, data: &[u8]) {
    run.digest(7, |c| capture_bytes(c, data)).unwrap();
}

fn restore(run: &mut Run) -> (u64, Vec<String>) {
    let mut data = vec![0; LENGTH];
    let restored = run.restore(data.as_mut_slice(), |data, targets| target_bytes(targets, data));
    restored.unwrap().map_or((0, Vec::new()), |restored| (restored.step, restored.notices))
}

fn read(run: &Run, key: &str, value: u64) -> Result<u64> {
    let found = run.read_external(key, Value::from(value))?;
    Ok(found.as_u64().unwrap())
}

/// Ends a run as `kill -9` does.
fn kill(run: Run) {
    std::mem::forget(run);
}

fn came(repository: &Repository, attempt: u64) -> Vec<Resumed> {
    let ledger = repository.existing(&run_name()).unwrap();
    resumed(repository, &ledger, attempt..=attempt).unwrap()
}

fn count(repository: &Repository, attempt: u64, kind: Kind) -> usize {
    let reader = repository.journal(&run_name()).unwrap();
    let filter = Filter { kinds: vec![kind], ..Filter::default() };
    let found = repository.block_on(async {
        let mut events = reader.merged(&everything([attempt]), filter);
        let mut count = 0;
        while events.next().await?.is_some() {
            count += 1;
        }
        Ok(count)
    });
    found.unwrap()
}

/// Saved at step 4, killed in step 8, before which it read a number from outside.
fn killed() -> (tempfile::TempDir, Repository) {
    let (folder, repository) = in_folder();
    let mut run = start(&repository, Resume::Live);
    assert_eq!(read(&run, "configuration", 1).unwrap(), 1);
    assert_eq!(restore(&mut run).0, 0);
    steps(&run, 1..=4);
    save(&mut run, 4);
    steps(&run, 5..=6);
    assert_eq!(read(&run, "rate", 60).unwrap(), 60);
    run.event("evaluation", Value::from(0.5_f64)).unwrap();
    steps(&run, 7..=7);
    digest(&mut run, &bytes(7, LENGTH));
    // A thread finds the digest: one is of the save.
    while count(&repository, 1, Kind::STATE_DIGEST) < 2 {
        let journal = run.journal().unwrap();
        journal.seal(&journal.cut()).unwrap();
    }
    assert_eq!(read(&run, "rate", 70).unwrap(), 70);
    kill(run);
    (folder, repository)
}

#[test]
fn what_is_recorded_behind_the_checkpoint_is_done_again_and_then_it_is_live() {
    let (_folder, repository) = killed();
    let mut run = start(&repository, Resume::Replay);
    // A program that starts asks for the same again, and gets what it got then.
    assert_eq!(read(&run, "configuration", 2).unwrap(), 1);
    let (step, notices) = restore(&mut run);
    assert_eq!((step, run.todo()), (4, Some((1, 4, 7))));
    assert_eq!(
        notices,
        ["attempt 1 recorded steps 5 to 7 after it: they are done again and compared"]
    );
    steps(&run, 5..=6);
    assert_eq!(read(&run, "rate", 61).unwrap(), 60);
    run.event("evaluation", Value::from(0.5_f64)).unwrap();
    steps(&run, 7..=7);
    assert_eq!(run.todo(), None);
    digest(&mut run, &bytes(7, LENGTH));
    // What the step that was interrupted had read counts; what it had not read is live.
    assert_eq!(read(&run, "rate", 71).unwrap(), 70);
    assert_eq!(read(&run, "rate", 72).unwrap(), 72);
    steps(&run, 8..=9);
    assert_eq!(read(&run, "rate", 80).unwrap(), 80);
    assert!(run.goes_on());
    save(&mut run, 9);
    run.close().unwrap();
    let expected = Resumed {
        attempt: 2,
        recorded_by: 1,
        from_step: 4,
        to: 7,
        states: vec![7],
        divergences: Vec::new(),
    };
    assert_eq!(came(&repository, 2), [expected]);
    assert_eq!([Kind::RESUMED, Kind::DIVERGED].map(|kind| count(&repository, 2, kind)), [1, 0]);
}

#[test]
fn a_state_that_came_to_something_else_is_found_where_both_have_digested_it() {
    let (_folder, repository) = killed();
    let mut run = start(&repository, Resume::Replay);
    restore(&mut run);
    steps(&run, 5..=6);
    read(&run, "rate", 61).unwrap();
    run.event("evaluation", Value::from(0.5_f64)).unwrap();
    steps(&run, 7..=7);
    let mut data = bytes(7, LENGTH);
    data[8] ^= 1;
    digest(&mut run, &data);
    run.close().unwrap();
    let found = came(&repository, 2).remove(0).divergences;
    assert_eq!((found[0].difference, found[0].step), (Difference::State, 7), "{found:?}");
    assert_eq!(found[0].change.unwrap().word, 1);
}

/// One thing that the steps after the checkpoint do otherwise, and what is said of it.
type Fault = (fn(&Run) -> Result<()>, Difference, u64, &'static str);

const FAULTS: [Fault; 6] = [
    (other_loss, Difference::Step, 6, "loss"),
    (left_out, Difference::Missing, 5, "the step's event"),
    (no_read, Difference::Kind, 7, "an event"),
    (no_event, Difference::Missing, 7, "an event"),
    (other_event, Difference::Data, 7, "an event"),
    (more_events, Difference::Extra, 6, "an event"),
];

fn other_loss(run: &Run) -> Result<()> {
    steps(run, 5..=5);
    run.step(StepRecord::new(6).loss(6.5_f32));
    Ok(())
}

fn left_out(run: &Run) -> Result<()> {
    steps(run, 6..=6);
    Ok(())
}

fn no_read(run: &Run) -> Result<()> {
    steps(run, 5..=6);
    run.event("evaluation", Value::from(0.5_f64))?;
    steps(run, 7..=7);
    Ok(())
}

fn no_event(run: &Run) -> Result<()> {
    steps(run, 5..=6);
    read(run, "rate", 60)?;
    steps(run, 7..=7);
    Ok(())
}

fn other_event(run: &Run) -> Result<()> {
    steps(run, 5..=6);
    read(run, "rate", 60)?;
    run.event("evaluation", Value::from(0.25_f64))?;
    steps(run, 7..=7);
    Ok(())
}

fn more_events(run: &Run) -> Result<()> {
    steps(run, 5..=5);
    run.event("evaluation", Value::from(0.5_f64))?;
    steps(run, 6..=6);
    Ok(())
}

#[test]
fn the_first_difference_ends_it_and_nothing_is_saved() {
    for (fault, difference, step, what) in FAULTS {
        let (_folder, repository) = killed();
        let mut run = start(&repository, Resume::Replay);
        restore(&mut run);
        fault(&run).unwrap();
        assert!(!run.goes_on(), "{what}");
        let error = run.check_resume().unwrap_err();
        let same = |other: &Error| other.to_string() == error.to_string();
        assert_eq!(error.kind(), ErrorKind::Diverged);
        assert!(error.to_string().contains(&format!("step {step}")), "{error}");
        let data = bytes(9, LENGTH);
        assert!(same(&run.save(9, Mode::Sync, |c| capture_bytes(c, &data)).unwrap_err()));
        let owned = data.clone();
        let overlapped = run.save_overlapped(9, move |c| {
            let mut state = c.component("state", "test", lastgood::state::Durability::Durable)?;
            state.value("length", &owned.len())
        });
        assert!(same(&overlapped.unwrap_err()));
        assert!(run.take_failures().iter().any(same));
        drop(run);
        let ledger = repository.existing(&run_name()).unwrap();
        assert_eq!(ledger.history().checkpoints().len(), 1);
        let found = came(&repository, 2).remove(0);
        let first = &found.divergences[0];
        assert_eq!((first.difference, first.step, &*first.what), (difference, step, what));
        // It does not become what the next one must come to.
        let mut again = start(&repository, Resume::Replay);
        restore(&mut again);
        assert_eq!(again.todo(), Some((1, 4, 7)), "{what}");
        kill(again);
        // Whoever goes on without the record may.
        let mut live = start(&repository, Resume::Live);
        assert_eq!((restore(&mut live).0, live.todo()), (4, None));
        fault(&live).unwrap();
        save(&mut live, 9);
        live.close().unwrap();
    }
}

#[test]
fn a_close_tells_what_nobody_asked_for() {
    let (_folder, repository) = killed();
    let mut run = start(&repository, Resume::Replay);
    restore(&mut run);
    other_loss(&run).unwrap();
    assert_eq!(run.close().unwrap_err().kind(), ErrorKind::Diverged);
}

#[test]
fn a_read_that_is_not_recorded_is_a_difference() {
    let (_folder, repository) = killed();
    let mut run = start(&repository, Resume::Replay);
    restore(&mut run);
    // Before the first step a program may read what it likes; nobody knows what it read at its first start.
    assert_eq!(read(&run, "something", 3).unwrap(), 3);
    steps(&run, 5..=5);
    let error = read(&run, "something", 3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Diverged);
    assert!(error.to_string().contains("\"something\""), "{error}");
    assert!(!run.goes_on());
}

#[test]
fn a_run_without_a_checkpoint_does_again_what_it_did_from_the_beginning() {
    let (_folder, repository) = in_folder();
    let run = start(&repository, Resume::Live);
    read(&run, "seed", 11).unwrap();
    steps(&run, 1..=3);
    kill(run);
    let mut run = start(&repository, Resume::Replay);
    assert_eq!(restore(&mut run).0, 0);
    assert_eq!((read(&run, "seed", 12).unwrap(), run.todo()), (11, Some((1, 0, 3))));
    steps(&run, 1..=3);
    run.close().unwrap();
    assert_eq!(came(&repository, 2)[0].to, 3);
}

#[test]
fn what_was_done_again_but_not_to_the_end_is_followed_to_the_end() {
    let (_folder, repository) = killed();
    let mut second = start(&repository, Resume::Replay);
    restore(&mut second);
    steps(&second, 5..=5);
    kill(second);
    // The second attempt did the same as the first one, which came further.
    let mut third = start(&repository, Resume::Replay);
    restore(&mut third);
    assert_eq!(third.todo(), Some((1, 4, 7)));
    kill(third);
    // One that did something else counts more than what it overtook.
    let mut fourth = start(&repository, Resume::Live);
    restore(&mut fourth);
    fourth.step(StepRecord::new(5).loss(0.5_f32));
    kill(fourth);
    let mut fifth = start(&repository, Resume::Replay);
    restore(&mut fifth);
    assert_eq!(fifth.todo(), Some((4, 4, 5)));
    fifth.step(StepRecord::new(5).loss(0.5_f32));
    fifth.close().unwrap();
    assert_eq!(came(&repository, 5)[0].recorded_by, 4);
}

#[test]
fn where_an_attempt_went_back_only_what_it_did_then_counts() {
    let (_folder, repository) = in_folder();
    let mut run = start(&repository, Resume::Live);
    steps(&run, 1..=4);
    save(&mut run, 4);
    run.step(StepRecord::new(5).loss(f32::NAN));
    let mut data = vec![0; LENGTH];
    let mut targets = lastgood::state::Targets::new(World::ALONE);
    target_bytes(&mut targets, &mut data).unwrap();
    run.restore_at(&Selector::Step(4), targets).unwrap();
    steps(&run, 5..=6);
    kill(run);
    let mut again = start(&repository, Resume::Replay);
    restore(&mut again);
    steps(&again, 5..=6);
    assert!(again.goes_on());
    again.close().unwrap();
    assert_eq!(came(&repository, 2)[0].to, 6);
}

#[test]
fn from_an_older_checkpoint_what_led_to_the_bad_one_is_done_again() {
    let (_folder, repository) = in_folder();
    let mut run = start(&repository, Resume::Live);
    steps(&run, 1..=2);
    save(&mut run, 2);
    steps(&run, 3..=4);
    save(&mut run, 4);
    steps(&run, 5..=5);
    let bad = run.refresh().unwrap().checkpoints()[1].id;
    run.mark(&bad, Standing::Bad, "a test").unwrap();
    kill(run);
    let mut again = start(&repository, Resume::Replay);
    assert_eq!((restore(&mut again).0, again.todo()), (2, Some((1, 2, 5))));
    steps(&again, 3..=5);
    again.close().unwrap();
}

#[test]
fn logical_ranks_are_followed_whoever_does_them() {
    let (_folder, repository) = in_folder();
    let run = try_start(&repository, Resume::Live, 0..2, true).unwrap();
    run.step(record(1).of_rank(0, "data", 10_u64).of_rank(1, "data", 11_u64));
    kill(run);
    let again = try_start(&repository, Resume::Replay, 1..2, true).unwrap();
    // A process of other ranks stood in lane 0: what it read is not known to belong to this one.
    assert_eq!(read(&again, "rate", 5).unwrap(), 5);
    again.step(record(1).of_rank(1, "data", 12_u64));
    let error = again.check_resume().unwrap_err().to_string();
    assert!(error.contains("rank 1: data: recorded 11, done again 12"), "{error}");
}

#[test]
fn a_damaged_record_is_an_error_and_no_free_pass() {
    let (folder, repository) = killed();
    // It seals what the killed one has left.
    kill(start(&repository, Resume::Replay));
    let mut segments = walk(&folder.path().join("runs"));
    segments.retain(|path| path.to_string_lossy().contains("/journal/"));
    assert!(segments.len() > 2, "{segments:?}");
    for path in &segments {
        let mut stored = fs::read(path).unwrap();
        let at = stored.len() / 2;
        stored[at] ^= 0x10;
        fs::remove_file(path).unwrap();
        fs::write(path, stored).unwrap();
    }
    let error = try_start(&repository, Resume::Replay, 0..1, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("what is to be done again is not read"), "{error}");
    assert!(error.to_string().contains("lastgood run"), "{error}");
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

#[test]
fn without_a_journal_it_is_refused() {
    let (_folder, repository) = in_folder();
    let options = RunOptions { resume: Resume::Replay, ..options(World::ALONE, "a") };
    let error = Run::open(&repository, &run_name(), options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!("Replay".parse::<Resume>().unwrap_err().to_string().contains("`replay`"));
    assert_eq!("replay".parse::<Resume>().unwrap().to_string(), "replay");
}
