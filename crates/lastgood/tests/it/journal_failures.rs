//! What a journal says of failures: of saves, of its own, and of what earlier attempts have left.
#![expect(clippy::disallowed_methods, reason = "these tests damage the files of a store by hand")]

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use bytes::Bytes;
use lastgood::journal::recover::{Fate, Notice, Recovered, recover};
use lastgood::journal::{Frame, JournalOptions, Kind, Lane, Value};
use lastgood::save::{Mode, SaveOptions};
use lastgood::state::{Capture, Durability, Source, World};
use lastgood::{Dtype, Error, ErrorKind, Repository, Result, Run, RunOptions};
use lastgood_format::journal::tail::Owner;
use lastgood_store::disk::DiskEntry;
use lastgood_store::{Disk, LocalStore, RealDisk};

use crate::fixture::{bytes, capture_bytes, in_folder, on, options, quick, run_name, save_bytes};
use crate::journal::{
    audited, journaled, kill, kinds, open_segments, read, save, steps, told, wait_for_recovery,
};
use crate::tap::{Act, Op, Tap};

fn text<'a>(frame: &'a Value, name: &str) -> &'a str {
    frame.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The events of a kind, of all attempts, as their place and what they say.
fn said(repository: &Repository, kind: Kind) -> Vec<(String, Value)> {
    let frames = read(repository, true, kinds(&[kind]));
    let value = |frame: &Frame| frame.value().unwrap();
    told(&frames).into_iter().zip(frames.iter().map(value)).collect()
}

