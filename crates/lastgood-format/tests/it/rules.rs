//! Every rule of a shard index, broken: no encoder writes it, no decoder takes it.

use std::ops::Range;

use lastgood_format::chunk::Codec;
use lastgood_format::index::{Component, Durability, ShardIndex};
use lastgood_format::layout::NdBox;
use lastgood_format::manifest::Manifest;
use lastgood_format::{Dtype, ErrorKind, Hash, Result};

use crate::corpus::{self, corpus};
use crate::draft::{Draft, DraftTensor, Stored, component};
use crate::forge;

type Break = fn(&mut ShardIndex);

/// Two chunks shared by small tensors and one large tensor of three chunks; two packs, one reused.
fn sound() -> ShardIndex {
    corpus().indexes[0].clone()
}

fn reusing() -> ShardIndex {
    corpus().indexes[2].clone()
}

fn refused(what: &str, index: &ShardIndex, expected: &str) {
    let error = index.encode().expect_err(&format!("{what}: it was written"));
    assert_eq!(error.kind(), ErrorKind::Invalid, "{what}: {error}");
    let stored = forge::seal_of(index)(&forge::columns(index));
    let error = ShardIndex::decode(&stored).expect_err(&format!("{what}: it was read"));
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    assert!(error.message().contains(expected), "{what}: {error}");
}

fn check(base: fn() -> ShardIndex, cases: &[(&str, Break, &str)]) {
    base().encode().unwrap();
    for (what, damage, expected) in cases {
        let mut index = base();
        damage(&mut index);
        refused(what, &index, expected);
    }
}

/// The tensors of rank 0 of the first save: `state`, `a`, `a/empty`, `a/packed`, `sharded`, `tied`, `zeros`
/// and the one named by an emoji.
const SHARDED: usize = 4;
const TIED: usize = 5;
const ZEROS: usize = 6;

#[test]
fn forged_and_encoded_columns_are_the_same() {
    for index in corpus().indexes {
        let stored = forge::seal_of(&index)(&forge::columns(&index));
        assert!(stored == index.encode().unwrap(), "the forger writes what the encoder writes");
    }
}

#[test]
fn saves_and_components() {
    check(
        sound,
        &[
            ("rank", |i| i.rank = 2, "rank 2 of 2"),
            ("no ranks", |i| i.world_size = 0, "rank 0 of 0"),
            ("small chunks", |i| i.chunk_bytes = 65_535, "65535"),
            ("large chunks", |i| i.chunk_bytes = (16 << 20) + 1, "16777217"),
            ("no chunks", |i| i.chunk_bytes = 0, "chunks of 0"),
            ("reuses twice", |i| i.reuses = vec![Hash::of(b"a"); 2], "not in order"),
            ("component order", |i| i.components.swap(0, 1), "not in order"),
            ("component twice", |i| i.components[2].name = "model".into(), "not in order"),
            ("component name", |i| i.components[0].name.clear(), "component \"\""),
            ("component name", |i| i.components[3].name = "x".repeat(1025), "1025"),
            ("owner", |i| i.components[0].owner.clear(), "its owner"),
            ("volatile", |i| i.components[1].durability = Durability::Volatile, "no durable"),
        ],
    );
}

#[test]
fn tensors() {
    check(
        sound,
        &[
            ("component", |i| i.tensors[1].component = 4, "no durable component"),
            ("component", |i| i.tensors[7].component = u32::MAX, "no durable component"),
            ("name twice", |i| i.tensors[2].name = "a".into(), "out of order"),
            ("order", |i| i.tensors[1].name = "b".into(), "out of order"),
            ("component order", |i| i.tensors[0].component = 1, "out of order"),
            ("long name", |i| i.tensors[7].name = "\u{1f600}".repeat(16385), "65540"),
            ("dimensions", |i| i.tensors[1].shape = vec![1; 33], "33 dimensions"),
            ("blob", |i| (i.tensors[0].shape, i.shards[0].extent) = twice(5), "BLOB"),
            ("blob", |i| i.tensors[1].dtype = Dtype::Blob, "BLOB of 0"),
            ("tied to itself", |i| i.tensors[TIED].tied_to = Some(5), "tied wrongly"),
            ("tied forward", |i| i.tensors[TIED].tied_to = Some(6), "tied wrongly"),
            ("tied to nothing", |i| i.tensors[TIED].tied_to = Some(u32::MAX - 1), "tied wrongly"),
            ("tied across", |i| i.tensors[TIED].tied_to = Some(0), "tied wrongly"),
            ("tied dtype", |i| i.tensors[TIED].dtype = Dtype::I16, "tied wrongly"),
            ("tied shape", |i| i.tensors[TIED].shape = vec![3, 4], "tied wrongly"),
            ("tied to a tied one", chain, "tied wrongly"),
            ("tied with shards", |i| i.tensors[SHARDED].tied_to = Some(3), "tied wrongly"),
        ],
    );
}

