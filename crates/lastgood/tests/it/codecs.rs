//! What of a state is stored how, and that it comes back to the bit.

use std::collections::BTreeSet;

use lastgood::restore::Selector;
use lastgood::save::{Compression, Mode, SaveOptions};
use lastgood::state::{Durability, Targets, World};
use lastgood::{Dtype, Repository, Run, RunOptions};
use lastgood_format::chunk::Codec;

use crate::fixture::{bytes, in_memory, options, quick, run_name};

/// Numbers with noise in their digits and exponents that are alike; every special number is among them.
fn numbers(count: usize) -> Vec<f32> {
    let special = [f32::NAN, f32::from_bits(0xffa0_0001), -0.0, 1e-45, f32::INFINITY, f32::MIN];
    let noise = bytes(5, count * 2);
    let number = |i: usize| {
        let digits = u16::from_le_bytes([noise[2 * i], noise[2 * i + 1]]);
        (f32::from(digits) / 65536.0 - 0.5) * 0.02
    };
    let number = |i: usize| if i % 1000 < 6 { special[i % 1000] } else { number(i) };
    (0..count).map(number).collect()
}

const COUNT: usize = 120_001;

/// A tensor of each width, and small ones that share a chunk with bytes of another kind.
fn tensors() -> Vec<(&'static str, Dtype, Vec<u8>)> {
    let numbers = numbers(COUNT);
    let single: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let double: Vec<u8> = numbers.iter().flat_map(|n| f64::from(*n).to_le_bytes()).collect();
    let half: Vec<u8> = single.chunks_exact(4).flat_map(|n| [n[2], n[3]]).collect();
    vec![
        ("double", Dtype::F64, double),
        ("half", Dtype::Bf16, half),
        ("noise", Dtype::U8, bytes(9, 100_000)),
        ("odd", Dtype::U8, bytes(3, 1001)),
        ("single", Dtype::F32, single.clone()),
        ("small", Dtype::F32, single[..20_000].to_vec()),
        ("text", Dtype::U8, b"the same again; ".repeat(10_000)),
        ("zeros", Dtype::F32, vec![0; 200_000]),
    ]
}

fn shape(dtype: Dtype, data: &[u8]) -> [u64; 1] {
    [data.len() as u64 * 8 / dtype.bits()]
}

fn saved(compression: Compression) -> (Repository, u64) {
    let (store, repository) = in_memory();
    let save = SaveOptions { compression, ..quick() };
    let options = RunOptions { save, ..options(World::ALONE, "a") };
    let mut run = Run::open(&repository, &run_name(), options).unwrap();
    let tensors = tensors();
    run.save(1, Mode::Sync, |capture| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        for (name, dtype, data) in &tensors {
            part.tensor(name, *dtype, &shape(*dtype, data), data)?;
        }
        Ok(())
    })
    .unwrap();
    run.close().unwrap();
    let packs = store.keys().into_iter().filter(|key| key.ends_with(".pack"));
    let bytes = packs.filter_map(|key| store.peek(&key)).map(|b| b.len() as u64).sum();
    (repository, bytes)
}

#[test]
fn every_codec_is_chosen_where_it_is_the_smallest_and_gives_every_bit_back() {
    let (_, raw) = saved(Compression::Off);
    let (repository, stored) = saved(Compression::Zstd(1));
    assert!(stored * 100 < raw * 75, "{stored} of {raw}");
    let ledger = repository.existing(&run_name()).unwrap();
    let newest = ledger.history().checkpoints().last().unwrap().id;
    let contents = repository.contents(&ledger, &newest).unwrap();
    let index = &contents.indexes()[0];
    let codecs = |name: &str| -> BTreeSet<Codec> {
        let tensor = index.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        let shard = &index.shards[tensor.shards.start as usize];
        [index.chunks[shard.first_chunk as usize].codec].into()
    };
    for (name, codec) in [
        ("double", Codec::Planes),
        ("half", Codec::Planes),
        ("noise", Codec::Raw),
        ("single", Codec::Planes),
        ("text", Codec::Zstd),
        ("zeros", Codec::Zero),
    ] {
        assert_eq!(codecs(name), [codec].into(), "{name}");
    }
    let mut run = Run::open(&repository, &run_name(), options(World::ALONE, "b")).unwrap();
    let wanted = tensors();
    let mut found: Vec<Vec<u8>> =
        wanted.iter().map(|(_, _, data)| vec![0xee; data.len()]).collect();
    let mut targets = Targets::new(World::ALONE);
    let mut slots = targets.component("m", "t", Durability::Durable).unwrap();
    for ((name, dtype, _), data) in wanted.iter().zip(&mut found) {
        let shape = shape(*dtype, data);
        slots.tensor(name, *dtype, &shape, data).unwrap();
    }
    run.restore_at(&Selector::Latest, targets).unwrap();
    for ((name, _, data), found) in wanted.iter().zip(&found) {
        assert!(data == found, "{name}");
    }
}
