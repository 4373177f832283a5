//! Whole checkpoints: what is damaged is found, and nothing that is read can harm.

pub(crate) mod fixture;
mod hostile;
mod legacy;
mod tools;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fixture::{Chunk, call, dcp, dcp_metadata, dict, int, name, stream, tensor, text, torch, zip};
use indicatif::ProgressBar;

use super::report::{Series, Severity, Verdict};
use super::{Audit, examine};

fn examined(path: &Path) -> Vec<Series> {
    let audit = Audit { quick: false, allowed: &[], bar: ProgressBar::hidden() };
    examine(&audit, path).unwrap()
}

/// The verdict on the only checkpoint at `path`, and the kinds of what is worse than a note.
fn verdict(path: &Path) -> (Verdict, Vec<&'static str>) {
    let series = examined(path);
    assert_eq!(series.len(), 1, "{series:?}");
    let [checkpoint] = &series[0].checkpoints[..] else { panic!("{series:?}") };
    let findings = checkpoint.findings.all();
    let kinds = findings.iter().filter(|f| f.severity > Severity::Note).map(|f| f.kind);
    (checkpoint.verdict(), kinds.collect())
}

/// A new file: writing into one that is there makes some file systems wait for the disk.
fn put(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).ok();
    fs::write(path, bytes).unwrap();
}

fn sample() -> Vec<u8> {
    let weights = tensor("0", 6, &[2, 3], &[3, 1]);
    torch(&dict(&[(text("w"), weights), (text("step"), int(7))]), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
}

#[test]
fn a_whole_file_is_trusted_and_its_step_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    fs::write(&path, sample()).unwrap();
    assert_eq!(verdict(&path), (Verdict::Trusted, vec![]));
    let series = examined(&path);
    assert_eq!(series[0].checkpoints[0].step, Some(7));
    assert_eq!(series[0].checkpoints[0].coverage.uncheckable, 0);
}

#[test]
fn no_cut_of_a_file_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let whole = sample();
    for len in 0..whole.len() {
        put(&path, &whole[..len]);
        assert_eq!(verdict(&path).0, Verdict::Broken, "cut at {len}");
    }
}

#[test]
fn every_flip_in_a_record_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let whole = sample();
    let storage = fixture::floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let begin = whole.windows(storage.len()).position(|window| window == storage).unwrap();
    for byte in 0..whole.len() {
        let stored = (begin..begin + storage.len()).contains(&byte);
        let bits = if stored { 0..8 } else { byte % 8..byte % 8 + 1 };
        for bit in bits {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1 << bit;
            put(&path, &bytes);
            // A flip of a field that nobody reads, such as a time, may pass. None may panic.
            let (verdict, kinds) = verdict(&path);
            if stored {
                assert_eq!((verdict, kinds), (Verdict::Broken, vec!["checksum"]), "{byte}.{bit}");
            }
        }
    }
}

#[test]
fn without_checksums_that_is_said_and_nothing_is_claimed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let pickle = stream(&tensor("0", 1, &[1], &[1]));
    fs::write(&path, zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0, 0, 0, 0])], false)).unwrap();
    let series = examined(&path);
    let checkpoint = &series[0].checkpoints[0];
    assert_eq!(checkpoint.verdict(), Verdict::Trusted);
    assert_eq!(checkpoint.coverage.checked, 0);
    assert!(checkpoint.findings.has("no-checksum"));
}

#[test]
fn tensors_outside_of_their_storage_and_missing_storages_are_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    for wrong in [
        tensor("0", 6, &[2, 4], &[3, 1]),
        tensor("0", 6, &[2, 3], &[i64::MAX, 1]),
        tensor("0", 6, &[i64::MAX, i64::MAX], &[1, 1]),
        tensor("0", 7, &[7], &[1]),
        tensor("0", i64::MAX, &[6], &[1]),
        tensor("../0", 6, &[6], &[1]),
        tensor("0", 6, &[-1], &[1]),
    ] {
        fs::write(&path, torch(&wrong, &[0.0; 6])).unwrap();
        let (verdict, kinds) = verdict(&path);
        assert_eq!(verdict, Verdict::Broken);
        assert!(kinds.iter().all(|kind| *kind == "tensor"), "{kinds:?}");
    }
}

