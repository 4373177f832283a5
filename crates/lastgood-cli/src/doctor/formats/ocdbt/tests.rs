//! A tree of one node, made byte by byte, and what can be wrong with it.

use std::fs;

use tempfile::TempDir;

use super::*;

fn framed(magic: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend((4 + 8 + 2 + body.len() as u64 + 4).to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(body);
    bytes.extend(crc32c(&bytes).to_le_bytes());
    bytes
}

/// A table of one data file, whose path is all base but for its name.
fn table(path: &str, base: u8) -> Vec<u8> {
    [&[1, path.len() as u8, base], path.as_bytes()].concat()
}

fn manifest(offset: u8, len: u8) -> Vec<u8> {
    let mut body = vec![7; 16];
    body.extend([0, 100, 100, 4, 0]);
    body.extend(table("p/d/x", 2));
    // One version: its generation, height, place, statistics and time; no older ones.
    body.extend([1, 1, 0, 0, offset, len, 2, 0, 0]);
    body.extend([0; 8]);
    body.push(0);
    framed(MANIFEST_MAGIC, &body)
}

/// Keys `ab` with an inline value and `ac` with one of 3 bytes at the start of a file.
fn leaf() -> Vec<u8> {
    let mut body = vec![0];
    body.extend(table("d/x", 0));
    body.extend([2, 1, 2, 1]);
    body.extend(b"abc");
    body.extend([2, 3, 0, 1, 0, 0]);
    body.extend(b"hi");
    framed(NODE_MAGIC, &body)
}

fn folder(manifest: &[u8], data: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("p/d")).unwrap();
    fs::write(folder.path().join("manifest.ocdbt"), manifest).unwrap();
    fs::write(folder.path().join("p/d/x"), data).unwrap();
    folder
}

fn whole() -> (Vec<u8>, Vec<u8>) {
    let leaf = leaf();
    (manifest(3, leaf.len() as u8), [b"xyz".as_slice(), &leaf].concat())
}

#[test]
fn a_tree_is_read_with_the_paths_that_its_files_are_below() {
    let (manifest, data) = whole();
    let folder = folder(&manifest, &data);
    let tree = read(folder.path()).unwrap();
    assert_eq!(tree.values["ab"], Value::Inline(b"hi".to_vec()));
    let Value::At(location) = &tree.values["ac"] else { panic!("{tree:?}") };
    assert_eq!((&*location.file, location.offset, location.len), ("p/d/x", 0, 3));
    assert_eq!(inside(folder.path(), location).unwrap().all(9).unwrap(), b"xyz");
}

#[test]
fn the_checksum_is_that_of_the_standard() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn no_flip_and_no_cut_of_manifest_or_node_passes() {
    let (manifest, data) = whole();
    for at in 0..manifest.len() {
        let mut wrong = manifest.clone();
        wrong[at] ^= 1 << (at % 8);
        assert!(read(folder(&wrong, &data).path()).is_err(), "flip at {at}");
        assert!(read(folder(&manifest[..at], &data).path()).is_err(), "cut at {at}");
    }
    for at in 3..data.len() {
        let mut wrong = data.clone();
        wrong[at] ^= 1 << (at % 8);
        assert!(read(folder(&manifest, &wrong).path()).is_err(), "flip at {at}");
        assert!(read(folder(&manifest, &data[..at]).path()).is_err(), "cut at {at}");
    }
}

/// Bodies with right checksums that lie: a hostile file, not a damaged one.
#[test]
fn bodies_that_lie_are_no_trap() {
    let leaf = leaf();
    let body = &leaf[14..leaf.len() - 4];
    for at in 0..body.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut wrong = body.to_vec();
            wrong[at] = value;
            let node = framed(NODE_MAGIC, &wrong);
            let data = [b"xyz".as_slice(), &node].concat();
            let folder = folder(&manifest(3, node.len() as u8), &data);
            let Ok(tree) = read(folder.path()) else { continue };
            for value in tree.values.values() {
                if let Value::At(location) = value {
                    let _ = inside(folder.path(), location);
                }
            }
        }
    }
    let outside = |file: &str| Location { file: file.into(), offset: 0, len: 0, base: "".into() };
    for file in ["../x", "/etc/passwd", "a//b", "a/../../b", ""] {
        assert!(inside(Path::new("/tmp"), &outside(file)).is_err(), "{file}");
    }
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A leaf of few bytes, packed, whose entries all name one data file of a long name.
#[test]
fn a_long_name_that_a_million_entries_share_is_kept_once() {
    const COUNT: usize = 1_000_000;
    let name = "x".repeat(60_000);
    let mut body = vec![0, 1];
    body.extend(varint(name.len() as u64));
    body.push(0);
    body.extend(name.as_bytes());
    body.extend(varint(COUNT as u64));
    // Keys are empty; then lengths, kinds, files and offsets.
    body.extend(vec![0; 2 * COUNT - 1]);
    body.extend(vec![0; COUNT]);
    body.extend(vec![1; COUNT]);
    body.extend(vec![0; 2 * COUNT]);
    let mut tree = Tree::default();
    node(&body, "", "", &mut tree).unwrap();
    assert_eq!(tree.values.len(), 1);
}
