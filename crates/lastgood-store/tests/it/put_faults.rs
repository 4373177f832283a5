//! Every operation of a put to a folder fails, in every way: either the put says so, or it is durable.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lastgood_store::{ErrorKind, LocalStore, Put, Result, Store};
use rustix::io::Errno;

use crate::clock::block_on;
use crate::disk::{Done, Moment, Op, Watched, unsynced};

const KEY: &str = "runs/a/object";
const BYTES: &str = "these bytes are worth every sync of theirs";

/// Errors of the operating system, what they are to the caller, and a word that the remedy must have.
const ERRORS: &[(Errno, ErrorKind, &str)] = &[
    (Errno::IO, ErrorKind::Unavailable, ""),
    (Errno::NOSPC, ErrorKind::Overloaded, "free some space"),
    (Errno::DQUOT, ErrorKind::Overloaded, "quota"),
    (Errno::ACCESS, ErrorKind::Denied, "right"),
    (Errno::ROFS, ErrorKind::Denied, "for writing"),
    (Errno::MFILE, ErrorKind::Overloaded, "ulimit"),
    (Errno::NAMETOOLONG, ErrorKind::Invalid, "shorter"),
    (Errno::INTR, ErrorKind::Unavailable, ""),
];

/// What is there before the put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    NoRoot,
    Root,
    Folders,
    OtherObjectsOfThisProcess,
}

struct Bench {
    folder: tempfile::TempDir,
    disk: Arc<Watched>,
    store: LocalStore,
}

fn bench(before: Before) -> Bench {
    // What is durable is told by the log, so that the syncs may be as quick as those of memory.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let root = folder.path().join("new/root");
    match before {
        Before::NoRoot => {}
        Before::Root => fs::create_dir_all(&root).unwrap(),
        Before::Folders | Before::OtherObjectsOfThisProcess => {
            fs::create_dir_all(root.join("runs/a")).unwrap();
            fs::create_dir_all(root.join(".staging")).unwrap();
        }
    }
    let disk = Arc::new(Watched::default());
    let store = LocalStore::open_on(root, Arc::<Watched>::clone(&disk)).unwrap();
    if before == Before::OtherObjectsOfThisProcess {
        block_on(store.put_if_absent("runs/a/other", "x".into())).unwrap();
    }
    disk.forget();
    Bench { folder, disk, store }
}

fn put(store: &LocalStore) -> Result<Put> {
    block_on(store.put_if_absent(KEY, BYTES.into()))
}

/// The object as another process finds it.
fn look(root: &Path) -> Option<String> {
    let store = LocalStore::open(root).unwrap();
    let size = block_on(store.size(KEY)).unwrap()?;
    let bytes = block_on(store.get(KEY, 1000)).unwrap();
    assert_eq!(size, bytes.len() as u64);
    Some(String::from_utf8(bytes.to_vec()).unwrap())
}

/// A file whose sync failed is never synced again nor given a name: the kernel may have dropped its bytes.
fn check_failed_syncs(log: &[Done], case: &str) {
    for (i, done) in log.iter().enumerate() {
        let Done { op: Op::SyncFile(path), succeeded: false, .. } = done else { continue };
        for later in &log[i + 1..] {
            let again = match &later.op {
                Op::SyncFile(other) | Op::Link(other, _) => other == path,
                _ => false,
            };
            assert!(!again, "{case}: {later:?} after {done:?}");
        }
    }
}

#[test]
fn every_failing_operation_is_told_or_harmless() {
    let mut cases = 0;
    for before in [Before::NoRoot, Before::Root, Before::Folders, Before::OtherObjectsOfThisProcess]
    {
        let Bench { folder: _folder, disk, store } = bench(before);
        assert_eq!(put(&store).unwrap(), Put::Created);
        assert!(unsynced(&disk.log()).is_empty(), "{:?}", unsynced(&disk.log()));
        for (at, done) in disk.log().into_iter().enumerate() {
            for (errno, kind, remedy) in ERRORS {
                for moment in [Moment::Before, Moment::Midway, Moment::After] {
                    // Nothing else is done by halves.
                    if moment == Moment::Midway && !matches!(done.op, Op::Create(_)) {
                        continue;
                    }
                    let case = format!("{before:?}, {moment:?} {:?}: {errno:?}", done.op);
                    check(before, at, (*errno, *kind, remedy), moment, &case);
                    cases += 1;
                }
            }
        }
    }
    assert!(cases > 800, "{cases}");
}