#[test]
fn what_would_run_code_is_listed_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let marker = folder.path().join("ran");
    let command = text(&format!("touch {}", marker.display()));
    let kinds_of = |value: &Vec<u8>| {
        fs::write(&path, torch(value, &[0.0])).unwrap();
        verdict(&path)
    };
    let system = call(name("os", "system"), std::slice::from_ref(&command));
    assert_eq!(kinds_of(&system), (Verdict::Suspect, vec!["pickled-danger"]));
    let own = call(name("my.module", "Config"), &[command]);
    assert_eq!(kinds_of(&own), (Verdict::Suspect, vec!["pickled-code"]));
    // A second data.pkl, which another reader may take.
    let good = stream(&int(1));
    let evil = stream(&system);
    fs::write(&path, zip(&[("a/data.pkl", &evil), ("a/data.pkl", &good)], true)).unwrap();
    assert!(verdict(&path).1.contains(&"pickled-danger"));
    assert!(!marker.exists());
    let allowed = ["my.module".to_owned()];
    let audit = Audit { quick: false, allowed: &allowed, bar: ProgressBar::hidden() };
    fs::write(&path, torch(&own, &[0.0])).unwrap();
    assert_eq!(examine(&audit, &path).unwrap()[0].checkpoints[0].verdict(), Verdict::Trusted);
}

#[test]
fn a_checkpoint_of_dcp_is_checked_against_its_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-5");
    let chunks = dcp(&path);
    assert_eq!(verdict(&path), (Verdict::Trusted, vec![]));
    assert_eq!(examined(&path)[0].checkpoints[0].step, Some(5));
    let table = |shape: i64, chunks: &[Chunk]| {
        fs::write(path.join(".metadata"), dcp_metadata(shape, chunks)).unwrap();
        verdict(&path).1
    };
    // A hole, an overlap, a chunk that was never stored.
    let Some((file, _, len)) = chunks[0].stored else { panic!() };
    assert_eq!(table(8, &chunks[..1]), ["coverage"]);
    let overlapping = [4, 2].map(|offset| Chunk { offset, size: 4, stored: chunks[1].stored });
    assert!(table(8, &overlapping).contains(&"coverage"));
    let lost = [
        Chunk { offset: 0, size: 4, stored: Some((file, 0, len)) },
        Chunk { offset: 4, size: 4, stored: None },
    ];
    assert_eq!(table(8, &lost), ["missing-chunk"]);
    // Bytes beyond the file, and a file elsewhere.
    let beyond = [Chunk { offset: 0, size: 4, stored: Some((file, 1, len)) }];
    assert!(table(4, &beyond).contains(&"truncated"));
    let outside = [Chunk { offset: 0, size: 4, stored: Some(("../x", 0, len)) }];
    assert!(table(4, &outside).contains(&"unreadable"));
    // A chunk that says another size than its bytes.
    let other = [Chunk { offset: 0, size: 8, stored: Some((file, 0, len)) }];
    assert!(table(8, &other).contains(&"torn"));
}

#[test]
fn damage_to_any_file_of_dcp_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-5");
    dcp(&path);
    let second = path.join("__1_0.distcp");
    let whole = fs::read(&second).unwrap();
    let storage = fixture::floats(&[4.0, 5.0, 6.0, 7.0]);
    let begin = whole.windows(storage.len()).position(|window| window == storage).unwrap();
    let mut flipped = whole.clone();
    flipped[begin + 3] ^= 1;
    fs::write(&second, &flipped).unwrap();
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["checksum"]));
    fs::write(&second, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["truncated"]));
    fs::write(&second, b"").unwrap();
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["empty"]));
    fs::remove_file(&second).unwrap();
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["missing-shard"]));
    fs::remove_file(path.join(".metadata")).unwrap();
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["uncommitted"]));
}

#[test]
fn data_that_is_newer_than_its_commit_is_doubted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-5");
    dcp(&path);
    let later = SystemTime::now() + Duration::from_secs(60);
    let file = fs::File::options().write(true).open(path.join("__1_0.distcp")).unwrap();
    file.set_modified(later).unwrap();
    assert_eq!(verdict(&path), (Verdict::Suspect, vec!["torn"]));
}

#[test]
fn no_flip_or_cut_of_a_table_of_dcp_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-5");
    dcp(&path);
    let table = path.join(".metadata");
    let whole = fs::read(&table).unwrap();
    for len in 0..whole.len() {
        put(&table, &whole[..len]);
        assert_eq!(verdict(&path).0, Verdict::Broken, "cut at {len}");
    }
    for byte in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[byte] ^= 1 << (byte % 8);
        put(&table, &bytes);
        verdict(&path);
    }
}

#[test]
fn pipes_and_circles_of_links_are_no_trap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    fs::create_dir(&path).unwrap();
    std::os::unix::fs::symlink(&path, path.join("again")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path.join("pipe.pt"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    fs::write(path.join("model.pt"), sample()).unwrap();
    assert_eq!(verdict(&path).0, Verdict::Trusted);
}
