//! What is encoded is decoded, for random values of everything and for very many tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use lastgood_format::chunk::Codec;
use lastgood_format::descriptor::Descriptor;
use lastgood_format::index::{Chunk, Durability, Pack, Shard, ShardIndex, Tensor};
use lastgood_format::key::SaveKey;
use lastgood_format::layout::NdBox;
use lastgood_format::ledger::{Entry, Kind};
use lastgood_format::manifest::Manifest;
use lastgood_format::{Dtype, ErrorKind, Hash, chunk, pack};

use crate::corpus::{self, corpus};
use crate::draft::{Draft, DraftTensor, Stored, component};
use crate::reader::read_index;
use crate::seeded::{Seeded, seed};

/// Any text: letters, separators, controls, other scripts, four-byte characters.
fn text(seeded: &mut Seeded, chars_max: u64) -> String {
    const SPECIAL: &[char] = &[
        '\0',
        '/',
        '\\',
        '.',
        ' ',
        '\n',
        '"',
        '{',
        '\u{7f}',
        '\u{e9}',
        '\u{301}',
        '\u{5d0}',
        '\u{627}',
        '\u{202e}',
        '\u{feff}',
        '\u{fffd}',
        '\u{4e2d}',
        '\u{1f600}',
        '\u{1f468}',
        '\u{10ffff}',
    ];
    (0..seeded.below(chars_max + 1))
        .map(|_| match seeded.below(3) {
            0 => *seeded.pick(SPECIAL),
            1 => char::from(b'a' + seeded.below(4) as u8),
            _ => char::from_u32(seeded.below(0x11_0000) as u32).unwrap_or('?'),
        })
        .collect()
}

/// A tensor of any dtype and shape, cut along its first dimension; some pieces are elsewhere.
fn tensor(seeded: &mut Seeded, component: u32, name: String) -> DraftTensor {
    let dtype = *seeded.pick(Dtype::ALL);
    let dims = if dtype == Dtype::Blob { 1 } else { seeded.below(5) as usize };
    let mut shape: Vec<u64> = (0..dims).map(|_| seeded.below(5)).collect();
    if seeded.one_in(12) && dims > 0 {
        shape[0] = 70_000;
    }
    if dtype.bits() < 8 && dims > 0 {
        shape[dims - 1] *= 4;
    }
    let cuts = match shape.first() {
        Some(rows) if seeded.one_in(2) => 1 + seeded.below((*rows).clamp(1, 3)),
        _ => 1,
    };
    let mut shards = Vec::new();
    for i in 0..cuts {
        let mut extent = NdBox::whole(&shape);
        if cuts > 1 {
            let cut = |i: u64| i * shape[0] / cuts;
            (extent.offsets[0], extent.sizes[0]) = (cut(i), cut(i + 1) - cut(i));
        }
        let bytes = extent.elements().and_then(|elements| dtype.bytes_of(elements));
        let Some(bytes) = bytes.filter(|_| !seeded.one_in(4)) else { continue };
        let data = match seeded.below(4) {
            0 => vec![0; bytes as usize],
            2 => corpus::alike(seeded.bytes(bytes as usize)),
            1 => vec![seeded.next() as u8; bytes as usize],
            _ => seeded.bytes(bytes as usize),
        };
        shards.push((extent, data));
    }
    DraftTensor { component, name, dtype, shape, tied_to: None, shards }
}

fn draft(seeded: &mut Seeded) -> Draft {
    let mut names: Vec<String> = (0..4).map(|_| text(seeded, 12) + "x").collect();
    names.sort_unstable();
    names.dedup();
    let mut components: Vec<_> =
        names.iter().map(|name| component(name, Durability::Durable)).collect();
    components[0].durability = *seeded.pick(&[Durability::Derived, Durability::Volatile]);
    let durable = components.len() as u64 - 1;
    let count = if durable == 0 { 0 } else { seeded.below(12) };
    let keys: BTreeSet<(u32, String)> =
        (0..count).map(|_| (1 + seeded.below(durable) as u32, text(seeded, 20))).collect();
    let mut tensors: Vec<DraftTensor> = Vec::new();
    for (component, name) in keys {
        let mut new = tensor(seeded, component, name);
        let last = tensors.iter().rposition(|t| t.component == component && t.tied_to.is_none());
        if let Some(other) = last.filter(|_| seeded.one_in(4)) {
            (new.dtype, new.shape) = (tensors[other].dtype, tensors[other].shape.clone());
            (new.tied_to, new.shards) = (Some(other as u32), Vec::new());
        }
        tensors.push(new);
    }
    let mut reuses: Vec<Hash> = (0..seeded.below(3)).map(|_| hash(seeded)).collect();
    reuses.sort_unstable();
    let world_size = 1 + seeded.below(1 << 32).min(u64::from(u32::MAX) - 1) as u32;
    Draft {
        run: corpus::run(),
        save: SaveKey {
            attempt: seeded.next(),
            step: *seeded.pick(&[0, 1, 999_999_999_999, 1_000_000_000_000, u64::MAX]),
            generation: *seeded.pick(&[0, 1, 7, u32::MAX]),
        },
        rank: seeded.below(world_size.into()) as u32,
        world_size,
        parent: seeded.one_in(2).then(|| hash(seeded)),
        reuses,
        components,
        tensors,
        metadata: (0..seeded.below(4)).map(|_| (text(seeded, 9), text(seeded, 99))).collect(),
        deltas: BTreeMap::new(),
    }
}

