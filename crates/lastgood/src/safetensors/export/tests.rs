use std::sync::Arc;

use lastgood_store::{MemoryStore, SystemEnv};
use safetensors::SafeTensors;

use super::*;
use crate::save::Mode;
use crate::{Run, RunOptions};

fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    std::iter::repeat_with(next).take(bytes as usize).collect()
}

/// Tensors that are cut along every dimension, at every width, and that cannot be cut.
const TENSORS: &[(&str, Dtype, &[u64])] = &[
    ("bytes", Dtype::U8, &[3001]),
    ("rows", Dtype::F32, &[70, 11]),
    ("deep", Dtype::F64, &[2, 3, 5, 7]),
    ("one row", Dtype::Bf16, &[1, 1, 900]),
    ("wide", Dtype::I16, &[3, 700]),
    ("packed", Dtype::F4, &[20, 7, 6]),
    ("packed odd", Dtype::F6E2M3, &[4, 101]),
    ("none", Dtype::F32, &[0, 9]),
    ("scalar", Dtype::C64, &[]),
    ("größe \\\"\n", Dtype::Bool, &[5]),
];

fn repository() -> Repository {
    let store = Arc::new(MemoryStore::default());
    let repository = Repository::create(store, Arc::new(SystemEnv::default())).unwrap();
    let data: Vec<Vec<u8>> = (1..)
        .zip(TENSORS)
        .map(|(seed, (_, dtype, shape))| {
            noise(seed, dtype.bytes_of(shape.iter().product()).unwrap())
        })
        .collect();
    let run = "r".parse().unwrap();
    let mut run = Run::open(&repository, &run, RunOptions::default()).unwrap();
    run.save(1, Mode::Sync, |capture| {
        capture.metadata("key \"1\"", "größe\n");
        let mut part = capture.component("c", "test", Durability::Durable)?;
        for ((name, dtype, shape), data) in TENSORS.iter().zip(&data) {
            part.tensor(name, *dtype, shape, data)?;
        }
        part.value("value", &7)
    })
    .unwrap();
    run.close().unwrap();
    repository
}

#[test]
fn a_file_is_the_same_however_it_is_cut() {
    let repository = repository();
    let ledger = repository.existing(&"r".parse().unwrap()).unwrap();
    let id = ledger.history().checkpoints()[0].id;
    let contents = repository.contents(&ledger, &id).unwrap();
    for part_bytes in [1, 7, 16, 100, 1000, 5000, PART_BYTES] {
        let export = Export::new(&repository, &contents, "c", Content::Tensors).unwrap().unwrap();
        let mut export = Export { part_bytes, ..export };
        let expected = export.bytes();
        let mut file = Vec::new();
        let mut parts = 0;
        while let Some(bytes) = export.next_bytes().unwrap() {
            file.extend_from_slice(bytes);
            parts += 1;
        }
        assert_eq!(file.len() as u64, expected);
        assert_eq!(parts > 2, part_bytes < PART_BYTES, "{parts} parts of {part_bytes} bytes");
        let (_, header) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["key \"1\""], "größe\n");
        let read = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.len(), TENSORS.len());
        for (seed, (name, dtype, shape)) in (1..).zip(TENSORS) {
            let view = read.tensor(name).unwrap();
            assert_eq!(view.dtype().to_string(), dtype.name());
            assert!(view.shape().iter().map(|size| *size as u64).eq(shape.iter().copied()));
            assert!(view.data() == noise(seed, view.data().len() as u64), "{name}, {part_bytes}");
        }
    }
}

#[test]
fn values_are_a_file_of_their_own_and_what_is_not_there_is_named() {
    let repository = repository();
    let ledger = repository.existing(&"r".parse().unwrap()).unwrap();
    let contents = repository.contents(&ledger, &ledger.history().checkpoints()[0].id).unwrap();
    let mut export = Export::new(&repository, &contents, "c", Content::Blobs).unwrap().unwrap();
    let mut file = Vec::new();
    while let Some(bytes) = export.next_bytes().unwrap() {
        file.extend_from_slice(bytes);
    }
    let read = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(read.tensor("value").unwrap().data(), b"7");
    let error = Export::new(&repository, &contents, "d", Content::Blobs).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("there are: c"), "{error}");
}
