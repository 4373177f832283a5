//! Saves as deltas of the one before: smaller, and every one of them comes back to the bit.

use std::collections::BTreeMap;

use lastgood::restore::{Way, costs};
use lastgood::save::{Compression, Mode, SaveOptions};
use lastgood::state::{Capture, Durability, Targets, World};
use lastgood::{Dtype, ErrorKind, Hash, Repository, Result, Run, RunOptions};
use lastgood_format::chunk::Codec;
use lastgood_format::index::ShardIndex;

use crate::fixture::{bytes, in_memory, options, quick, run_name, tapped};
use crate::tap::{Act, Op};

const CHAIN: u32 = 4;

type Tensors = BTreeMap<String, (Dtype, Vec<u8>)>;

fn open(repository: &Repository, world: World, incarnation: &str) -> Run {
    let save = SaveOptions { compression: Compression::Delta { chain: CHAIN }, ..quick() };
    let options = RunOptions { save, ..options(world, incarnation) };
    Run::open(repository, &run_name(), options).unwrap()
}

fn shape(dtype: Dtype, data: &[u8]) -> [u64; 1] {
    [data.len() as u64 * 8 / dtype.bits()]
}

fn declare<'a>(capture: &mut Capture<'a>, tensors: &'a Tensors) -> Result<()> {
    let mut part = capture.component("m", "t", Durability::Durable)?;
    for (name, (dtype, data)) in tensors {
        match dtype {
            Dtype::Blob => part.blob(name, data)?,
            _ => part.tensor(name, *dtype, &shape(*dtype, data), data)?,
        }
    }
    Ok(())
}

/// Adds noise in the last digits to some of the numbers, which are of `width` bytes.
fn drift(data: &mut [u8], width: usize, one_in: u64, seed: u64) {
    let noise = bytes(seed, data.len() / width * 2);
    for (i, element) in data.chunks_exact_mut(width).enumerate() {
        let draw = u16::from_le_bytes([noise[2 * i], noise[2 * i + 1]]);
        if u64::from(draw).is_multiple_of(one_in) {
            element[0] = element[0].wrapping_add((draw >> 9) as u8 & 7);
        }
    }
}

fn start() -> Tensors {
    let numbers = |count: usize, seed: u64| -> Vec<u8> {
        let noise = bytes(seed, count * 2);
        let pairs = noise.as_chunks::<2>().0.iter();
        let number = |pair: &[u8; 2]| f32::from(u16::from_le_bytes(*pair)) / 3e6 - 0.01;
        pairs.flat_map(|pair| number(pair).to_le_bytes()).collect()
    };
    BTreeMap::from([
        ("dense".into(), (Dtype::F32, numbers(70_000, 1))),
        ("frozen".into(), (Dtype::F32, numbers(40_000, 2))),
        ("half".into(), (Dtype::Bf16, numbers(50_000, 3))),
        ("noise".into(), (Dtype::U8, bytes(4, 70_000))),
        ("odd".into(), (Dtype::U8, bytes(5, 1001))),
        ("sparse".into(), (Dtype::F64, numbers(40_000, 6))),
        ("state".into(), (Dtype::Blob, b"where the loader is: 1".to_vec())),
        ("twin".into(), (Dtype::F32, numbers(70_000, 1))),
        ("zeros".into(), (Dtype::F32, vec![0; 200_000])),
    ])
}

/// What a step makes of the state: of every kind of change one.
fn advance(tensors: &mut Tensors, step: u64) {
    let of = |tensors: &mut Tensors, name: &str| tensors.get_mut(name).unwrap().1.clone();
    for (name, width, one_in) in
        [("dense", 4, 1), ("twin", 4, 1), ("half", 2, 40), ("sparse", 8, 900)]
    {
        // The twins drift alike, but for every third step.
        let seed = if name == "twin" && step.is_multiple_of(3) { 77 + step } else { 1000 + step };
        let mut data = of(tensors, name);
        drift(&mut data, width, one_in, seed);
        tensors.get_mut(name).unwrap().1 = data;
    }
    tensors.get_mut("noise").unwrap().1 = bytes(step, 70_000);
    // A value changes its size, and with it where small tensors lie; another comes and goes.
    tensors.get_mut("state").unwrap().1 = vec![b'x'; (step * 37 % 400) as usize + 1];
    match step % 5 {
        2 => drop(tensors.insert("passing".into(), (Dtype::F32, bytes(8, 4 * 30_000)))),
        _ => drop(tensors.remove("passing")),
    }
}

fn index(repository: &Repository, id: &Hash) -> ShardIndex {
    let ledger = repository.existing(&run_name()).unwrap();
    repository.contents(&ledger, id).unwrap().indexes()[0].clone()
}