fn hash(seeded: &mut Seeded) -> Hash {
    Hash::of(&seeded.bytes(8))
}

#[test]
fn random_indexes_and_packs() {
    let mut seeded = Seeded(seed(6));
    let (mut dtypes, mut codecs, mut ties, mut scalars, mut empties) =
        (BTreeSet::new(), BTreeSet::new(), 0, 0, 0);
    for round in 0..400 {
        let what = format!("seed {}, round {round}", seeded.0);
        let (index, _, stored_pack) = draft(&mut seeded).build(&Stored::new());
        let stored = index.encode().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(ShardIndex::decode(&stored).unwrap() == index, "{what}");
        assert!(read_index(&stored) == index, "{what}: the second reader");
        for row in pack::parse(&stored_pack).unwrap() {
            let begin = row.offset as usize;
            let bytes = &stored_pack[begin..begin + row.stored_bytes as usize];
            let mut decoded = vec![3; row.decoded_bytes as usize];
            chunk::decode_into(row.codec, bytes, &[], &mut decoded, &row.hash).unwrap();
            codecs.insert(row.codec);
        }
        for tensor in &index.tensors {
            dtypes.insert(tensor.dtype);
            ties += u32::from(tensor.tied_to.is_some());
            scalars += u32::from(tensor.shape.is_empty());
            empties += u32::from(tensor.shape.contains(&0));
        }
        let manifest_of = ShardIndex { rank: 0, world_size: 1, ..index };
        // Its packs are those of another rank now.
        let manifest_of = ShardIndex { packs: Vec::new(), ..manifest_of };
        let manifest = Manifest::build(&[(manifest_of, 7, Hash::of(b"index"))]).unwrap();
        let (stored, id) = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&stored, &id).unwrap(), manifest, "{what}");
    }
    assert_eq!(dtypes.len(), Dtype::ALL.len(), "every dtype was tried");
    // A delta needs what it is made of: see `reader::delta`, and the vectors.
    assert_eq!(codecs.len() + 1, Codec::ALL.len(), "every other codec was tried");
    assert!(ties > 20 && scalars > 20 && empties > 20, "{ties} {scalars} {empties}");
}

#[test]
fn random_entries_and_descriptors() {
    let mut seeded = Seeded(seed(7));
    let kinds: Vec<Kind> = corpus().entries.into_iter().map(|entry| entry.kind).collect();
    for round in 0..2_000 {
        let kind = match seeded.below(3) {
            0 => seeded.pick(&kinds).clone(),
            1 => Kind::SaveAbandoned {
                saved_by: seeded.next(),
                step: seeded.next(),
                generation: seeded.next() as u32,
                reason: text(&mut seeded, 50),
            },
            _ => Kind::AttemptStarted {
                number: seeded.next(),
                world_size: seeded.next() as u32,
                from: seeded.one_in(2).then(|| hash(&mut seeded)),
                incarnation: text(&mut seeded, 50),
            },
        };
        let n = *seeded.pick(&[1, 2, 3, 1 << 53, (1 << 53) + 1, u64::MAX]);
        let write_id = u128::from(seeded.next()) << seeded.below(65);
        let micros = seeded.below(253_402_300_799_000_000);
        let entry = Entry {
            run: corpus::run(),
            n,
            prev: (n > 1).then(|| hash(&mut seeded)),
            write_id,
            attempt: seeded.next(),
            at: SystemTime::UNIX_EPOCH + Duration::from_micros(micros),
            actor: text(&mut seeded, 30),
            kind,
        };
        let stored = entry.encode().unwrap();
        let what = format!("seed {}, round {round}", seeded.0);
        assert_eq!(Entry::decode(&stored, &entry.run, n).unwrap(), entry, "{what}");
        let descriptor = Descriptor::new(write_id);
        let stored = descriptor.encode().unwrap();
        assert_eq!(Descriptor::decode(&stored).unwrap(), descriptor, "{what}");
    }
}

