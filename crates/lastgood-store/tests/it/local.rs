//! What a local folder may hold beside objects, and what is read of it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lastgood_store::{ErrorKind, LocalStore, MemoryStore, Put, Result, Store};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;

use crate::clock::block_on;
use crate::disk::{Op, Watched};

fn put(store: &dyn Store, key: &str) -> Result<Put> {
    block_on(store.put_if_absent(key, key.to_owned().into()))
}

fn keys(store: &dyn Store, prefix: &str, after: Option<&str>) -> Vec<String> {
    let found = block_on(store.list(prefix, after)).unwrap();
    found.into_iter().map(|object| object.key).collect()
}

fn watched(root: &Path) -> (Arc<Watched>, LocalStore) {
    let disk = Arc::new(Watched::default());
    let store = LocalStore::open_on(root, Arc::<Watched>::clone(&disk)).unwrap();
    disk.forget();
    (disk, store)
}

/// The parts of the name of this process's staging files: boot and container, number, token.
fn this_writer() -> [String; 3] {
    let folder = tempfile::tempdir().unwrap();
    let (disk, store) = watched(folder.path());
    put(&store, "x").unwrap();
    let staged = disk.log().into_iter().find_map(|done| match done.op {
        Op::Create(path) => Some(path.file_name().unwrap().to_str().unwrap().to_owned()),
        _ => None,
    });
    let staged = staged.unwrap();
    let parts: Vec<&str> = staged.split('-').collect();
    let [world, pid, token, _] = parts[..] else { panic!("{staged}") };
    assert_eq!(pid, std::process::id().to_string());
    [world, pid, token].map(str::to_owned)
}

#[test]
fn leavings_of_the_dead_and_the_old_are_removed() {
    let [world, pid, token] = this_writer();
    let dead = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id().to_string()
    };
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    for (case, name, age, stays) in [
        ("its own", format!("{world}-{pid}-{token}-9999"), hours(0), true),
        ("a live process's", format!("{world}-1-{token}-0"), hours(0), true),
        ("a dead process's", format!("{world}-{dead}-{token}-0"), hours(0), false),
        ("of a process that had this number", format!("{world}-{pid}-0-0"), hours(0), false),
        // Where this number may live: another container or another host.
        ("of another container", format!("{world}1-{dead}-{token}-0"), hours(0), true),
        ("of another container, and old", format!("{world}1-{dead}-{token}-0"), hours(2), false),
        ("its own, and old", format!("{world}-{pid}-{token}-9999"), hours(2), false),
        ("of nobody knows whom", "what is this".into(), hours(0), true),
        ("of nobody knows whom, and old", "what is this".into(), hours(2), false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".staging").join(name);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, "half of an obj").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(SystemTime::now() - age)
            .unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        assert_eq!(path.exists(), stays, "{case}");
        assert!(keys(&store, "", None).is_empty(), "{case}");
        put(&store, "x").unwrap();
        assert_eq!(path.exists(), stays, "{case}");
    }
}

#[test]
fn a_folder_that_cannot_be_cleaned_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Watched::default());
    disk.interfere(0, |_| Err(Errno::IO.into()));
    let store = LocalStore::open_on(folder.path(), Arc::<Watched>::clone(&disk)).unwrap();
    disk.heal();
    assert_eq!(put(&store, "x").unwrap(), Put::Created);
}

/// Makes something at `path` that is no object.
type Make = fn(&Path);

const ODD: &[(&str, Make)] = &[
    ("link-to-a-file", |path| symlink("object", path).unwrap()),
    ("link-to-nothing", |path| symlink("nothing", path).unwrap()),
    ("link-to-itself", |path| symlink(path, path).unwrap()),
    ("link-to-a-folder", |path| symlink(".", path).unwrap()),
    ("pipe", |path| {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }),
    ("socket", |path| {
        std::os::unix::net::UnixListener::bind(path).unwrap();
    }),
    ("folder", |path| fs::create_dir(path).unwrap()),
];