fn twice(size: u64) -> (Vec<u64>, NdBox) {
    (vec![size, 1], NdBox::whole(&[size, 1]))
}

fn chain(index: &mut ShardIndex) {
    let mut other = index.tensors[TIED].clone();
    (other.name, other.tied_to) = ("tied again".into(), Some(TIED as u32));
    index.tensors.insert(TIED + 1, other);
}

#[test]
fn shards_and_chunks() {
    check(
        sound,
        &[
            ("outside", |i| i.shards[4].extent.offsets[0] = 3, "sticks out"),
            ("outside", |i| i.shards[4].extent.offsets[0] = u64::MAX, "sticks out"),
            ("outside", |i| i.shards[4].extent.sizes[1] = u64::MAX, "sticks out"),
            ("overflow", |i| huge(i, &[1 << 63, 4]), "overflow"),
            ("overflow in bits", |i| huge(i, &[1 << 61]), "overflow"),
            ("more than there is", |i| huge(i, &[1 << 40]), "does not fit its chunks"),
            ("empty names a chunk", |i| i.shards[2].first_chunk = 1, "empty shard"),
            ("empty names a place", |i| i.shards[2].chunk_offset = 1, "empty shard"),
            ("gap", |i| i.shards[1].chunk_offset += 1, "do not fill it"),
            ("overlap", |i| i.shards[1].chunk_offset -= 1, "do not fill it"),
            ("same place", |i| i.shards[1].chunk_offset = 0, "do not fill it"),
            ("no such chunk", |i| i.shards[1].first_chunk = 99, "do not fill it"),
            ("no such chunk", |i| i.shards[1].first_chunk = u32::MAX, "do not fill it"),
            ("large in the middle", |i| i.shards[5].chunk_offset = 4, "does not fit its chunks"),
            ("large begins early", |i| i.shards[5].first_chunk = 0, "does not fit its chunks"),
            ("large ends late", |i| i.shards[5].first_chunk = 99, "does not fit its chunks"),
            ("large ends late", |i| i.shards[5].first_chunk = u32::MAX, "does not fit its chunks"),
            ("two owners", |i| i.shards[6].first_chunk = 1, "does not fit its chunks"),
            ("unused chunk", |i| i.chunks.push(i.chunks[0]), "belongs to no shard"),
            ("not a chunk long", |i| i.chunks[1].decoded_bytes -= 1, "does not fit its chunks"),
            ("too long", |i| i.chunks[1].decoded_bytes += 1, "wrong size"),
            ("empty chunk", |i| i.chunks[0].decoded_bytes = 0, "wrong size"),
            ("raw is as long", |i| i.chunks[4].codec = Codec::Raw, "wrong size"),
            ("zero stores", |i| i.chunks[1].stored_bytes = 1, "wrong size"),
            ("in the header", |i| i.chunks[0].offset = 15, "outside of its pack"),
            (
                "in the trailer",
                |i| i.chunks[0].offset = i.packs[0].bytes - 64,
                "outside of its pack",
            ),
            ("behind", |i| i.chunks[0].offset = i.packs[0].bytes, "outside of its pack"),
            ("far behind", |i| i.chunks[0].offset = u64::MAX, "outside of its pack"),
            ("nearly", |i| i.chunks[0].offset = u64::MAX - 64, "outside of its pack"),
            ("no such pack", |i| i.chunks[0].pack = 1, "outside of its pack"),
        ],
    );
}

/// The index of the second save: row NEAR is a delta of a base, row STEP of a row before it and two behind it.
fn with_deltas() -> ShardIndex {
    corpus().indexes[2].clone()
}

const NEAR: u32 = 1;
const STEP: u32 = 5;
const CAST: u32 = 8;

