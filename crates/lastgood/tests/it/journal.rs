//! The journal of real runs: what is recorded, what a crash leaves of it, which of it is history, and what an
//! audit finds.
#![expect(clippy::disallowed_methods, reason = "these tests damage the files of a store by hand")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lastgood::journal::audit::{Audit, audit};
use lastgood::journal::history::{everything, parts};
use lastgood::journal::read::Filter;
use lastgood::journal::recover::Recovered;
use lastgood::journal::{Frame, JournalOptions, Kind, Lane, StepRecord, Value};
use lastgood::restore::Selector;
use lastgood::save::Mode;
use lastgood::state::{Targets, World};
use lastgood::{ErrorKind, Repository, Run, RunOptions};

use crate::fixture::{bytes, capture_bytes, in_folder, options, run_name, target_bytes};

const LENGTH: usize = 1000;

pub(crate) fn journaled(repository: &Repository, world: World, incarnation: &str) -> Run {
    let options = RunOptions {
        journal: Some(JournalOptions { wait: true, ..JournalOptions::default() }),
        environment: [("python.version".to_owned(), "3.11".to_owned())].into(),
        ..options(world, incarnation)
    };
    Run::open(repository, &run_name(), options).unwrap()
}

pub(crate) fn steps(run: &Run, steps: impl IntoIterator<Item = u64>) {
    for step in steps {
        run.step(StepRecord::new(step).loss(step as f32));
    }
}

pub(crate) fn save(run: &mut Run, step: u64) {
    let data = bytes(step, LENGTH);
    run.save(step, Mode::Sync, |c| capture_bytes(c, &data)).unwrap();
}

fn restore(run: &mut Run) -> u64 {
    let mut data = vec![0; LENGTH];
    let restored = run.restore(data.as_mut_slice(), |data, targets| target_bytes(targets, data));
    let step = restored.unwrap().map_or(0, |restored| restored.step);
    assert_eq!(data, if step == 0 { vec![0; LENGTH] } else { bytes(step, LENGTH) });
    step
}

/// Ends a run as `kill -9` does: nothing is sealed, nothing is removed.
pub(crate) fn kill(run: Run) {
    std::mem::forget(run);
}

pub(crate) fn read(repository: &Repository, all: bool, filter: Filter) -> Vec<Frame> {
    let ledger = repository.existing(&run_name()).unwrap();
    let reader = repository.journal(&run_name()).unwrap();
    let mut attempts: Vec<u64> = reader.lanes().map(|lane| lane.attempt).collect();
    attempts.dedup();
    let found = repository.block_on(async {
        let parts = if all { everything(attempts) } else { parts(&ledger, &reader, None).await? };
        let mut merged = reader.merged(&parts, filter);
        let mut frames = Vec::new();
        while let Some(frame) = merged.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    });
    found.unwrap()
}

pub(crate) fn kinds(kinds: &[Kind]) -> Filter {
    Filter { kinds: kinds.to_vec(), ..Filter::default() }
}

/// Attempt, lane, step and kind of each frame.
pub(crate) fn told(frames: &[Frame]) -> Vec<String> {
    frames.iter().map(|f| format!("{} {} {} {}", f.attempt, f.lane, f.step, f.kind)).collect()
}

pub(crate) fn audited(repository: &Repository) -> Audit {
    let ledger = repository.existing(&run_name()).unwrap();
    let reader = repository.journal(&run_name()).unwrap();
    repository.block_on(audit(&ledger, &reader)).unwrap()
}

pub(crate) fn open_segments(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join(".journal/test"))
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>());
    let mut found = entries.unwrap_or_default();
    found.sort();
    found
}