#[test]
fn what_is_no_file_is_no_object() {
    for (name, make) in ODD {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        let key = format!("a/{name}");
        put(&store, "a/object").unwrap();
        make(&folder.path().join(&key));
        assert_eq!(keys(&store, "", None), ["a/object"], "{name}");
        assert_eq!(block_on(store.size(&key)).unwrap(), None, "{name}");
        let mut target = [0; 3];
        for error in [
            block_on(store.get(&key, 100)).unwrap_err(),
            block_on(store.get_range(&key, 0..3)).unwrap_err(),
            block_on(store.read_into(&key, 0, &mut target)).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{name}: {error}");
        }
        // Neither was an object created, nor does one exist.
        let error = put(&store, &key).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name}: {error}");
        assert!(error.remedy().is_some(), "{name}: {error}");
        block_on(store.settle(&key)).unwrap();
        assert_eq!(block_on(store.get("a/object", 100)).unwrap(), "a/object");
        assert_eq!(fs::read_dir(folder.path().join(".staging")).unwrap().count(), 0);
    }
}

#[test]
fn names_that_are_no_keys_are_not_listed() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    put(&store, "a/object").unwrap();
    for name in ["a b", "a~", ".hidden", "a/.hidden", "a/b c", "é"] {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    fs::write(folder.path().join(OsStr::from_bytes(b"\xff")), "x").unwrap();
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    fs::write(folder.path().join("lost+found/x"), "x").unwrap();
    assert_eq!(keys(&store, "", None), ["a/object"]);
    assert_eq!(keys(&store, "a/", None), ["a/object"]);
}

#[test]
fn no_key_is_the_folder_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    put(&store, "a/b").unwrap();
    for key in ["a", "a/b/c", "a/b/c/d"] {
        let error = put(&store, key).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{key}: {error}");
        assert!(error.remedy().is_some(), "{key}: {error}");
        assert_eq!(block_on(store.size(key)).unwrap(), None);
    }
    assert_eq!(keys(&store, "", None), ["a/b"]);
    assert_eq!(block_on(store.get("a/b", 10)).unwrap(), "a/b");
}

#[test]
fn a_root_must_be_absolute_and_a_folder() {
    for root in ["", "a", "./a", "../a"] {
        let error = LocalStore::open(root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    let store = LocalStore::open(&file).unwrap();
    let error = put(&store, "x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "not a folder");
    // To look for something in a place that does not exist makes nothing there.
    let root = folder.path().join("new");
    let store = LocalStore::open(&root).unwrap();
    assert!(keys(&store, "", None).is_empty());
    assert_eq!(block_on(store.size("x")).unwrap(), None);
    assert!(!root.exists());
}

#[test]
fn a_root_may_be_named_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("real")).unwrap();
    symlink("real", folder.path().join("link")).unwrap();
    let store = LocalStore::open(folder.path().join("link")).unwrap();
    put(&store, "a/b").unwrap();
    assert_eq!(keys(&store, "", None), ["a/b"]);
    assert_eq!(fs::read(folder.path().join("real/a/b")).unwrap(), b"a/b");
}

/// A put in another process's runs is not looked at by a listing of this one's tail.
#[test]
fn a_listing_reads_only_the_folders_that_matter() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, store) = watched(folder.path());
    for run in ["a", "b", "bc"] {
        for object in
            ["ledger/1", "ledger/heads/1", "packs/1/0", "packs/1/1", "packs/2/0", "saves/1"]
        {
            put(&store, &format!("runs/{run}/{object}")).unwrap();
        }
    }
    let root = folder.path();
    for (prefix, after, folders) in [
        ("runs/b/ledger/", None, vec!["runs/b/ledger", "runs/b/ledger/heads"]),
        ("runs/b/ledger/1", None, vec!["runs/b/ledger"]),
        ("runs/b/le", None, vec!["runs/b", "runs/b/ledger", "runs/b/ledger/heads"]),
        (
            "runs/b/packs/",
            Some("runs/b/packs/1/1"),
            vec!["runs/b/packs", "runs/b/packs/1", "runs/b/packs/2"],
        ),
        ("runs/b/packs/", Some("runs/b/packs/2"), vec!["runs/b/packs", "runs/b/packs/2"]),
        ("runs/b/packs/", Some("runs/b/packs/3"), vec!["runs/b/packs"]),
        ("runs/x/", None, vec!["runs/x"]),
    ] {
        disk.forget();
        keys(&store, prefix, after);
        let read = disk.log().into_iter().map(|done| match done.op {
            Op::List(path) => path,
            op => panic!("{op:?}"),
        });
        let mut read: Vec<PathBuf> = read.collect();
        read.sort();
        let folders: Vec<PathBuf> = folders.iter().map(|name| root.join(name)).collect();
        assert_eq!(read, folders, "list {prefix:?} after {after:?}");
    }
}