#[test]
fn deltas() {
    let index = with_deltas();
    let (rows, base) = (index.chunks.len() as u32, index.chunks.len() as u32);
    let operands = [(NEAR, vec![base]), (STEP, vec![4, 6, 7]), (CAST, vec![4, 6])];
    assert_eq!(index.operands, operands.into(), "{rows}");
    let made_of = |row: u32, of: &[u32]| {
        let of = of.to_vec();
        move |i: &mut ShardIndex| drop(i.operands.insert(row, of.clone()))
    };
    type BreakOne = Box<dyn Fn(&mut ShardIndex)>;
    let cases: Vec<(&str, BreakOne, &str)> = vec![
        ("none", Box::new(|i| drop(i.operands.remove(&NEAR))), "3 deltas, 2 have operands"),
        ("of nothing", Box::new(made_of(NEAR, &[])), "no delta of its operands"),
        ("of many", Box::new(made_of(STEP, &[4, 6, 7, 4])), "no delta of its operands"),
        ("of no row", Box::new(made_of(NEAR, &[u32::MAX])), "no delta of its operands"),
        ("of no delta", Box::new(made_of(4, &[6])), "no delta of its operands"),
        ("of another size", Box::new(made_of(STEP, &[0, 6, 7])), "no delta of its operands"),
        ("of itself", Box::new(made_of(STEP, &[STEP, 6, 7])), "made of each other"),
        (
            "in a circle",
            Box::new(move |i| {
                i.operands.insert(NEAR, vec![base, STEP]);
                i.operands.insert(STEP, vec![4, NEAR]);
            }),
            "made of each other",
        ),
        ("a base of nothing", Box::new(|i| i.bases.push(i.bases[0])), "the base of nothing"),
        ("unused", Box::new(made_of(NEAR, &[4])), "the base of nothing"),
        ("outside", Box::new(|i| i.bases[0].offset = u64::MAX), "outside of its pack"),
        (
            "raw",
            Box::new(|i| i.chunks[NEAR as usize].codec = Codec::Zstd),
            "no delta of its operands",
        ),
    ];
    for (what, damage, expected) in cases {
        let mut damaged = index.clone();
        damage(&mut damaged);
        let stored = forge::seal_of(&damaged)(&forge::columns(&damaged));
        let error = ShardIndex::decode(&stored).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
        assert!(error.message().contains(expected), "{what}: {error}");
        assert_eq!(damaged.encode().expect_err(what).kind(), ErrorKind::Invalid, "{what}");
    }
}

/// A chain of `depth` deltas, each of the one before.
fn chained(depth: u32) -> ShardIndex {
    let mut index = with_deltas();
    let (base, rows) = (index.bases[0], index.chunks.len() as u32);
    let delta = index.chunks[NEAR as usize];
    index.bases = vec![delta; depth as usize - 1];
    index.bases.push(base);
    index.operands.insert(NEAR, vec![rows]);
    index.operands.extend((0..depth - 1).map(|i| (rows + i, vec![rows + i + 1])));
    index
}

#[test]
fn chains_end() {
    for depth in [2, 200, 256] {
        let index = chained(depth);
        assert!(ShardIndex::decode(&index.encode().unwrap()).unwrap() == index, "{depth}");
    }
    refused("too deep", &chained(257), "more than 256 deep");
    refused("far too deep", &chained(100_000), "more than 256 deep");
}

fn huge(index: &mut ShardIndex, shape: &[u64]) {
    index.tensors[ZEROS].shape = shape.to_vec();
    index.shards[5].extent = NdBox::whole(shape);
}

#[test]
fn packs() {
    check(
        reusing,
        &[
            ("twice", |i| i.packs.push(i.packs[1].clone()), "named twice"),
            ("nowhere", |i| i.reuses.clear(), "reused from nowhere"),
            ("not new", |i| i.packs[0].is_new = false, "does not belong"),
            ("new", |i| i.packs[1].is_new = true, "does not belong"),
            ("another folder", |i| i.packs[1].object = "saves/x.pack".into(), "does not belong"),
            ("another ending", |i| i.packs[1].object = "packs/x.idx".into(), "does not belong"),
            ("up", |i| i.packs[1].object = "packs/../../x.pack".into(), "plain path"),
            ("absolute", |i| i.packs[1].object = "/packs/x.pack".into(), "plain path"),
            ("empty part", |i| i.packs[1].object = "packs//x.pack".into(), "plain path"),
            ("backslash", |i| i.packs[1].object = "packs/a\\x.pack".into(), "plain path"),
            ("NUL", |i| i.packs[1].object = "packs/\0.pack".into(), "plain path"),
            ("nothing", |i| i.packs[1].object.clear(), "plain path"),
            ("long", |i| i.packs[1].object = format!("packs/{}.pack", "x".repeat(512)), "523"),
            ("overflow", |i| i.packs.iter_mut().for_each(|p| p.bytes = u64::MAX), "overflow"),
        ],
    );
}

