//! A second reader, written from `docs/FORMAT.md` alone: nothing here calls a decoder of the crate.
//! It takes a repository as keys with bytes and gives the newest good checkpoint's tensors.

use std::collections::BTreeMap;

use lastgood_format::index::ShardIndex;
use lastgood_format::{Hash, key};
use serde_json::Value;

use crate::{corpus, vectors};

mod columns;
mod delta;
mod journal;
mod ledger;
mod pack;

pub(crate) use columns::{read_index, unpack};

type Objects = BTreeMap<String, Vec<u8>>;

/// Dtype name, global shape, row-major bytes.
pub(crate) type Filled = (String, Vec<u64>, Vec<u8>);

fn hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The body of a sealed object of a known version.
fn unseal(stored: &[u8]) -> Value {
    let (line, seal) = stored.split_at(stored.len() - 76);
    assert_eq!(seal, format!("{{\"seal\":\"{}\"}}\n", hex(line)).as_bytes());
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert_eq!(line.last(), Some(&b'\n'));
    let body: Value = serde_json::from_slice(line).unwrap();
    assert_eq!(body["format"], 1);
    body
}

/// The tensors of checkpoint `id`, each whole.
fn restore(objects: &Objects, run: &str, id: &str) -> BTreeMap<(String, String), Filled> {
    let stored = &objects[&format!("runs/{run}/checkpoints/{id}.json")];
    assert_eq!(hex(stored), id);
    let manifest: Value = serde_json::from_slice(stored).unwrap();
    assert_eq!((&manifest["format"], &manifest["kind"]), (&1.into(), &"checkpoint".into()));
    let mut tensors = BTreeMap::new();
    let mut ties = Vec::new();
    for (entry, rank) in manifest["indexes"].as_array().unwrap().iter().zip(0u32..) {
        let object = entry["object"].as_str().unwrap();
        let stored = &objects[&format!("runs/{run}/{object}")];
        assert_eq!((&entry["bytes"], &entry["rank"]), (&stored.len().into(), &rank.into()));
        assert_eq!(entry["blake3"], hex(stored));
        let index = read_index(stored);
        for tensor in &index.tensors {
            let component = &index.components[tensor.component as usize].name;
            let key = (component.clone(), tensor.name.clone());
            if let Some(other) = tensor.tied_to {
                ties.push((
                    key.clone(),
                    (key.0.clone(), index.tensors[other as usize].name.clone()),
                ));
            }
            let bits: u64 = tensor.shape.iter().product::<u64>() * columns::bits_of(tensor.dtype);
            let filled = tensors.entry(key).or_insert_with(|| {
                let name = tensor.dtype.name().to_owned();
                (name, tensor.shape.clone(), vec![0xEE; (bits / 8) as usize])
            });
            for shard in &index.shards[tensor.shards.start as usize..tensor.shards.end as usize] {
                let bytes = shard_bytes(objects, run, &index, tensor, shard);
                let bits = columns::bits_of(tensor.dtype);
                place(&mut filled.2, &tensor.shape, shard, &bytes, bits);
            }
        }
    }
    for (tied, canonical) in ties {
        let filled = tensors[&canonical].clone();
        tensors.insert(tied, filled);
    }
    tensors
}

fn shard_bytes(
    objects: &Objects,
    run: &str,
    index: &ShardIndex,
    tensor: &lastgood_format::index::Tensor,
    shard: &lastgood_format::index::Shard,
) -> Vec<u8> {
    let elements: u64 = shard.extent.sizes.iter().product();
    let bytes = (elements * columns::bits_of(tensor.dtype) / 8) as usize;
    let chunk_bytes = index.chunk_bytes as usize;
    if bytes == 0 {
        return Vec::new();
    }
    let first = shard.first_chunk as usize;
    if bytes < chunk_bytes {
        let begin = shard.chunk_offset as usize;
        let chunk = pack::chunk(objects, run, index, first);
        return chunk[begin..begin + bytes].to_vec();
    }
    let rows = bytes.div_ceil(chunk_bytes);
    (first..first + rows).flat_map(|row| pack::chunk(objects, run, index, row)).collect()
}

/// Copies a shard into its tensor, one row of the last dimension at a time.
fn place(
    target: &mut [u8],
    shape: &[u64],
    shard: &lastgood_format::index::Shard,
    bytes: &[u8],
    bits: u64,
) {
    let (offsets, sizes) = (&shard.extent.offsets, &shard.extent.sizes);
    if bytes.is_empty() {
        return;
    }
    let row = sizes.last().map_or(1, |size| *size);
    let rows = bytes.len() as u64 * 8 / bits / row;
    for i in 0..rows {
        // The place of the row's first element in the tensor.
        let mut rest = i;
        let mut element = offsets.last().copied().unwrap_or(0);
        let mut stride = shape.last().copied().unwrap_or(1);
        for d in (0..shape.len().saturating_sub(1)).rev() {
            element += (offsets[d] + rest % sizes[d]) * stride;
            rest /= sizes[d];
            stride *= shape[d];
        }
        let (to, from, count) = (element * bits / 8, i * row * bits / 8, row * bits / 8);
        // Rows of packed elements need not begin on a byte: such tensors are whole in the vectors.
        if !(row * bits).is_multiple_of(8) {
            assert_eq!(sizes, shape);
            target.copy_from_slice(bytes);
            return;
        }
        target[to as usize..(to + count) as usize]
            .copy_from_slice(&bytes[from as usize..(from + count) as usize]);
    }
}