#[test]
fn errors_of_reading_have_kinds() {
    use ErrorKind::{Denied, NotFound, Overloaded, Unavailable};
    for (errno, kind) in [
        (Errno::IO, Unavailable),
        (Errno::STALE, Unavailable),
        (Errno::ACCESS, Denied),
        (Errno::NOENT, NotFound),
        (Errno::MFILE, Overloaded),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (disk, store) = watched(folder.path());
        put(&store, "a/b").unwrap();
        disk.interfere(0, move |_| Err(errno.into()));
        let mut target = [0; 3];
        let mut errors = vec![
            block_on(store.get("a/b", 9)).unwrap_err(),
            block_on(store.get_range("a/b", 0..3)).unwrap_err(),
            block_on(store.read_into("a/b", 0, &mut target)).unwrap_err(),
        ];
        if kind != NotFound {
            errors.push(block_on(store.size("a/b")).unwrap_err());
            errors.push(block_on(store.list("a/", None)).unwrap_err());
            errors.push(block_on(store.settle("a/b")).unwrap_err());
            errors.push(block_on(store.delete("a/b")).unwrap_err());
        }
        for error in errors {
            assert_eq!(error.kind(), kind, "{errno:?}: {error}");
            assert!(error.object().is_some(), "{error}");
            let says_path = error.to_string().contains(&folder.path().display().to_string());
            assert!(says_path, "{error}");
        }
    }
}

/// A stored file that is shorter than it was does not crash its reader.
#[test]
fn a_file_that_was_cut_is_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    put(&store, "a/object").unwrap();
    let file = File::options().write(true).open(folder.path().join("a/object")).unwrap();
    file.set_len(3).unwrap();
    let mut target = [0; 8];
    for error in [
        block_on(store.read_into("a/object", 0, &mut target)).unwrap_err(),
        block_on(store.get_range("a/object", 0..8)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

/// A hostile size costs nothing: what is larger than expected is refused before it is allocated.
#[test]
fn what_is_too_large_is_not_allocated() {
    const LARGE: usize = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let local = LocalStore::open(folder.path()).unwrap();
    put(&local, "a/object").unwrap();
    let file = File::options().write(true).open(folder.path().join("a/object")).unwrap();
    file.set_len(LARGE as u64).unwrap();
    let memory = MemoryStore::default();
    memory.tamper("a/object", |bytes| *bytes = vec![0; LARGE]);
    for store in [&local as &dyn Store, &memory] {
        let mut kinds = Vec::new();
        let counted = allocation_counter::measure(|| {
            block_on(async {
                kinds.push(store.get("a/object", 1000).await.unwrap_err().kind());
                for range in [0..LARGE as u64 + 1, 1..u64::MAX] {
                    kinds.push(store.get_range("a/object", range).await.unwrap_err().kind());
                }
            });
        });
        assert_eq!(kinds, [ErrorKind::Corrupt; 3], "{}", store.location());
        assert!(counted.bytes_max < 1 << 20, "{}: {counted:?}", store.location());
    }
}