/// A tensor whose two shards, of the same rank, overlap.
#[test]
fn shards_of_one_rank_overlap() {
    let shards = |a: Range<u64>, b: Range<u64>| {
        let part = |range: &Range<u64>| NdBox {
            offsets: vec![range.start],
            sizes: vec![range.end - range.start],
        };
        let bytes = |range: &Range<u64>| vec![1; (range.end - range.start) as usize];
        let mut index = draft(0, 1, vec![(part(&a), bytes(&a)), (part(&b), bytes(&b))]);
        index.metadata.clear();
        index
    };
    shards(0..4, 4..8).encode().unwrap();
    shards(4..8, 0..4).encode().unwrap();
    refused("overlap", &shards(0..5, 4..8), "overlap");
    refused("the same", &shards(0..4, 0..4), "overlap");
}

/// The index of a rank that holds `shards` of the tensor `x` of 8 bytes.
fn draft(rank: u32, world_size: u32, shards: Vec<(NdBox, Vec<u8>)>) -> ShardIndex {
    let tensor = DraftTensor {
        component: 0,
        name: "x".into(),
        dtype: Dtype::U8,
        shape: vec![8],
        tied_to: None,
        shards,
    };
    let draft = Draft {
        run: corpus::run(),
        save: lastgood_format::key::SaveKey { attempt: 1, step: 1, generation: 0 },
        rank,
        world_size,
        parent: None,
        reuses: Vec::new(),
        components: vec![component("model", Durability::Durable)],
        tensors: vec![tensor],
        metadata: [("k".to_owned(), "v".to_owned())].into(),
        deltas: [].into(),
    };
    draft.build(&Stored::new()).0
}

fn manifest(indexes: &[ShardIndex]) -> Result<Manifest> {
    let all: Vec<_> = indexes.iter().map(|index| (index.clone(), 1, Hash::of(b"index"))).collect();
    Manifest::build(&all)
}

/// Four ranks, each with two bytes of eight.
fn ranks() -> Vec<ShardIndex> {
    let part = |rank: u64| NdBox { offsets: vec![2 * rank], sizes: vec![2] };
    (0..4).map(|rank| draft(rank, 4, vec![(part(rank.into()), vec![1, 2])])).collect()
}

#[test]
fn what_ranks_must_agree_on() {
    let built = manifest(&ranks()).unwrap();
    assert_eq!((built.tensors, built.bytes, built.world_size), (1, 8, 4));
    type BreakAll = fn(&mut Vec<ShardIndex>);
    let cases: &[(&str, BreakAll, &str)] = &[
        ("none", |all| all.clear(), "at least one"),
        ("one is missing", |all| all.truncate(3), "3 shard indexes"),
        ("wrong order", |all| all.swap(1, 2), "not ranks 0 to 3"),
        ("twice", |all| all[3] = all[2].clone(), "not ranks 0 to 3"),
        ("world size", |all| all[1].world_size = 5, "not ranks 0 to 3"),
        ("step", |all| all[1].save.step = 2, "not ranks 0 to 3"),
        ("generation", |all| all[1].save.generation = 2, "not ranks 0 to 3"),
        ("attempt", |all| all[1].save.attempt = 2, "not ranks 0 to 3"),
        ("run", |all| all[1].run = "other".parse().unwrap(), "not ranks 0 to 3"),
        ("dtype", |all| all[2].tensors[0].dtype = Dtype::I8, "rank 2 says I8"),
        ("shape", |all| all[2].tensors[0].shape = vec![9], "rank 2 says U8 of [9]"),
        ("owner", |all| all[3].components[0].owner = "x".into(), "differ on owner"),
        ("overlap", |all| all[3].shards[0].extent.offsets[0] = 5, "overlap"),
        ("pack sizes", |all| all.iter_mut().for_each(|i| i.packs[0].bytes = u64::MAX), "overflow"),
    ];
    for (what, damage, expected) in cases {
        let mut all = ranks();
        damage(&mut all);
        let error = manifest(&all).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
        assert!(error.message().contains(expected), "{what}: {error}");
    }
    // A gap is no rule of the format: who restores it sees it.
    let mut all = ranks();
    all[3] = draft(3, 4, Vec::new());
    manifest(&all).unwrap();
    let other = Component { name: "other".into(), ..all[0].components[0].clone() };
    all[3].components.push(other);
    manifest(&all).unwrap();
}