pub(crate) fn wait_for_recovery(run: &Run) -> Recovered {
    let begin = Instant::now();
    loop {
        if let Some(recovered) = run.journal().unwrap().recovered() {
            return recovered;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing is recovered");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_a_run_does_is_recorded_in_the_canonical_order() {
    let (folder, repository) = in_folder();
    let mut run = journaled(&repository, World::ALONE, "a");
    assert_eq!(restore(&mut run), 0);
    steps(&run, 1..=3);
    run.event("note", Value::from("half way")).unwrap();
    let rate = run.read_external("rate", Value::from(0.5_f64)).unwrap();
    assert_eq!(rate, Value::F64(0.5));
    save(&mut run, 3);
    steps(&run, 4..=5);
    run.close().unwrap();
    let frames = read(&repository, false, Filter::default());
    let expected = [
        "1 control 0 attempt.begun",
        "1 0 0 attempt.begun",
        "1 0 0 environment",
        "1 0 1 step",
        "1 0 2 step",
        "1 0 3 step",
        "1 0 3 event",
        "1 0 3 external.read",
        "1 0 3 save.captured",
        "1 0 3 state.layout",
        "1 0 3 state.digest",
        "1 0 3 checkpoint.seen",
        "1 0 4 step",
        "1 0 5 step",
    ];
    assert_eq!(told(&frames), expected);
    assert_eq!(frames[3].value().unwrap().get("loss"), Some(&Value::F32(1.0)));
    let environment = frames[2].value().unwrap();
    assert_eq!(environment.get("python.version").and_then(Value::as_str), Some("3.11"));
    assert!(open_segments(folder.path()).is_empty(), "an open segment is left");
    let audit = audited(&repository);
    assert_eq!((audit.frames, audit.cuts, audit.findings.len()), (14, 1, 0), "{audit:?}");
}

#[test]
fn filters_choose_steps_lanes_and_kinds() {
    let (_folder, repository) = in_folder();
    let mut run = journaled(&repository, World::ALONE, "a");
    for step in (10..=100).step_by(10) {
        steps(&run, step - 9..=step);
        save(&mut run, step);
    }
    run.close().unwrap();
    let filter = Filter { steps: Some(42..=44), ..kinds(&[Kind::STEP]) };
    assert_eq!(
        told(&read(&repository, false, filter)),
        ["1 0 42 step", "1 0 43 step", "1 0 44 step"]
    );
    let filter = Filter { lanes: vec![Lane::CONTROL], ..Filter::default() };
    assert_eq!(told(&read(&repository, false, filter)), ["1 control 0 attempt.begun"]);
    // Progress counts what is read and what is gone over alike.
    let reader = repository.journal(&run_name()).unwrap();
    let all: u64 = reader.lanes().map(|lane| lane.bytes).sum();
    for filter in [Filter::default(), Filter { steps: Some(42..=44), ..Filter::default() }] {
        let mut merged = reader.merged(&everything([1]), filter);
        let drained = repository.block_on(async {
            while merged.next().await?.is_some() {}
            Ok(merged.bytes_done())
        });
        assert_eq!(drained.unwrap(), all);
    }
}

#[test]
fn a_killed_run_leaves_its_last_steps_to_the_next_attempt() {
    let (folder, repository) = in_folder();
    let mut first = journaled(&repository, World::ALONE, "a");
    steps(&first, 1..=4);
    save(&mut first, 4);
    steps(&first, 5..=7);
    kill(first);
    assert!(!open_segments(folder.path()).is_empty());
    let mut second = journaled(&repository, World::ALONE, "b");
    assert_eq!(restore(&mut second), 4);
    let recovered = wait_for_recovery(&second);
    assert!(recovered.frames >= 3 && recovered.notices.is_empty(), "{recovered:?}");
    steps(&second, 5..=6);
    second.close().unwrap();
    let step = || kinds(&[Kind::STEP, Kind::RESTORED]);
    let expected = [
        "1 0 1 step",
        "1 0 2 step",
        "1 0 3 step",
        "1 0 4 step",
        "2 control 4 restored",
        "2 0 4 restored",
        "2 0 5 step",
        "2 0 6 step",
    ];
    assert_eq!(told(&read(&repository, false, step())), expected);
    let all = told(&read(&repository, true, step()));
    assert!(all.contains(&"1 0 7 step".to_owned()), "what was overtaken is lost: {all:?}");
    assert!(open_segments(folder.path()).is_empty());
    assert!(audited(&repository).findings.is_empty());
}

#[test]
fn what_a_fenced_attempt_writes_late_is_no_history() {
    let (_folder, repository) = in_folder();
    let mut first = journaled(&repository, World::ALONE, "a");
    steps(&first, 1..=2);
    save(&mut first, 2);
    let mut second = journaled(&repository, World::ALONE, "b");
    assert_eq!(restore(&mut second), 2);
    steps(&second, 3..=4);
    // It does not know that it was fenced.
    steps(&first, 3..=9);
    let _ = first.close();
    second.close().unwrap();
    let step = told(&read(&repository, false, kinds(&[Kind::STEP])));
    assert_eq!(step, ["1 0 1 step", "1 0 2 step", "2 0 3 step", "2 0 4 step"]);
    assert!(audited(&repository).findings.is_empty());
}

#[test]
fn an_attempt_that_goes_back_overtakes_its_own_steps() {
    let (_folder, repository) = in_folder();
    let mut run = journaled(&repository, World::ALONE, "a");
    steps(&run, 1..=2);
    save(&mut run, 2);
    steps(&run, 3..=4);
    save(&mut run, 4);
    steps(&run, 5..=6);
    let mut data = vec![0; LENGTH];
    let mut targets = Targets::new(World::ALONE);
    target_bytes(&mut targets, &mut data).unwrap();
    run.restore_at(&Selector::Step(2), targets).unwrap();
    steps(&run, 3..=3);
    save(&mut run, 3);
    run.close().unwrap();
    let step = told(&read(&repository, false, kinds(&[Kind::STEP, Kind::REWOUND])));
    let expected =
        ["1 0 1 step", "1 0 2 step", "1 control 2 rewound", "1 0 2 rewound", "1 0 3 step"];
    assert_eq!(step, expected);
    assert_eq!(read(&repository, true, kinds(&[Kind::STEP])).len(), 7);
}

#[test]
fn several_ranks_are_merged_by_step_and_rank() {
    let (_folder, repository) = in_folder();
    let worlds = (0..3).map(|rank| World { rank, size: 3 });
    let mut runs: Vec<Run> = worlds.map(|world| journaled(&repository, world, "a")).collect();
    for step in 1..=2 {
        for run in runs.iter().rev() {
            steps(run, step..=step);
        }
    }
    let handles: Vec<_> = runs
        .iter_mut()
        .map(|run| {
            let data = bytes(2, LENGTH);
            let save = |c: &mut lastgood::state::Capture<'_>| {
                let mut part = c.component("m", "t", lastgood::state::Durability::Durable)?;
                part.replicated("w", lastgood::Dtype::U8, &[LENGTH as u64], data.clone())
            };
            run.save(2, Mode::Async, save).unwrap()
        })
        .collect();
    let ids: Vec<_> = handles.into_iter().map(|handle| handle.wait().unwrap()).collect();
    runs.into_iter().for_each(|run| run.close().unwrap());
    let step = told(&read(&repository, false, kinds(&[Kind::STEP])));
    let expected =
        ["1 0 1 step", "1 1 1 step", "1 2 1 step", "1 0 2 step", "1 1 2 step", "1 2 2 step"];
    assert_eq!(step, expected);
    let ledger = repository.existing(&run_name()).unwrap();
    let contents = repository.contents(&ledger, &ids[0]).unwrap();
    let cut = lastgood::journal::history::cut_in(&contents).unwrap();
    let lanes: Vec<String> = cut.lanes.keys().map(|lane| lane.0.to_string()).collect();
    assert_eq!(lanes, ["control", "0", "1", "2"]);
    assert!(contents.metadata().is_empty(), "what ranks tell each other is shown");
    assert!(audited(&repository).findings.is_empty());
}

/// The segments of a run with three saves, by name.
fn segments(folder: &Path) -> Vec<PathBuf> {
    let lane = folder.join("runs/test/journal/1/0");
    let mut found: Vec<_> = fs::read_dir(lane).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

/// Each way to damage a sealed journal is found and named.
#[test]
fn an_audit_names_what_was_done_to_a_sealed_journal() {
    type Damage = fn(&Path, &[PathBuf]);
    let cases: [(&str, Damage, &str); 6] = [
        ("an edited frame", |_, s| flip(&s[1], 300), "checksum"),
        ("an edited header", |_, s| flip(&s[1], 40), "header of a segment"),
        ("a truncated segment", |_, s| truncate(&s[1]), "cut short"),
        ("a missing segment", |_, s| fs::remove_file(&s[1]).unwrap(), "events are missing"),
        ("a missing end", remove_end, "its last segments are missing"),
        ("another run's segment", foreign, "another"),
    ];
    for (name, damage, expected) in cases {
        let (folder, repository) = in_folder();
        let mut run = journaled(&repository, World::ALONE, "a");
        for step in [3, 6, 9] {
            steps(&run, step - 2..=step);
            save(&mut run, step);
        }
        run.close().unwrap();
        assert!(audited(&repository).findings.is_empty(), "before the damage");
        damage(folder.path(), &segments(folder.path()));
        let findings = audited(&repository).findings;
        assert!(!findings.is_empty(), "{name}: not found");
        let text = findings[0].to_string();
        assert!(text.contains(expected), "{name}: {text}");
        assert_eq!(findings[0].kind(), ErrorKind::Corrupt, "{name}");
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
}

fn remove_end(_: &Path, segments: &[PathBuf]) {
    segments[1..].iter().for_each(|path| fs::remove_file(path).unwrap());
}

/// The first segment of a run that did the same, in another repository.
fn foreign(_: &Path, segments: &[PathBuf]) {
    let (folder, repository) = in_folder();
    let mut run = journaled(&repository, World::ALONE, "a");
    steps(&run, 1..=3);
    save(&mut run, 3);
    run.close().unwrap();
    fs::copy(&self::segments(folder.path())[0], &segments[0]).unwrap();
}