/// `count` tensors of 64 bytes: small tensors share chunks.
fn many(count: u32) -> ShardIndex {
    let chunk_bytes = 1 << 20;
    let per_chunk = chunk_bytes / 64;
    let tensors = (0..count).map(|i| Tensor {
        component: 0,
        name: format!("layers.{:04}.experts.{:04}.bias", i / 1000, i % 1000),
        dtype: Dtype::F32,
        shape: vec![16],
        tied_to: None,
        shards: i..i + 1,
    });
    let shards = (0..count).map(|i| Shard {
        extent: NdBox::whole(&[16]),
        first_chunk: i / per_chunk,
        chunk_offset: i % per_chunk * 64,
    });
    let rows = count.div_ceil(per_chunk);
    let chunks = (0..rows).map(|row| Chunk {
        hash: Hash::of(&row.to_le_bytes()),
        decoded_bytes: (count - row * per_chunk).min(per_chunk) * 64,
        stored_bytes: (count - row * per_chunk).min(per_chunk) * 64,
        codec: Codec::Raw,
        pack: 0,
        offset: 16 + u64::from(row * chunk_bytes),
    });
    let save = SaveKey { attempt: 1, step: 1, generation: 0 };
    let object = lastgood_format::key::pack_in_run(&save, 0, 0);
    ShardIndex {
        run: corpus::run(),
        save,
        rank: 0,
        world_size: 1,
        parent: None,
        reuses: Vec::new(),
        chunk_bytes,
        components: vec![component("model", Durability::Durable)],
        tensors: tensors.collect(),
        shards: shards.collect(),
        chunks: chunks.collect(),
        bases: Vec::new(),
        operands: BTreeMap::new(),
        packs: vec![Pack { object, bytes: 1 << 30, is_new: true }],
        metadata: [].into(),
    }
}

/// A million biases are 62 chunks and not a million, and cost little beside their names.
#[test]
fn a_million_small_tensors() {
    let count = 1_000_000;
    let index = many(count);
    assert_eq!(index.chunks.len() as u32, count.div_ceil(16 << 10), "chunks are shared");
    let stored = index.encode().unwrap();
    let columns = crate::reader::unpack(&stored).len();
    println!("{count} tensors: {columns} bytes of columns, {} stored", stored.len());
    assert!(columns < 80 * count as usize, "{columns} bytes of columns");
    assert!(stored.len() < 48 * count as usize, "{} bytes stored", stored.len());
    assert!(ShardIndex::decode(&stored).unwrap() == index);
}

/// The chunk rows of fresh optimizer state are all alike.
#[test]
fn a_large_tensor_of_zeros() {
    let rows = 200_000u64;
    let mut index = many(1);
    index.chunk_bytes = 64 << 10;
    let bytes = rows * (64 << 10);
    index.tensors[0].shape = vec![bytes / 4];
    index.shards[0].extent = NdBox::whole(&[bytes / 4]);
    let zero = Chunk {
        hash: Hash::of(&vec![0; 64 << 10]),
        decoded_bytes: 64 << 10,
        stored_bytes: 0,
        codec: Codec::Zero,
        pack: 0,
        offset: 16,
    };
    index.chunks = vec![zero; rows as usize];
    let stored = index.encode().unwrap();
    let columns = crate::reader::unpack(&stored).len();
    println!("{columns} bytes of columns in {} stored", stored.len());
    assert!(ShardIndex::decode(&stored).unwrap() == index);
}

/// What compresses further than a decoder allows is written so that it can be read.
#[test]
fn columns_that_compress_too_well() {
    let mut index = many(1);
    index.metadata.insert("note".into(), " ".repeat(16 << 20));
    let columns = crate::forge::columns(&index);
    let frame = zstd::bulk::compress(&columns, 1).unwrap();
    assert!(frame.len() as u64 * ShardIndex::GROWTH_MAX < columns.len() as u64);
    assert!(ShardIndex::decode(&crate::forge::index_of(&columns)).is_err(), "a bomb");
    let stored = index.encode().unwrap();
    assert!(ShardIndex::decode(&stored).unwrap() == index);
    assert!(stored.len() < columns.len() / 500, "{} bytes", stored.len());
}

#[test]
fn what_is_too_large_to_be_read_is_not_written() {
    let refused = |index: &ShardIndex, part: &str| {
        let error = index.encode().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.message().contains(part), "{error}");
    };
    let mut index = many(1);
    index.metadata.insert("k".into(), "v".repeat(64 << 20));
    let stored = index.encode().unwrap();
    assert!(ShardIndex::decode(&stored).unwrap() == index);
    index.metadata.insert("k".into(), "v".repeat((64 << 20) + 1));
    refused(&index, "67108865");
    let mut index = many(2);
    index.tensors[0].name = "n".repeat(64 << 10);
    index.tensors[1].name = "o".repeat(64 << 10);
    let stored = index.encode().unwrap();
    assert!(ShardIndex::decode(&stored).unwrap() == index);
    index.tensors[1].name.push('o');
    refused(&index, "too long");
}
