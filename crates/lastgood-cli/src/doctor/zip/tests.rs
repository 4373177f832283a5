//! Directories of zip files that lie.

use std::fs;

use super::*;
use crate::doctor::tests::fixture::zip;

fn open(bytes: &[u8]) -> Result<Archive, Flaw> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    fs::write(&path, bytes).unwrap();
    Archive::open(Span::open(&path)?)
}

#[test]
fn records_are_found_with_their_bytes_and_sums() {
    let archive = open(&zip(&[("a/x", b"one"), ("a/y", b"")], true)).unwrap();
    let names: Vec<&str> = archive.records.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["a/x", "a/y"]);
    let record = archive.find("a/x").unwrap();
    assert_eq!(archive.open_record(record).unwrap().all(10).unwrap(), b"one");
    assert_eq!(archive.check(record, |_| {}).unwrap(), Sum::Right);
    assert_eq!(archive.duplicate(), None);
}

#[test]
fn a_record_that_overlaps_another_is_refused() {
    let mut bytes = zip(&[("a", b"0123456789"), ("b", b"0123456789")], true);
    // Both entries of the directory name the first record.
    let second = bytes.windows(4).rposition(|window| window == CENTRAL).unwrap();
    bytes[second + 42..second + 46].fill(0);
    let flaw = open(&bytes).unwrap_err();
    assert!(flaw.to_string().contains("overlaps"), "{flaw}");
}

#[test]
fn sizes_that_go_beyond_the_file_are_refused_before_anything_is_read() {
    let whole = zip(&[("a", b"0123456789")], true);
    let entry = whole.windows(4).rposition(|window| window == CENTRAL).unwrap();
    let end = whole.windows(4).rposition(|window| window == END).unwrap();
    for (at, bytes) in [
        (entry + 20, [0xff, 0xff, 0xff, 0x7f]),
        (entry + 42, [0xff, 0xff, 0xff, 0x7f]),
        (end + 12, [0xff, 0xff, 0xff, 0x7f]),
        (end + 16, [0xff, 0xff, 0xff, 0x7f]),
        // Records that the directory has no room for.
        (end + 8, [0xff, 0xfe, 0xff, 0xfe]),
    ] {
        let mut lying = whole.clone();
        lying[at..at + 4].copy_from_slice(&bytes);
        assert!(open(&lying).is_err(), "at {at}");
    }
}