/// Of a run of five steps that was killed: what it left, after `damage`; what the next one is told, by a notice, by
/// failures and by an event; and the steps that are sealed then.
fn recovered(damage: impl Fn(&mut Vec<u8>)) -> (Vec<u8>, Notice, Vec<Error>, Value, Vec<String>) {
    let (folder, repository) = in_folder();
    let first = journaled(&repository, World::ALONE, "a");
    steps(&first, 1..=5);
    kill(first);
    let open = open_segments(folder.path());
    let mut left = fs::read(&open[0]).unwrap();
    damage(&mut left);
    fs::write(&open[0], &left).unwrap();
    let mut second = journaled(&repository, World::ALONE, "b");
    let notices = wait_for_recovery(&second).notices;
    let [notice] = &notices[..] else { panic!("{notices:?}") };
    let name = open[0].file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!((notice.attempt, &notice.file), (1, &name));
    let failures = second.take_failures();
    second.close().unwrap();
    let events = said(&repository, Kind::TAIL_CUT);
    let [(place, value)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(place, "2 0 0 tail.cut");
    assert_eq!(value.get("attempt"), Some(&Value::Uint(1)));
    assert_eq!(value.get("bytes"), Some(&Value::Uint(notice.bytes)));
    assert_eq!((text(value, "file"), text(value, "cause")), (&*name, &*notice.cause));
    // A lane begins with what its attempt is, however fast the recovery was.
    let reader = repository.journal(&run_name()).unwrap();
    let mut lane = reader.lane(2, Lane::of_rank(0).unwrap());
    let begin = repository.block_on(async {
        Ok([lane.next().await?, lane.next().await?].map(|frame| frame.unwrap().kind))
    });
    assert_eq!(begin.unwrap(), [Kind::ATTEMPT_BEGUN, Kind::ENVIRONMENT]);
    assert!(audited(&repository).findings.is_empty());
    // Nothing is told twice.
    let mut third = journaled(&repository, World::ALONE, "c");
    assert_eq!(wait_for_recovery(&third).notices, []);
    assert!(third.take_failures().is_empty());
    third.close().unwrap();
    let kept = open_segments(folder.path());
    if let Some(aside) = kept.first() {
        assert_eq!(fs::read(aside).unwrap(), left, "what was set aside is another file");
        assert_eq!(text(value, "aside"), aside.to_str().unwrap());
    }
    let sealed = told(&read(&repository, true, kinds(&[Kind::STEP])));
    (left, notice.clone(), failures, value.clone(), sealed)
}

#[test]
fn a_torn_end_is_an_event_and_no_failure() {
    let (_, notice, failures, value, sealed) = recovered(|left| left.truncate(left.len() - 30));
    assert_eq!(notice.fate, Fate::Torn);
    assert!((1..200).contains(&notice.bytes), "{notice:?}");
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(value.get("aside"), None);
    assert_eq!(sealed.last().unwrap(), "1 0 4 step");
}

/// Its first frames were never acknowledged.
#[test]
fn a_file_that_was_being_created_is_torn() {
    let (left, notice, failures, value, sealed) = recovered(|left| left.truncate(20));
    assert_eq!((notice.fate, notice.bytes), (Fate::Torn, left.len() as u64));
    assert!(failures.is_empty() && sealed.is_empty(), "{failures:?} {sealed:?}");
    assert_eq!(value.get("aside"), None);
}

#[test]
fn damage_before_whole_events_is_a_failure_and_kept_for_a_person() {
    let middle = |left: &mut Vec<u8>| {
        let step = left.len() - 200;
        left[step] ^= 4;
    };
    let head = |left: &mut Vec<u8>| left[13] ^= 4;
    for (damage, is_head) in [(&middle as &dyn Fn(&mut Vec<u8>), false), (&head, true)] {
        let (left, notice, failures, value, sealed) = recovered(damage);
        let Fate::Damaged { kind: ErrorKind::Corrupt, aside: Some(aside) } = &notice.fate else {
            panic!("{notice:?}")
        };
        let aside = aside.to_str().unwrap();
        assert_eq!(text(&value, "aside"), aside);
        assert_eq!(notice.bytes == left.len() as u64, is_head, "{notice:?}");
        assert_eq!(sealed.is_empty(), is_head, "{sealed:?}");
        let [failure] = &failures[..] else { panic!("{failures:?}") };
        assert_eq!((failure.kind(), failure.object()), (ErrorKind::Corrupt, Some(aside)));
        assert!(failure.message().contains("the journal of attempt 1"), "{failure}");
        assert!(failure.message().contains(&format!("{} bytes", notice.bytes)), "{failure}");
    }
}

/// A disk on which another process, which recovers at the same time, does everything first.
#[derive(Debug)]
struct Raced;

impl Disk for Raced {
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        RealDisk.create(path, parts)
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        RealDisk.append(path, bytes)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_file(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.link(from, to)?;
        RealDisk.link(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        RealDisk.unlink(path)?;
        RealDisk.unlink(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_folder(path)
    }

    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        RealDisk.read(path, offset, target)
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        RealDisk.size(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        RealDisk.list(path)
    }
}

#[test]
fn of_several_processes_that_recover_one_tells() {
    for (cut, is_damaged, crashed) in [(30, false, false), (0, true, false), (0, true, true)] {
        let (folder, repository) = in_folder();
        let first = journaled(&repository, World::ALONE, "a");
        steps(&first, 1..=5);
        kill(first);
        let [path] = &open_segments(folder.path())[..] else { panic!("one file") };
        let mut left = fs::read(path).unwrap();
        left.truncate(left.len() - cut);
        if is_damaged {
            let step = left.len() - 200;
            left[step] ^= 4;
        }
        fs::write(path, &left).unwrap();
        if crashed {
            // One was cut off here, before it told anybody.
            fs::hard_link(path, path.with_extension("aside")).unwrap();
        }
        let owner = Owner { repository: repository.id().to_owned(), run: run_name(), attempt: 2 };
        let disk: &dyn Disk = if crashed { &RealDisk } else { &Raced };
        let mut found = Recovered::default();
        let store = repository.store().as_ref();
        let done = recover(disk, path.parent().unwrap(), store, &owner, &mut found);
        repository.block_on(done).unwrap();
        assert_eq!(found.notices.len(), usize::from(crashed), "{found:?}");
        assert!(!path.exists(), "{}", path.display());
        assert_eq!(path.with_extension("aside").exists(), is_damaged);
    }
}

fn with_journal(journal: JournalOptions, save: SaveOptions) -> RunOptions {
    RunOptions { journal: Some(journal), save, ..options(World::ALONE, "a") }
}

#[test]
fn a_folder_that_cannot_be_listed_is_a_failure() {
    let (folder, repository) = in_folder();
    // No file system has names that are as long.
    let unlistable = folder.path().join("x".repeat(300));
    let journal = JournalOptions { folder: Some(unlistable.clone()), ..JournalOptions::default() };
    let options = with_journal(journal, quick());
    let mut run = Run::open(&repository, &run_name(), options).unwrap();
    let failure = wait_for(|| {
        let mut failures = run.take_failures().into_iter();
        failures.find(|failure| failure.message().contains("cannot list"))
    });
    let object = failure.object().unwrap().to_owned();
    assert!(object.starts_with(unlistable.to_str().unwrap()), "{object}");
    assert!(failure.message().contains("is not recovered yet"), "{failure}");
    let _ = run.close();
    let events = said(&repository, Kind::FAULT);
    let [(place, value)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(place, "1 0 0 fault");
    assert_eq!((text(value, "what"), text(value, "object")), ("recover", &*object));
    assert!(text(value, "cause").contains("cannot list"), "{value}");
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "it never came");
        sleep(Duration::from_millis(5));
    }
}

#[derive(Debug)]
struct Unreadable;

impl Source for Unreadable {
    fn read(&self, _: usize, _: &mut [u8]) -> Result<()> {
        Err(Error::new(ErrorKind::Denied, "nobody may read it").with_object("m/w"))
    }
}

fn tapped(folder: &Path) -> (Tap, Repository) {
    let tap = Tap::new(LocalStore::open(folder).unwrap());
    (tap.clone(), on(tap))
}

#[test]
fn each_save_that_fails_is_an_event() {
    let folder = tempfile::tempdir().unwrap();
    let (tap, repository) = tapped(folder.path());
    let saving = SaveOptions { arena_bytes_max: 1 << 20, ..quick() };
    let options = with_journal(JournalOptions::default(), saving);
    let mut run = Run::open(&repository, &run_name(), options).unwrap();
    save(&mut run, 1);
    // The store refuses what is to be written.
    tap.play(|call| match call.op == Op::Put && call.key.ends_with(".pack") {
        true => Act::Fail(ErrorKind::Denied),
        false => Act::Pass,
    });
    let refused = save_bytes(&mut run, 2, &bytes(2, 1000)).unwrap_err();
    tap.pass();
    // The state cannot be copied.
    let source = |capture: &mut Capture<'_>| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.source("w", Dtype::U8, &[1000], Unreadable)
    };
    run.save(3, Mode::Async, source).unwrap_err();
    // It finds no room.
    let large = bytes(4, 2 << 20);
    run.save(4, Mode::Async, |capture| capture_bytes(capture, &large)).unwrap_err();
    save(&mut run, 5);
    assert_eq!(run.take_failures().len(), 1);
    run.close().unwrap();
    let events = said(&repository, Kind::FAULT);
    let found: Vec<_> = events
        .iter()
        .map(|(_, value)| {
            let step = value.get("step").and_then(Value::as_u64).unwrap();
            let has_object = value.get("object").is_some();
            (text(value, "what"), step, text(value, "error"), has_object)
        })
        .collect();
    let expected = [
        ("save", 2, "denied", true),
        ("save", 3, "denied", true),
        ("save", 4, "overloaded", false),
    ];
    assert_eq!(found, expected);
    assert_eq!(text(&events[0].1, "cause"), refused.to_string());
    assert_eq!(Some(text(&events[0].1, "object")), refused.object());
    assert!(audited(&repository).findings.is_empty());
}

#[test]
fn a_journal_that_cannot_be_sealed_says_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let (tap, repository) = tapped(folder.path());
    let journal = JournalOptions { seal_after: Duration::ZERO, ..JournalOptions::default() };
    let options = with_journal(journal, quick());
    let mut run = Run::open(&repository, &run_name(), options).unwrap();
    let is_segment = |key: &str| key.contains("/journal/");
    let refuse = move |kind| {
        move |call: &crate::tap::Call| match call.op == Op::Put && is_segment(&call.key) {
            true => {
                // At the end, the thread that syncs is through before.
                sleep(Duration::from_millis(100));
                Act::Fail(kind)
            }
            false => Act::Pass,
        }
    };
    let tries = |count: usize| {
        let puts = || tap.calls().iter().filter(|call| is_segment(&call.key)).count();
        wait_for(|| (puts() > count).then_some(()));
    };
    steps(&run, 1..=1);
    for kind in [ErrorKind::Denied, ErrorKind::Overloaded, ErrorKind::Denied] {
        tap.play(refuse(kind));
        tries(2);
    }
    tap.pass();
    wait_for(|| open_segments(folder.path()).is_empty().then_some(()));
    assert!(!run.take_failures().is_empty());
    // Also at its end: the event waits on the disk, with the others.
    tap.play(refuse(ErrorKind::Denied));
    steps(&run, 2..=2);
    assert_eq!(run.close().unwrap_err().kind(), ErrorKind::Denied);
    tap.pass();
    let second = journaled(&repository, World::ALONE, "b");
    wait_for_recovery(&second);
    second.close().unwrap();
    let events = said(&repository, Kind::FAULT);
    let places: Vec<_> = events.iter().map(|(place, _)| place.as_str()).collect();
    assert_eq!(places, ["1 0 1 fault", "1 0 1 fault", "1 0 1 fault", "1 0 2 fault"]);
    let errors: Vec<_> = events.iter().map(|(_, value)| text(value, "error")).collect();
    assert_eq!(errors, ["denied", "overloaded", "denied", "denied"]);
    assert!(events.iter().all(|(_, value)| text(value, "what") == "seal"), "{events:?}");
    assert!(audited(&repository).findings.is_empty());
}

/// A newer attempt has sealed what the older one had left open, which went on: its segments conflict, and what it
/// is told is why.
#[test]
fn a_save_of_a_process_whose_journal_was_taken_over_is_fenced() {
    let (_folder, repository) = in_folder();
    let mut first = journaled(&repository, World::ALONE, "a");
    steps(&first, 1..=2);
    let second = journaled(&repository, World::ALONE, "b");
    assert!(wait_for_recovery(&second).frames > 0);
    steps(&first, 3..=3);
    let error = save_bytes(&mut first, 3, &bytes(3, 1000)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert!(error.message().contains("attempt 1 was fenced: attempt 2"), "{error}");
    let _ = first.close();
    second.close().unwrap();
}
