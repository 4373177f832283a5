//! Every truncation and every flipped bit of every vector, and bytes that are nothing at all.

use lastgood_format::chunk::{self, Codec};
use lastgood_format::descriptor::Descriptor;
use lastgood_format::index::ShardIndex;
use lastgood_format::journal::Segment;
use lastgood_format::ledger::Entry;
use lastgood_format::manifest::Manifest;
use lastgood_format::{ErrorKind, Hash, Result, delta, key, pack, sealed};
use serde_json::Value;

use crate::corpus::{self, Corpus, corpus};
use crate::seeded::Seeded;
use crate::vectors;

/// What reads an object and says whether it is whole.
type Reader = Box<dyn Fn(&[u8]) -> Result<()>>;

/// Each sealed object that is stored, with its decoder. Packs are apart: their seal is only of the table.
pub(crate) fn sealed_objects() -> Vec<(String, Vec<u8>, Reader)> {
    let Corpus { indexes, manifests, entries, objects, .. } = corpus();
    let run = corpus::run();
    let mut found: Vec<(String, Reader)> = Vec::new();
    found.push((key::DESCRIPTOR.into(), Box::new(|bytes| Descriptor::decode(bytes).map(|_| ()))));
    for (run, n) in entries.iter().map(|entry| (entry.run.clone(), entry.n)) {
        let object = key::ledger_entry(&run, n);
        let reader = move |bytes: &[u8]| Entry::decode(bytes, &run, n).map(|_| ());
        found.push((object, Box::new(reader)));
    }
    for index in &indexes {
        let object = key::index_in_run(&index.save, index.rank);
        let reader = |bytes: &[u8]| ShardIndex::decode(bytes).map(|_| ());
        found.push((key::in_run(&run, &object).unwrap(), Box::new(reader)));
    }
    for manifest in &manifests {
        let (_, id) = manifest.encode().unwrap();
        let reader = move |bytes: &[u8]| Manifest::decode(bytes, &id).map(|_| ());
        found.push((key::manifest(&run, &id), Box::new(reader)));
    }
    for object in objects.keys().filter(|object| object.ends_with(".seg")) {
        let (attempt, lane, _) = key::parse_journal_segment(&run, object).unwrap();
        let reader = move |bytes: &[u8]| Segment::decode(bytes, attempt, lane).map(|_| ());
        found.push((object.clone(), Box::new(reader)));
    }
    let mut all: Vec<(String, Vec<u8>, Reader)> = found
        .into_iter()
        .map(|(key, reader)| {
            let bytes = objects[&key].clone();
            (key, bytes, reader)
        })
        .collect();
    let head: Reader = Box::new(|bytes| sealed::unseal::<Value>(bytes).map(|_| ()));
    all.push(("ledger-head.json".into(), vectors::head(), head));
    all
}

/// The packs with a reader of everything in them: the table, and each chunk by its hash.
fn read_pack(stored: &[u8]) -> Result<Vec<Vec<u8>>> {
    pack::parse(stored)?
        .into_iter()
        .map(|row| {
            let begin = row.offset as usize;
            let bytes = &stored[begin..begin + row.stored_bytes as usize];
            if row.codec == Codec::Delta {
                // What it is made of may be elsewhere: here it is what was stored, or not.
                return delta::check(bytes).map(|()| bytes.to_vec());
            }
            let mut decoded = vec![0; row.decoded_bytes as usize];
            chunk::decode_into(row.codec, bytes, &[], &mut decoded, &row.hash)?;
            Ok(decoded)
        })
        .collect()
}

fn flipped(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        (bit, damaged)
    })
}

#[test]
fn every_flipped_bit_of_a_sealed_object_is_corrupt() {
    let mut bits = 0;
    for (key, bytes, read) in sealed_objects() {
        read(&bytes).unwrap();
        for (bit, damaged) in flipped(&bytes) {
            let error = read(&damaged).expect_err(&format!("{key}: bit {bit} was not seen"));
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{key}: bit {bit}: {error}");
            bits += 1;
        }
    }
    assert!(bits > 50_000, "only {bits} bits were tried");
}

