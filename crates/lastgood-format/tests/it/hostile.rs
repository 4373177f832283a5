//! Binary objects whose hashes are right and whose content is hostile: absurd counts, bombs, versions of
//! the future. Nothing is allocated for what cannot be there.

use std::io::Write;

use allocation_counter::measure;
use lastgood_format::chunk::{self, Codec};
use lastgood_format::index::ShardIndex;
use lastgood_format::{Error, ErrorKind, Hash, Result, pack};
use zstd::stream::write::Encoder;
use zstd::zstd_safe::CParameter;

use crate::corpus::corpus;
use crate::forge;
use crate::seeded::Seeded;

/// What decoding `stored` gives, and the most bytes that were allocated at one time on the way.
fn decode(stored: &[u8]) -> (Result<ShardIndex>, u64) {
    let mut result = None;
    let memory = measure(|| result = Some(ShardIndex::decode(stored)));
    (result.unwrap(), memory.bytes_max)
}

/// What a decoder may allocate for an index of so many bytes stored and in columns. A tensor takes 22
/// bytes of columns and about 200 of memory; text and the buffer of the columns are the constant.
fn allowed(stored: usize, columns: usize) -> u64 {
    16 * (stored + columns) as u64 + (256 << 10)
}

/// Decodes columns that a hostile writer sealed: an error of the right kind, or an index whose columns
/// are exactly these.
fn check((columns, seal): (&[u8], forge::Seal), what: &str) -> bool {
    let stored = seal(columns);
    let (result, memory) = decode(&stored);
    let allowed = allowed(stored.len(), columns.len());
    assert!(memory <= allowed, "{what}: {memory} bytes were allocated, {allowed} allowed");
    match result {
        Ok(index) => {
            assert!(forge::columns(&index) == columns, "{what}: two ways to write one index");
            assert!(index.encode().is_ok(), "{what}: what is read can be written");
            true
        }
        Err(error) => {
            let kinds = [ErrorKind::Corrupt, ErrorKind::Incompatible];
            assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
            false
        }
    }
}

#[test]
fn columns_of_every_length() {
    for index in corpus().indexes {
        let (columns, seal) = (forge::columns(&index), forge::seal_of(&index));
        assert!(check((&columns, seal), "whole"));
        for length in 0..columns.len() {
            assert!(!check((&columns[..length], seal), &format!("cut to {length}")));
        }
        assert!(!check((&[&columns[..], &[0]].concat(), seal), "one byte more"));
    }
}

/// Not every flipped bit breaks a rule (a step may be any step), but each gives an error or another
/// index, never the same one, a panic or a large allocation.
#[test]
fn columns_with_every_bit_flipped() {
    let mut read = 0;
    for index in corpus().indexes {
        let (columns, seal) = (forge::columns(&index), forge::seal_of(&index));
        for bit in 0..columns.len() * 8 {
            let mut damaged = columns.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            read += u32::from(check((&damaged, seal), &format!("bit {bit}")));
        }
    }
    assert!(read > 1_000, "{read}: the rules leave names, hashes and steps free");
}

