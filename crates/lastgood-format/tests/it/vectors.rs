//! The files under `tests/vectors/` are what the encoders write, and decode to what was encoded.
//!
//! `LASTGOOD_WRITE_VECTORS=1` writes them anew. Do that only for a new vector: the old ones are what
//! released readers and writers agreed on.
#![expect(clippy::disallowed_methods, reason = "the vectors are files")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lastgood_format::delta::Operand;
use lastgood_format::descriptor::Descriptor;
use lastgood_format::index::ShardIndex;
use lastgood_format::ledger::Entry;
use lastgood_format::manifest::Manifest;
use lastgood_format::{Hash, chunk, key, pack, sealed};

use crate::corpus::{self, corpus};

const HEAD: &str = "ledger-head.json";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// The committed repository by key.
pub(crate) fn repository() -> BTreeMap<String, Vec<u8>> {
    let root = folder().join("repository");
    let mut found = BTreeMap::new();
    let mut open = vec![root.clone()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let key = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                found.insert(key, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The committed ledger head.
pub(crate) fn head() -> Vec<u8> {
    fs::read(folder().join(HEAD)).unwrap()
}

#[test]
fn encoders_write_the_committed_bytes() {
    let objects = corpus().objects;
    if std::env::var("LASTGOOD_WRITE_VECTORS").is_ok_and(|set| set == "1") {
        for (key, bytes) in &objects {
            let path = folder().join("repository").join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        fs::write(folder().join(HEAD), corpus::head()).unwrap();
    }
    let committed = repository();
    let keys = |objects: &BTreeMap<String, Vec<u8>>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&committed), keys(&objects), "the set of vectors");
    for (key, bytes) in &objects {
        assert!(committed[key] == *bytes, "{key}: the encoder writes other bytes than committed");
    }
    assert!(head() == corpus::head(), "{HEAD}: the encoder writes other bytes than committed");
}

#[test]
fn decoders_read_the_committed_values() {
    let (corpus, committed) = (corpus(), repository());
    let run = corpus::run();
    assert_eq!(Descriptor::decode(&committed[key::DESCRIPTOR]).unwrap(), corpus::descriptor());
    for entry in &corpus.entries {
        let stored = &committed[&key::ledger_entry(&entry.run, entry.n)];
        assert_eq!(Entry::decode(stored, &entry.run, entry.n).unwrap(), *entry);
    }
    for index in &corpus.indexes {
        let object = key::index_in_run(&index.save, index.rank);
        let stored = &committed[&key::in_run(&run, &object).unwrap()];
        assert_eq!(ShardIndex::decode(stored).unwrap(), *index, "{object}");
    }
    for manifest in &corpus.manifests {
        let (_, id) = manifest.encode().unwrap();
        let stored = &committed[&key::manifest(&run, &id)];
        assert_eq!(Manifest::decode(stored, &id).unwrap(), *manifest);
    }
    assert!(sealed::unseal::<serde_json::Value>(&head()).is_ok());
}

/// A row with all that it is made of.
fn decoded(committed: &BTreeMap<String, Vec<u8>>, index: &ShardIndex, number: u32) -> Vec<u8> {
    let row = index.row(number).unwrap();
    let object = &index.packs[row.pack as usize].object;
    let stored = &committed[&key::in_run(&index.run, object).unwrap()];
    let begin = row.offset as usize;
    let stored = &stored[begin..begin + row.stored_bytes as usize];
    let operands = index.operands_of(number).iter().map(|of| decoded(committed, index, *of));
    let operands: Vec<Vec<u8>> = operands.collect();
    let operands: Vec<_> =
        operands.iter().map(|bytes| Operand { hash: Hash::of(bytes), bytes }).collect();
    let mut decoded = vec![1; row.decoded_bytes as usize];
    chunk::decode_into(row.codec, stored, &operands, &mut decoded, &row.hash).unwrap();
    decoded
}

/// The indexes' chunks, decoded from the committed packs, and the packs' own tables agree.
#[test]
fn packs_hold_the_chunks_of_the_indexes() {
    let (corpus, committed) = (corpus(), repository());
    let mut codecs = Vec::new();
    for index in &corpus.indexes {
        for (row, number) in index.chunks.iter().zip(0..) {
            let object = &index.packs[row.pack as usize].object;
            let stored = &committed[&key::in_run(&index.run, object).unwrap()];
            let decoded = decoded(&committed, index, number);
            assert_eq!(Hash::of(&decoded), row.hash);
            let table = pack::parse(stored).unwrap();
            assert!(table.iter().any(|chunk| {
                (chunk.hash, chunk.offset, chunk.stored_bytes, chunk.decoded_bytes, chunk.codec)
                    == (row.hash, row.offset, row.stored_bytes, row.decoded_bytes, row.codec)
            }));
            codecs.push(row.codec);
        }
    }
    assert!(
        chunk::Codec::ALL.iter().all(|codec| codecs.contains(codec)),
        "a vector for each codec"
    );
}