#[test]
fn the_second_reader_restores_the_newest_good_checkpoint() {
    let objects = vectors::repository();
    let descriptor = unseal(&objects["lastgood.json"]);
    assert_eq!(descriptor["kind"], "lastgood");
    assert_eq!(descriptor["repository"], "0123456789abcdef0011223344556677");
    let id = ledger::newest_good(&objects, "demo").unwrap();
    let origin = ledger::origin(&objects, "demo-at-6").unwrap();
    assert_eq!(origin, ("demo".to_owned(), 6, id.clone(), 5));
    assert_eq!(ledger::origin(&objects, "demo"), None);
    let corpus = corpus::corpus();
    assert_eq!(id, corpus.manifests[0].encode().unwrap().1.to_string());
    let tensors = restore(&objects, "demo", &id);

    let numbers: Vec<u8> = (0..12u16).flat_map(u16::to_le_bytes).collect();
    let pattern: Vec<u8> = (0..(64 << 10) + 8u32).map(|i| (i / 512) as u8).collect();
    let expected: [(&str, &str, &str, &[u64], _); 8] = [
        ("loader", "state", "BLOB", &[5], b"lines".to_vec()),
        ("model", "a", "F32", &[], vec![0, 0, 0xC0, 0x3F]),
        ("model", "a/empty", "F64", &[0, 4], vec![]),
        ("model", "a/packed", "F4", &[2, 3], vec![0x12, 0x34, 0x56]),
        ("model", "sharded", "U16", &[4, 3], numbers.clone()),
        ("model", "tied", "U16", &[4, 3], numbers),
        ("model", "zeros", "F32", &[32769], vec![0; 131_076]),
        ("model", "\u{1f600} \u{5e9}\0", "U8", &[2, 32772], pattern),
    ];
    assert_eq!(tensors.len(), expected.len());
    for (component, name, dtype, shape, bytes) in expected {
        let found = &tensors[&(component.to_owned(), name.to_owned())];
        assert_eq!((found.0.as_str(), found.1.as_slice()), (dtype, shape), "{component}/{name}");
        assert!(found.2 == bytes, "{component}/{name}");
    }
}

#[test]
fn the_second_reader_reads_what_reuses_another_save() {
    let objects = vectors::repository();
    let id = corpus::corpus().manifests[1].encode().unwrap().1.to_string();
    let tensors = restore(&objects, "demo", &id);
    let pattern: Vec<u8> = (0..(64 << 10) + 8u32).map(|i| (i / 512) as u8).collect();
    assert!(tensors[&("model".to_owned(), "pattern".to_owned())].2 == pattern);
    assert_eq!(tensors[&("model".to_owned(), "noise".to_owned())].2.len(), 128);
}

#[test]
fn both_readers_see_the_same_indexes() {
    let objects = vectors::repository();
    let corpus = corpus::corpus();
    for index in &corpus.indexes {
        let object = key::index_in_run(&index.save, index.rank);
        let stored = &objects[&format!("runs/demo/{object}")];
        assert_eq!(read_index(stored), *index, "{object}");
    }
}

#[test]
fn both_readers_see_the_same_packs() {
    let objects = vectors::repository();
    for (name, stored) in &corpus::corpus().packs {
        let rows: Vec<_> = lastgood_format::pack::parse(stored)
            .unwrap()
            .into_iter()
            .map(|row| {
                let hash = *row.hash.as_bytes();
                (hash, row.offset, row.stored_bytes, row.decoded_bytes, row.codec.code())
            })
            .collect();
        assert_eq!(pack::table(&objects[&format!("runs/demo/{name}")]), rows, "{name}");
    }
}

#[test]
fn the_second_reader_understands_a_head() {
    let stored = vectors::head();
    let body = unseal(&stored);
    assert_eq!((&body["kind"], &body["history"]["entries"]), (&"ledger.head".into(), &64.into()));
    let hash = Hash::of(b"entry 64").to_string();
    assert_eq!(body["history"]["tail"], hash);
    assert_eq!(body["history"]["checkpoints"][0]["standing"], "good");
    assert_eq!(body["history"]["abandoned"][0], serde_json::json!([1, 6, 0]));
}