#[test]
fn absurd_numbers_everywhere() {
    for index in corpus().indexes {
        let (columns, seal) = (forge::columns(&index), forge::seal_of(&index));
        for at in 0..columns.len() - 8 {
            let absurd = [u64::MAX, u64::from(u32::MAX), 1 << 63, 0, 1 << 24, 0x7fff_ffff];
            for (value, bytes) in absurd.iter().flat_map(|value| [(value, 4), (value, 8)]) {
                let mut damaged = columns.clone();
                damaged[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                check((&damaged, seal), &format!("{value:#x} at {at}"));
            }
        }
    }
}

fn error(stored: &[u8], kind: ErrorKind, parts: &[&str]) {
    let (result, memory) = decode(stored);
    let error = result.expect_err(parts[0]);
    said(&error, kind, parts);
    assert!(
        memory < allowed(stored.len(), 0) + (1 << 20),
        "{error}: {memory} bytes were allocated"
    );
}

fn said(error: &Error, kind: ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(error.message().contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn headers() {
    let columns = forge::columns(&corpus().indexes[0]);
    let frame = zstd::bulk::compress(&columns, 1).unwrap();
    let bytes = columns.len() as u64;
    let with = |version, flags, decoded| forge::index_with(version, flags, decoded, &frame);
    ShardIndex::decode(&with(1, 0, bytes)).unwrap();
    error(&with(2, 0, bytes), ErrorKind::Incompatible, &["version 2", "(1)"]);
    error(&with(u32::MAX, 7, 0), ErrorKind::Incompatible, &["version 4294967295", "(1)"]);
    error(&with(0, 0, bytes), ErrorKind::Corrupt, &["version 0"]);
    error(&with(1, 2, bytes), ErrorKind::Incompatible, &["flags 0x2"]);
    error(&with(1, u32::MAX, bytes), ErrorKind::Incompatible, &["flags 0xffffffff"]);
    error(&with(1, 1, bytes), ErrorKind::Corrupt, &["more bytes, found 0"]);
    for wrong in [0, bytes - 1, bytes + 1] {
        error(&with(1, 0, wrong), ErrorKind::Corrupt, &[&wrong.to_string(), "expected"]);
    }
    for absurd in [u64::MAX, (1 << 30) + 1, 4096 * frame.len() as u64 + 1] {
        error(&with(1, 0, absurd), ErrorKind::Corrupt, &[&absurd.to_string()]);
    }
    let mut magic = with(1, 0, bytes);
    magic[7] = 1;
    let end = magic.len() - 32;
    let seal = Hash::of(&magic[..end]);
    magic[end..].copy_from_slice(seal.as_bytes());
    error(&magic, ErrorKind::Corrupt, &["does not begin"]);
}

#[test]
fn frames() {
    let columns = forge::columns(&corpus().indexes[0]);
    let (frame, bytes) = (zstd::bulk::compress(&columns, 1).unwrap(), columns.len() as u64);
    let corrupt = |frame: &[u8], decoded, part: &str| {
        error(&forge::index_with(1, 0, decoded, frame), ErrorKind::Corrupt, &[part]);
    };
    corrupt(&[&frame[..], &[0]].concat(), bytes, "1 bytes follow");
    corrupt(&[&frame[..], &frame].concat(), bytes, "bytes follow the frame");
    corrupt(&[&frame[..], &frame].concat(), 2 * bytes, "found fewer");
    corrupt(&frame[..frame.len() - 1], bytes, "");
    corrupt(&columns, bytes, "do not decode");
    corrupt(&[], 0, "");
    // A bomb: 64 MiB of zeros that say that they are as many as the columns may be.
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    corrupt(&bomb, 64 << 20, "67108864");
    let most = 4096 * bomb.len() as u64;
    let (result, memory) = decode(&forge::index_with(1, 0, most, &bomb));
    said(&result.unwrap_err(), ErrorKind::Corrupt, &[&most.to_string(), "found more"]);
    assert!(memory <= 3 * most + (256 << 10), "{memory} bytes for {most} announced");
    // A frame that wants a window of 128 MiB for a few bytes.
    let mut encoder = Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(CParameter::WindowLog(27)).unwrap();
    encoder.write_all(&columns).unwrap();
    corrupt(&encoder.finish().unwrap(), bytes, "do not decode");
    let mut encoder = Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(CParameter::WindowLog(23)).unwrap();
    encoder.write_all(&columns).unwrap();
    let stored = forge::index_with(1, 0, bytes, &encoder.finish().unwrap());
    assert_eq!(ShardIndex::decode(&stored).unwrap(), corpus().indexes[0]);
}

/// Codes that a later writer may use.
#[test]
fn unknown_codes() {
    let index = corpus().indexes[0].clone();
    let columns = forge::columns(&index);
    let find = |edit: &dyn Fn(&mut ShardIndex)| {
        // Where a code stands: the first byte that differs when the code does.
        let mut other = index.clone();
        edit(&mut other);
        let other = forge::columns(&other);
        columns.iter().zip(&other).position(|(a, b)| a != b).unwrap()
    };
    let dtype = find(&|i| i.tensors[1].dtype = lastgood_format::Dtype::U8);
    let codec = find(&|i| i.chunks[1].codec = Codec::Raw);
    let durability =
        find(&|i| i.components[0].durability = lastgood_format::index::Durability::Derived);
    let flag = find(&|i| i.packs[0].is_new = false);
    let cases = [
        (dtype, 23, ErrorKind::Incompatible, "dtype 23"),
        (dtype, 255, ErrorKind::Incompatible, "dtype 255"),
        (codec, 5, ErrorKind::Incompatible, "codec 5"),
        (durability, 3, ErrorKind::Incompatible, "durability 3"),
        (flag, 2, ErrorKind::Corrupt, "0 or 1, found 2"),
    ];
    for (at, code, kind, part) in cases {
        let mut damaged = columns.clone();
        damaged[at] = code;
        error(&forge::index_of(&damaged), kind, &[part]);
    }
}

#[test]
fn packs() {
    let row = forge::row;
    let raw = |offset| row(offset, 4, 4, 0);
    let two = [raw(16), raw(20)].concat();
    assert_eq!(pack::parse(&forge::pack_with(1, &[0; 8], &two, 2, 24)).unwrap().len(), 2);
    let corrupt = |pack: Vec<u8>, part: &str| {
        let mut result = None;
        let memory = measure(|| result = Some(pack::parse(&pack)));
        said(&result.unwrap().unwrap_err(), ErrorKind::Corrupt, &[part]);
        assert!(memory.bytes_max < 4096 + 4 * pack.len() as u64, "{}", memory.bytes_max);
    };
    let pack = |stored: usize, table: &[u8], rows, at| {
        forge::pack_with(1, &vec![0; stored], table, rows, at)
    };
    corrupt(pack(8, &two, u32::MAX, 24), "4294967295 chunks");
    corrupt(pack(8, &two, 1, 24), "1 chunks");
    corrupt(pack(8, &two, 0, 24), "0 chunks");
    for at in [0, 15, 24 + 99, 1 << 40, u64::MAX] {
        corrupt(pack(8, &two, 2, at), &format!("begins at {at}, expected 16 to 122"));
    }
    corrupt(pack(8, &two, 2, 25), "98 bytes, found 97");
    corrupt(pack(8, &[raw(16), raw(16)].concat(), 2, 24), "begins at 16, expected 20");
    corrupt(pack(8, &[raw(16), raw(21)].concat(), 2, 24), "begins at 21, expected 20");
    corrupt(pack(8, &[raw(20), raw(16)].concat(), 2, 24), "begins at 20, expected 16");
    corrupt(pack(8, &[raw(0), raw(20)].concat(), 2, 24), "begins at 0, expected 16");
    corrupt(pack(8, &[raw(16), raw(u64::MAX)].concat(), 2, 24), "expected 20");
    corrupt(pack(9, &two, 2, 25), "end at 24, the table begins at 25");
    corrupt(pack(7, &two, 2, 23), "end at 24, the table begins at 23");
    for (stored, decoded, codec) in
        [(4, 0, 0), (0, 0, 2), (4, 5, 0), (5, 4, 0), (4, 4, 1), (1, 4, 2)]
    {
        corrupt(
            pack(stored, &row(16, stored as u32, decoded, codec), 1, 16 + stored as u64),
            "cannot",
        );
    }
    corrupt(pack(0, &row(16, 0, (16 << 20) + 1, 2), 1, 16), "16777217");
    corrupt(pack(4, &row(16, u32::MAX, 4, 0), 1, 20), "cannot have 4 bytes stored as 4294967295");
    let codec = pack::parse(&pack(4, &row(16, 4, 4, 5), 1, 20)).unwrap_err();
    said(&codec, ErrorKind::Incompatible, &["codec 5"]);
    // A later version may have other rows: it is named before its table is looked at.
    let future = pack::parse(&forge::pack_with(2, &[0; 8], &[0; 33], 5, 24)).unwrap_err();
    said(&future, ErrorKind::Incompatible, &["version 2", "(1)"]);
    let none = pack::parse(&forge::pack_with(0, &[], &[], 0, 16)).unwrap_err();
    said(&none, ErrorKind::Corrupt, &["version 0"]);
    assert_eq!(pack::parse(&pack(0, &[], 0, 16)).unwrap(), []);
}

#[test]
fn chunks() {
    let decode = |codec, stored: &[u8], bytes: usize, of: &[u8]| {
        let mut decoded = vec![9; bytes];
        let hash = Hash::of(of);
        let mut result = None;
        let memory =
            measure(|| result = Some(chunk::decode_into(codec, stored, &[], &mut decoded, &hash)));
        assert!(memory.bytes_max < 4096, "{} bytes were allocated", memory.bytes_max);
        result.unwrap().map(|()| decoded)
    };
    let data = b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let frame = zstd::bulk::compress(data, 1).unwrap();
    assert_eq!(decode(Codec::Zstd, &frame, 64, data).unwrap(), data);
    assert_eq!(decode(Codec::Zero, &[], 64, &[0; 64]).unwrap(), [0; 64]);
    for bytes in [0, 1, 63, 65, 1 << 20] {
        assert_eq!(
            decode(Codec::Zstd, &frame, bytes, data).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        assert_eq!(decode(Codec::Raw, data, bytes, data).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    assert!(decode(Codec::Zero, b"x", 64, &[0; 64]).is_err());
    assert!(decode(Codec::Zero, &[], 64, data).is_err());
    assert!(decode(Codec::Zstd, &[], 64, data).is_err());
    let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 19).unwrap();
    assert!(decode(Codec::Zstd, &bomb, 64, data).is_err());
}

/// Columns after many random edits, as a fuzzer makes them; `LASTGOOD_SEED` repeats one run.
#[test]
fn random_edits_of_valid_columns() {
    let mut seeded = Seeded(crate::seeded::seed(3));
    let bases: Vec<Vec<u8>> = corpus().indexes.iter().map(forge::columns).collect();
    let mut read = 0;
    for round in 0..20_000 {
        let mut columns = seeded.pick(&bases).clone();
        let seal = *seeded.pick(&[forge::index_of as forge::Seal, forge::index_of_deltas]);
        for _ in 0..=seeded.below(4) {
            edit(&mut seeded, &mut columns, &bases);
        }
        read += u32::from(check((&columns, seal), &format!("seed {}, round {round}", seeded.0)));
    }
    assert!(read > 100, "{read}: some edits leave an index");
}

/// Changes, removes, repeats or takes over a few bytes.
fn edit(seeded: &mut Seeded, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    if bytes.is_empty() {
        return;
    }
    let at = seeded.below(bytes.len() as u64) as usize;
    let end = (at + 1 + seeded.below(40) as usize).min(bytes.len());
    match seeded.below(7) {
        0 => bytes[at] = seeded.next() as u8,
        1 => bytes[at] = bytes[at].wrapping_add(1),
        2 => bytes[at] = bytes[at].wrapping_sub(1),
        3 => drop(bytes.drain(at..end)),
        4 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        5 => bytes[at..end].fill(*seeded.pick(&[0, 1, 0x7f, 0x80, 0xff])),
        _ => {
            let other = seeded.pick(others);
            let from = seeded.below(other.len() as u64) as usize;
            let count = (end - at).min(other.len() - from);
            bytes[at..at + count].copy_from_slice(&other[from..from + count]);
        }
    }
}

/// Stored objects after random edits: the seal finds every one that changes something.
#[test]
fn random_edits_of_stored_objects() {
    let mut seeded = Seeded(crate::seeded::seed(4));
    let objects = crate::damage::sealed_objects();
    let all: Vec<Vec<u8>> = objects.iter().map(|(_, bytes, _)| bytes.clone()).collect();
    let packs = corpus().packs;
    for round in 0..20_000 {
        let (key, whole, read) = seeded.pick(&objects);
        let mut bytes = whole.clone();
        edit(&mut seeded, &mut bytes, &all);
        let mut result = None;
        let memory = measure(|| result = Some(read(&bytes)));
        let what = format!("{key}: seed {}, round {round}", seeded.0);
        assert!(memory.bytes_max <= allowed(bytes.len(), 0), "{what}: {}", memory.bytes_max);
        assert_eq!(result.unwrap().is_ok(), bytes == *whole, "{what}");
        let (_, pack) = seeded.pick(&packs);
        let mut bytes = pack.clone();
        edit(&mut seeded, &mut bytes, &all);
        let memory = measure(|| drop(pack::parse(&bytes)));
        assert!(memory.bytes_max <= allowed(bytes.len(), 0), "{what}: {}", memory.bytes_max);
    }
}

/// A fuzzer's worth of JSON under a right seal: no panic, and nothing but refusal or an entry.
#[test]
fn random_edits_of_sealed_bodies() {
    let mut seeded = Seeded(crate::seeded::seed(5));
    let entries = corpus().entries;
    let bodies: Vec<Vec<u8>> = entries
        .iter()
        .map(|entry| lastgood_format::sealed::body(&entry.encode().unwrap()).unwrap().to_vec())
        .collect();
    for round in 0..20_000 {
        let i = seeded.below(bodies.len() as u64) as usize;
        let (run, n) = (&entries[i].run, entries[i].n);
        let mut body = bodies[i].clone();
        for _ in 0..=seeded.below(3) {
            edit(&mut seeded, &mut body, &bodies);
        }
        let Ok(body) = String::from_utf8(body) else { continue };
        let stored = forge::seal_text(&body);
        let mut result = None;
        let decode = || lastgood_format::ledger::Entry::decode(&stored, run, n);
        let memory = measure(|| result = Some(decode()));
        let what = format!("seed {}, round {round}: {body}", seeded.0);
        assert!(memory.bytes_max <= allowed(stored.len(), 0), "{what}: {}", memory.bytes_max);
        match result.unwrap() {
            Ok(entry) => assert!(entry.encode().is_ok(), "{what}"),
            Err(error) => assert!(
                [ErrorKind::Corrupt, ErrorKind::Incompatible].contains(&error.kind()),
                "{what}: {error:?}"
            ),
        }
    }
}