fn check(
    before: Before,
    at: usize,
    (errno, kind, remedy): (Errno, ErrorKind, &str),
    moment: Moment,
    case: &str,
) {
    let Bench { folder: _folder, disk, store } = bench(before);
    disk.fail(at, errno.raw_os_error(), moment);
    let root = store.root().to_owned();
    let told = put(&store);
    let failed = disk.log()[at].op.clone();
    match &told {
        Ok(put) => {
            assert_eq!(*put, Put::Created, "{case}");
            let mut lost = unsynced(&disk.log());
            // The folder above the root belongs to somebody else, and its sync may be refused.
            if failed == Op::SyncFolder(root.parent().unwrap().into())
                || failed == Op::SyncFolder(root.parent().unwrap().parent().unwrap().into())
            {
                lost.retain(|path| path.starts_with(&root) && *path != root);
            }
            // A staging file that could not be removed is a leaving.
            lost.retain(|path| !path.starts_with(root.join(".staging")));
            assert!(lost.is_empty(), "{case}: acknowledged, and not durable: {lost:?}");
        }
        Err(error) => {
            assert_eq!(error.kind(), kind, "{case}: {error}");
            assert_eq!(error.object(), Some(KEY), "{case}");
            assert!(error.to_string().contains(remedy), "{case}: {error}");
        }
    }
    check_failed_syncs(&disk.log(), case);
    let seen = look(&root);
    assert!(seen.is_none() || seen.as_deref() == Some(BYTES), "{case}: {seen:?} is there");
    assert!(seen.is_some() || told.is_err(), "{case}: acknowledged, and not there");

    let left_over = matches!(failed, Op::Unlink(_)) && moment == Moment::Before;
    disk.heal();
    let again = put(&store).unwrap_or_else(|error| panic!("{case}: again: {error}"));
    assert_eq!(again == Put::Exists, seen.is_some(), "{case}");
    assert_eq!(look(&root).as_deref(), Some(BYTES), "{case}");
    check_failed_syncs(&disk.log(), case);
    let name = root.join(KEY);
    assert!(!unsynced(&disk.log()).contains(&name), "{case}: the name is not durable");
    let staging = fs::read_dir(root.join(".staging")).map_or(0, Iterator::count);
    assert!(staging <= usize::from(left_over), "{case}: {staging} staging files are left");
    let listed = block_on(store.list("runs/", None)).unwrap();
    let others = usize::from(before == Before::OtherObjectsOfThisProcess);
    assert_eq!(listed.len(), 1 + others, "{case}: {listed:?}");
}

/// Somebody removes the folder, or the whole store, in the middle of a put.
#[test]
fn folders_that_vanish_are_made_again_or_told() {
    for whole in [false, true] {
        for once in [true, false] {
            let operations = {
                let Bench { folder: _folder, disk, store } =
                    bench(Before::OtherObjectsOfThisProcess);
                put(&store).unwrap();
                disk.log().len()
            };
            for at in 0..operations {
                let case = format!("operation {at}, whole {whole}, once {once}");
                let Bench { folder: _folder, disk, store } =
                    bench(Before::OtherObjectsOfThisProcess);
                let root = store.root().to_owned();
                let victim = if whole { root.clone() } else { root.join("runs") };
                let left = AtomicBool::new(true);
                disk.interfere(at, move |_| {
                    if !once || left.swap(false, Ordering::Relaxed) {
                        let _ = fs::remove_dir_all(&victim);
                    }
                    Ok(())
                });
                let told = put(&store);
                match &told {
                    Ok(Put::Created) => {}
                    Err(error) if error.kind() == ErrorKind::Unavailable => {
                        assert!(error.remedy().is_some(), "{case}: {error}");
                    }
                    told => panic!("{case}: {told:?}"),
                }
                disk.heal();
                assert!(put(&store).is_ok(), "{case}");
                assert_eq!(look(&root).as_deref(), Some(BYTES), "{case}");
                let name = root.join(KEY);
                let lost = unsynced(&disk.log());
                assert!(!lost.iter().any(|path| name.starts_with(path)), "{case}: {lost:?}");
            }
        }
    }
}