/// The state that `id` holds, which has the tensors of `like`; read outside of any attempt.
fn restored(repository: &Repository, id: &Hash, like: &Tensors) -> Result<Tensors> {
    let ledger = repository.existing(&run_name())?;
    let contents = repository.contents(&ledger, id)?;
    let mut found: Tensors = like
        .iter()
        .filter(|(_, (dtype, _))| *dtype != Dtype::Blob)
        .map(|(name, (dtype, data))| (name.clone(), (*dtype, vec![0xee; data.len()])))
        .collect();
    let mut blob = Vec::new();
    let mut targets = Targets::new(World::ALONE);
    let mut slots = targets.component("m", "t", Durability::Durable)?;
    for (name, (dtype, data)) in &mut found {
        let shape = shape(*dtype, data);
        slots.tensor(name, *dtype, &shape, data)?;
    }
    slots.blob("state", |bytes| {
        blob = bytes;
        Ok(())
    })?;
    repository.restore(&contents, targets)?;
    found.insert("state".into(), (Dtype::Blob, blob));
    Ok(found)
}

/// Saves `steps` steps, and gives the state of each.
fn train(
    run: &mut Run,
    tensors: &mut Tensors,
    steps: std::ops::Range<u64>,
) -> Vec<(Hash, Tensors)> {
    steps
        .map(|step| {
            advance(tensors, step);
            let handle = run.save(step, Mode::Sync, |capture| declare(capture, tensors)).unwrap();
            (handle.wait().unwrap(), tensors.clone())
        })
        .collect()
}

/// What is said of a checkpoint's cost adds up.
fn check_costs(repository: &Repository, id: &Hash) {
    let ledger = repository.existing(&run_name()).unwrap();
    let contents = repository.contents(&ledger, id).unwrap();
    let costs = costs(&contents);
    let all = || costs.values().flatten();
    let bytes: u64 = all().map(|(_, cost)| cost.bytes).sum();
    assert_eq!(bytes, contents.manifest().bytes);
    let written = all().filter(|(way, _)| matches!(way, Way::Written(_)));
    let stored: u64 = written.map(|(_, cost)| cost.stored_bytes).sum();
    let new = contents.manifest().new_bytes;
    assert!(stored < new && new < stored + 4000, "{stored} of {new}");
    let depth = all().map(|(_, cost)| cost.depth).max();
    assert_eq!(depth > Some(0), !contents.indexes()[0].operands.is_empty());
}

#[test]
fn every_checkpoint_of_a_chain_comes_back_to_the_bit() {
    let (store, repository) = in_memory();
    let mut tensors = start();
    let mut run = open(&repository, World::ALONE, "a");
    let mut saved = train(&mut run, &mut tensors, 1..14);
    run.close().unwrap();
    // The next process has nothing in memory, and what it reuses is a delta already.
    let mut run = open(&repository, World::ALONE, "b");
    let nothing = |(): &mut (), targets: &mut Targets<'_>| {
        targets.partial();
        Ok(())
    };
    run.restore(&mut (), nothing).unwrap().unwrap();
    saved.extend(train(&mut run, &mut tensors, 14..20));
    run.close().unwrap();
    let ledger = repository.existing(&run_name()).unwrap();
    let (mut deltas, mut deepest) = (0, 0);
    for (id, tensors) in &saved {
        let found = restored(&repository, id, tensors).unwrap();
        assert!(found == *tensors, "{id}");
        repository.verify(&ledger, id, &|_, _| {}).unwrap();
        check_costs(&repository, id);
        let index = index(&repository, id);
        deltas += index.operands.len();
        deepest = deepest.max(index.bases.len());
    }
    assert!(deltas > 200 && deepest > 10, "{deltas} {deepest}");
    let packs = store.keys().into_iter().filter(|key| key.ends_with(".pack"));
    let bytes: usize = packs.filter_map(|key| store.peek(&key)).map(|b| b.len()).sum();
    let raw: usize =
        saved.iter().flat_map(|(_, tensors)| tensors.values()).map(|(_, b)| b.len()).sum();
    assert!(bytes * 3 < raw, "{bytes} of {raw}");
}