/// A pack's chunks are not sealed but hashed after they are decoded: a flipped bit is found, or what
/// is decoded is right all the same.
#[test]
fn every_flipped_bit_of_a_pack_is_corrupt_or_changes_nothing() {
    let (mut found, mut harmless) = (0, 0);
    for (name, bytes) in corpus().packs {
        let whole = read_pack(&bytes).unwrap();
        let table = pack::parse(&bytes).unwrap();
        let end = table.last().map_or(16, |row| row.offset + u64::from(row.stored_bytes));
        for (bit, damaged) in flipped(&bytes) {
            match read_pack(&damaged) {
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: bit {bit}: {error}");
                    found += 1;
                }
                Ok(decoded) => {
                    assert!(decoded == whole, "{name}: bit {bit} changed what is decoded");
                    let chunks = 16 * 8..end as usize * 8;
                    assert!(chunks.contains(&bit), "{name}: bit {bit} of the table was not seen");
                    harmless += 1;
                }
            }
        }
    }
    assert!(found > 7_000 && harmless < found / 100, "{found} found, {harmless} harmless");
}

#[test]
fn every_truncation_and_every_longer_object_is_corrupt() {
    let mut all = sealed_objects();
    for (name, bytes) in corpus().packs {
        all.push((name, bytes, Box::new(|bytes| read_pack(bytes).map(|_| ()))));
    }
    for (key, bytes, read) in all {
        for length in 0..bytes.len() {
            let error = read(&bytes[..length]).expect_err(&format!("{key} cut to {length}"));
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{key} cut to {length}: {error}");
        }
        for extra in [&b"\0"[..], b"\n", b"{}", &bytes] {
            let longer = [&bytes, extra].concat();
            assert_eq!(read(&longer).unwrap_err().kind(), ErrorKind::Corrupt, "{key} is longer");
            let before = [extra, &bytes].concat();
            assert_eq!(read(&before).unwrap_err().kind(), ErrorKind::Corrupt, "{key} begins later");
        }
    }
}

#[test]
fn random_bytes_are_no_object() {
    let mut seeded = Seeded(1);
    let (readers, run) = (sealed_objects(), corpus::run());
    for round in 0..3_000 {
        let length = seeded.below(400) as usize;
        let mut bytes = seeded.bytes(length);
        if round % 3 == 0 && length >= 64 {
            bytes[..8].copy_from_slice(b"LGINDEX\0");
            bytes[length - 64..length - 56].copy_from_slice(b"LGPKEND\0");
        }
        for (key, _, read) in &readers {
            assert_eq!(
                read(&bytes).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "{key}: round {round}"
            );
        }
        assert!(pack::parse(&bytes).is_err());
        let id = Hash::of(&bytes);
        assert!(Manifest::decode(&bytes, &id).is_err(), "round {round}");
        assert!(Entry::decode(&bytes, &run, 1).is_err());
    }
}

/// An error says what was expected and what was found.
#[test]
fn errors_name_both_sides() {
    let corpus = corpus();
    let (stored, id) = corpus.manifests[0].encode().unwrap();
    let check = |error: lastgood_format::Error, parts: &[&str]| {
        for part in parts {
            assert!(error.message().contains(part), "{part:?} is not in {error}");
        }
    };
    let other = Hash::of(b"other");
    let error = Manifest::decode(&stored, &other).unwrap_err();
    check(error, &[&other.to_string(), &id.to_string(), "expected", "found"]);
    let stored = corpus.entries[1].encode().unwrap();
    let error = Entry::decode(&stored, &corpus::run(), 7).unwrap_err();
    check(error, &["expected entry 7 of run demo", "found entry 2 of run demo"]);
    let error = Entry::decode(&stored, &"other".parse().unwrap(), 2).unwrap_err();
    check(error, &["expected entry 2 of run other", "found entry 2 of run demo"]);
    let mut stored = corpus.indexes[0].encode().unwrap();
    stored[9] ^= 1;
    let (body, seal) = stored.split_at(stored.len() - 32);
    let expected = Hash::from_bytes(seal.try_into().unwrap()).to_string();
    let found = Hash::of(body).to_string();
    check(ShardIndex::decode(&stored).unwrap_err(), &[&expected, &found]);
    let mut decoded = [0; 4];
    let error = chunk::decode_into(Codec::Raw, b"abcd", &[], &mut decoded, &other).unwrap_err();
    check(error, &[&other.to_string(), &Hash::of(b"abcd").to_string()]);
    let error = chunk::decode_into(Codec::Raw, b"abc", &[], &mut decoded, &other).unwrap_err();
    check(error, &["3 bytes", "expected 4"]);
}