/// Another host takes the staging file for a leaving.
#[test]
fn a_staging_file_that_vanishes_is_written_again() {
    for step in ["sync", "link"] {
        let Bench { folder: _folder, disk, store } = bench(Before::Folders);
        let stolen = AtomicBool::new(false);
        disk.interfere(0, move |op| {
            let path = match op {
                Op::SyncFile(path) if step == "sync" => path,
                Op::Link(path, _) if step == "link" => path,
                _ => return Ok(()),
            };
            if !stolen.swap(true, Ordering::Relaxed) {
                fs::remove_file(path)?;
            }
            Ok(())
        });
        assert_eq!(put(&store).unwrap(), Put::Created, "{step}");
        assert_eq!(look(store.root()).as_deref(), Some(BYTES));
        assert!(unsynced(&disk.log()).is_empty());
    }
}

/// A staging file of this name belongs to somebody else: the object does not exist, and it stays.
#[test]
fn a_taken_staging_name_is_not_an_object() {
    let Bench { folder: _folder, disk, store } = bench(Before::Folders);
    disk.interfere(0, |op| match op {
        Op::Create(path) => {
            fs::write(path, "somebody else's")?;
            Ok(())
        }
        _ => Ok(()),
    });
    let error = put(&store).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(look(store.root()), None);
    let unlinked = disk.log().into_iter().any(|done| matches!(done.op, Op::Unlink(_)));
    assert!(!unlinked, "somebody else's staging file was removed");
    disk.heal();
    assert_eq!(put(&store).unwrap(), Put::Created);
}

#[test]
fn file_systems_without_hard_links_are_refused() {
    for (errno, word) in [
        (Errno::PERM, "hard links"),
        (Errno::OPNOTSUPP, "hard links"),
        (Errno::NOSYS, "hard links"),
        (Errno::XDEV, "one file system"),
    ] {
        let Bench { folder: _folder, disk, store } = bench(Before::Folders);
        disk.interfere(0, move |op| match op {
            Op::Link(..) => Err(errno.into()),
            _ => Ok(()),
        });
        let error = put(&store).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.remedy().is_some());
        assert_eq!(look(store.root()), None);
    }
}

/// A folder above the store that may not be opened is no obstacle, as long as it was there before.
#[test]
fn folders_above_may_be_closed() {
    for before in [Before::NoRoot, Before::Root] {
        let Bench { folder: _folder, disk, store } = bench(before);
        let root = store.root().to_owned();
        let above = root.parent().unwrap().parent().unwrap().to_owned();
        disk.interfere(0, move |op| match op {
            Op::SyncFolder(folder) if above.starts_with(folder) => Err(Errno::ACCESS.into()),
            _ => Ok(()),
        });
        assert_eq!(put(&store).unwrap(), Put::Created, "{before:?}");
        assert_eq!(look(&root).as_deref(), Some(BYTES));
    }
}

/// Folders are synced once by a process, and a put into a known folder costs two syncs.
#[test]
fn nothing_is_synced_twice() {
    let Bench { folder: _folder, disk, store } = bench(Before::OtherObjectsOfThisProcess);
    put(&store).unwrap();
    let syncs = disk
        .log()
        .into_iter()
        .filter(|done| matches!(done.op, Op::SyncFile(_) | Op::SyncFolder(_)));
    assert_eq!(syncs.count(), 2, "{:#?}", disk.log());
}

/// What another process has made, and perhaps not synced, is durable before anybody is told of it.
#[test]
fn what_exists_is_made_durable_or_told() {
    let Bench { folder: _folder, disk, store } = bench(Before::Folders);
    let root = store.root().to_owned();
    let folder_of_key = root.join(KEY).parent().unwrap().to_owned();
    let other = LocalStore::open(&root).unwrap();
    block_on(other.put_if_absent(KEY, "another's".into())).unwrap();
    let sync = Op::SyncFolder(folder_of_key.clone());

    assert_eq!(put(&store).unwrap(), Put::Exists);
    assert!(disk.log().iter().any(|done| done.op == sync && done.succeeded));
    disk.forget();
    block_on(store.settle(KEY)).unwrap();
    assert!(disk.log().iter().any(|done| done.op == sync && done.succeeded));

    disk.interfere(0, move |op| match op {
        Op::SyncFolder(folder) if *folder == folder_of_key => Err(Errno::IO.into()),
        _ => Ok(()),
    });
    assert_eq!(put(&store).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(block_on(store.settle(KEY)).unwrap_err().kind(), ErrorKind::Unavailable);
    disk.heal();
    assert_eq!(look(&root).as_deref(), Some("another's"));
}
