//! Files of tensors in, out, and damaged between.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};

use crate::tool::on;

const DTYPES: &[(Dtype, usize)] = &[
    (Dtype::F4, 4),
    (Dtype::F6_E2M3, 6),
    (Dtype::F6_E3M2, 6),
    (Dtype::F8_E4M3FNUZ, 8),
    (Dtype::F8_E5M2FNUZ, 8),
    (Dtype::BOOL, 8),
    (Dtype::U8, 8),
    (Dtype::I8, 8),
    (Dtype::F8_E5M2, 8),
    (Dtype::F8_E4M3, 8),
    (Dtype::F8_E8M0, 8),
    (Dtype::I16, 16),
    (Dtype::U16, 16),
    (Dtype::F16, 16),
    (Dtype::BF16, 16),
    (Dtype::I32, 32),
    (Dtype::U32, 32),
    (Dtype::F32, 32),
    (Dtype::C64, 64),
    (Dtype::F64, 64),
    (Dtype::I64, 64),
    (Dtype::U64, 64),
];

/// A file with tensors of every dtype, an empty one and one without dimensions, and metadata.
pub(crate) fn sample(seed: u8) -> Vec<u8> {
    let mut x = u32::from(seed) + 1;
    let mut bytes = |count: usize| -> Vec<u8> {
        let next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 24) as u8
        };
        std::iter::repeat_with(next).take(count).collect()
    };
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = DTYPES
        .iter()
        .map(|(dtype, bits)| (format!("{dtype:?}"), *dtype, vec![3, 4], bytes(12 * bits / 8)))
        .collect();
    tensors.push(("empty".into(), Dtype::F32, vec![0, 7], Vec::new()));
    tensors.push(("scalar".into(), Dtype::F64, Vec::new(), bytes(8)));
    tensors.push(("größe/重み 🦀".into(), Dtype::F32, vec![50_000], bytes(200_000)));
    tensors.push(("\"quoted\"\n\\ \u{7}".into(), Dtype::U8, vec![1, 1, 2], bytes(2)));
    tensors.push(("../../x@rank0".into(), Dtype::U8, vec![2], bytes(2)));
    tensors.push((String::new(), Dtype::BF16, vec![3], bytes(6)));
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let metadata = [("made by".to_owned(), "a test".to_owned())].into_iter().collect();
    serialize(views, Some(metadata)).unwrap()
}

/// A tensor as a file says it: name, dtype, shape and bytes.
pub(crate) type Said = (String, Dtype, Vec<usize>, Vec<u8>);

/// Everything that a file says, in an order that is always the same.
pub(crate) fn content(file: &[u8]) -> (Vec<Said>, Option<String>) {
    let (_, header) = SafeTensors::read_metadata(file).unwrap();
    let made_by = header.metadata().as_ref().and_then(|all| all.get("made by").cloned());
    let tensors = SafeTensors::deserialize(file).unwrap();
    let mut all: Vec<_> = tensors
        .iter()
        .map(|(name, view)| {
            (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
        })
        .collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    (all, made_by)
}

/// A store with checkpoints of steps 10 and 20.
fn imported() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    for (step, seed) in [("10", 1), ("20", 2)] {
        let file = folder.path().join("in.safetensors");
        fs::write(&file, sample(seed)).unwrap();
        on(folder.path(), &["import", file.to_str().unwrap(), "--step", step]).exits(0);
    }
    (folder, sample(2))
}

fn export(folder: &Path, at: &str, name: &str) -> PathBuf {
    let to = folder.join(name);
    on(folder, &["export", "--at", at, "--to", to.to_str().unwrap()]).exits(0);
    to
}

/// The largest object below a folder of the store.
fn largest(folder: &Path) -> PathBuf {
    let mut files = Vec::new();
    let mut folders = vec![folder.join("store")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    // The newest pack: packs are the largest, and their names count up.
    files.sort_by_key(|path| (path.extension().is_some_and(|e| e == "pack"), path.clone()));
    files.pop().unwrap()
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_imported_is_exported_byte_for_byte_and_again() {
    let (folder, newest) = imported();
    let folder = folder.path();
    let to = export(folder, "last-good", "out");
    let file = fs::read(to.join("model.safetensors")).unwrap();
    assert_eq!(content(&file), content(&newest));
    // Over an earlier export, and of an older step.
    export(folder, "last-good", "out");
    assert_eq!(fs::read(to.join("model.safetensors")).unwrap(), file);
    export(folder, "10", "out");
    let older = fs::read(to.join("model.safetensors")).unwrap();
    assert_eq!(content(&older), content(&sample(1)));
}

#[test]
fn an_export_replaces_nothing_that_is_not_an_export() {
    let (folder, _) = imported();
    let to = folder.path().join("mine");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("thesis.tex"), "years").unwrap();
    let args = ["export", "--to", to.to_str().unwrap()];
    let refused = on(folder.path(), &args).exits(2);
    assert!(refused.err.contains("--force"), "{}", refused.err);
    assert!(to.join("thesis.tex").exists());
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
}

#[test]
fn damage_is_reported_with_code_3_and_marked() {
    let (folder, _) = imported();
    let folder = folder.path();
    on(folder, &["verify"]).exits(0);
    let damaged = largest(folder);
    flip(&damaged);
    let name = damaged.file_name().unwrap().to_str().unwrap();
    let found = on(folder, &["verify", "--mark"]).exits(3);
    let said = found.out + &found.err;
    assert!(said.contains(name), "{said}");
    // What is marked bad is not the last good one any more.
    let to = export(folder, "last-good", "out");
    let file = fs::read(to.join("model.safetensors")).unwrap();
    assert_eq!(content(&file), content(&sample(1)));
    let damaged = folder.join("damaged");
    on(folder, &["export", "--at", "20", "--to", damaged.to_str().unwrap()]).exits(3);
    assert!(!damaged.exists(), "nothing is left of an export that failed");
}

#[test]
fn a_file_that_is_no_safetensors_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in.safetensors");
    let whole = sample(1);
    for bytes in [&whole[..whole.len() - 1], &whole[..100], b"", b"PK\x03\x04 pickled"] {
        fs::write(&file, bytes).unwrap();
        let ran = on(folder.path(), &["import", file.to_str().unwrap(), "--step", "1"]).exits(3);
        assert!(ran.err.contains("safetensors"), "{}", ran.err);
    }
}