/// Whatever is damaged in what a checkpoint stands on, its own packs or those of the chain: it is told, or the state
/// comes back to the bit.
#[test]
fn no_damage_in_a_chain_passes() {
    let (store, repository) = in_memory();
    let mut tensors = start();
    tensors.retain(|name, _| ["dense", "half", "odd", "state"].contains(&name.as_str()));
    let mut run = open(&repository, World::ALONE, "a");
    let step = |run: &mut Run, tensors: &mut Tensors, step: u64| {
        drift(&mut tensors.get_mut("dense").unwrap().1, 4, 1, step);
        drift(&mut tensors.get_mut("half").unwrap().1, 2, 30, step);
        let handle = run.save(step, Mode::Sync, |capture| declare(capture, tensors)).unwrap();
        handle.wait().unwrap()
    };
    let newest = (1..4).map(|n| step(&mut run, &mut tensors, n)).last().unwrap();
    run.close().unwrap();
    let index = index(&repository, &newest);
    assert!(!index.operands.is_empty() && index.packs.len() > 1, "{index:?}");
    let ledger = repository.existing(&run_name()).unwrap();
    let (mut told, mut harmless) = (0, 0);
    for pack in &index.packs {
        let key = format!("runs/test/{}", pack.object);
        let bytes = store.peek(&key).unwrap();
        let mut at = 3;
        while at < bytes.len() {
            store.tamper(&key, |pack| pack[at] ^= 1 << (at % 8));
            let verified = repository.verify(&ledger, &newest, &|_, _| {});
            match restored(&repository, &newest, &tensors) {
                Ok(found) => {
                    assert!(found == tensors, "{key}: byte {at} passed");
                    harmless += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                    assert!(verified.is_err(), "{key}: byte {at}: verified, and cannot be read");
                    told += 1;
                }
            }
            at += 1 + bytes.len() / 150;
        }
        store.tamper(&key, |pack| *pack = bytes.to_vec());
    }
    assert!(told > 100 && harmless < told, "{told} {harmless}");
    assert!(restored(&repository, &newest, &tensors).unwrap() == tensors);
    // A pack of the chain that is empty is told, whichever it is.
    for pack in &index.packs {
        let key = format!("runs/test/{}", pack.object);
        let bytes = store.peek(&key).unwrap();
        store.tamper(&key, Vec::clear);
        let error = restored(&repository, &newest, &tensors).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(&pack.object), "{error}");
        store.tamper(&key, |pack| *pack = bytes.to_vec());
    }
}

/// Saves of one tensor of which little changes: the codecs that chunks were written with, the deepest chain, and how often a
/// pack was read from.
fn little(steps: u64, lost: bool) -> (Vec<Codec>, u32, usize) {
    let (_, tap, repository) = tapped();
    if lost {
        tap.play(|call| match call.op {
            Op::Range => Act::Fail(ErrorKind::Unavailable),
            _ => Act::Pass,
        });
    }
    let mut run = open(&repository, World::ALONE, "a");
    let mut data = start()["half"].1.clone();
    data.truncate(3 * (64 << 10));
    let (mut codecs, mut deepest, mut last) = (Vec::new(), 0, None);
    for step in 1..=steps {
        drift(&mut data, 2, 100, step);
        let tensors = Tensors::from([("half".into(), (Dtype::Bf16, data.clone()))]);
        let saved = run.save(step, Mode::Sync, |capture| declare(capture, &tensors)).unwrap();
        let id = saved.wait().unwrap();
        let index = index(&repository, &id);
        if step > 1 {
            codecs.extend(index.chunks.iter().map(|chunk| chunk.codec));
        }
        deepest = deepest.max(index.depths().into_values().max().unwrap_or(0));
        last = Some((id, tensors));
    }
    run.close().unwrap();
    let reads = tap.calls().iter().filter(|call| call.op == Op::Range).count();
    tap.pass();
    let (id, tensors) = last.unwrap();
    let ledger = repository.existing(&run_name()).unwrap();
    repository.verify(&ledger, &id, &|_, _| {}).unwrap();
    let contents = repository.contents(&ledger, &id).unwrap();
    let mut found = vec![0xee; data.len()];
    let mut targets = Targets::new(World::ALONE);
    let mut slots = targets.component("m", "t", Durability::Durable).unwrap();
    slots.tensor("half", Dtype::Bf16, &[data.len() as u64 / 2], &mut found).unwrap();
    repository.restore(&contents, targets).unwrap();
    assert!(found == tensors["half"].1);
    (codecs, deepest, reads)
}

#[test]
fn a_chain_of_small_changes_is_ended_by_a_delta_of_its_first_chunk() {
    let steps = 4 * u64::from(CHAIN);
    let (codecs, deepest, reads) = little(steps, false);
    let turns = codecs.len() / CHAIN as usize;
    assert!(codecs.iter().all(|codec| *codec == Codec::Delta), "{codecs:?}");
    assert!(deepest <= CHAIN + 1, "{deepest}");
    assert!((turns - 3..=turns + 3).contains(&reads), "{reads} reads, {turns} turns");
    // Where the first chunk cannot be read, chunks are stored whole.
    let (codecs, deepest, _) = little(steps, true);
    let whole = codecs.iter().filter(|codec| **codec != Codec::Delta).count();
    assert!(whole + 3 >= turns && deepest <= CHAIN, "{whole} of {turns}, {deepest}");
}
