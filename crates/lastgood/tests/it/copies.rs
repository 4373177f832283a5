//! Weights of bfloat16 beside the numbers of binary32 that they are a copy of take next to nothing, told or not.

use lastgood::save::{Compression, Mode, SaveOptions};
use lastgood::state::{Capture, Durability, Targets, World};
use lastgood::{Dtype, Hash, Repository, Result, Run, RunOptions};
use lastgood_format::delta::Rule;
use lastgood_store::MemoryStore;

use crate::fixture::{bytes, in_memory, options, quick, run_name};
use crate::predicted::rules;

/// The elements of each weight: two and a half, two, and less than one chunk of bfloat16.
const SIZES: [usize; 3] = [81_920, 65_536, 9_000];

/// Numbers as a training leaves them.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let bytes = bytes(seed, count * 4);
    let number = |four: &[u8; 4]| (u32::from_le_bytes(*four) >> 8) as f32 / (1 << 24) as f32 - 0.5;
    bytes.as_chunks::<4>().0.iter().map(number).collect()
}

fn stored(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The numbers next to them, of two the even one.
fn rounded(numbers: &[f32]) -> Vec<u8> {
    let nearest = |number: &f32| {
        let bits = number.to_bits();
        let up = u32::from(bits & 0xffff > 0x8000 || bits & 0x1_ffff == 0x1_8000);
        ((bits >> 16) + up) as u16
    };
    numbers.iter().flat_map(|number| nearest(number).to_le_bytes()).collect()
}

/// The upper halves alone.
fn cut(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| ((number.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

type State = Vec<(Vec<u8>, Vec<u8>)>;

fn state(seed: u64, copy: fn(&[f32]) -> Vec<u8>) -> State {
    let of = |(i, count): (u64, &usize)| {
        let numbers = numbers(seed * 100 + i, *count);
        (stored(&numbers), copy(&numbers))
    };
    (0..).zip(&SIZES).map(of).collect()
}

fn declare<'a>(capture: &mut Capture<'a>, state: &'a State, shape: &[u64]) -> Result<()> {
    // Names tell nothing, and the copies come first.
    let mut part = capture.component("a", "t", Durability::Durable)?;
    for (i, (_, copy)) in state.iter().enumerate() {
        let shape = [shape, &[copy.len() as u64 / 2]].concat();
        part.tensor(&format!("{i}"), Dtype::Bf16, &shape, copy)?;
    }
    let mut part = capture.component("b", "t", Durability::Durable)?;
    for (i, (numbers, _)) in state.iter().rev().enumerate() {
        part.tensor(&format!("x{i}"), Dtype::F32, &[numbers.len() as u64 / 4], numbers)?;
    }
    Ok(())
}

fn check(repository: &Repository, id: &Hash, state: &State) {
    let ledger = repository.existing(&run_name()).unwrap();
    let contents = repository.contents(&ledger, id).unwrap();
    // The copies alone: what they are made of is read for them.
    let mut found: Vec<Vec<u8>> = state.iter().map(|(_, copy)| vec![0xee; copy.len()]).collect();
    let mut targets = Targets::new(World::ALONE);
    targets.partial();
    let mut slots = targets.component("a", "t", Durability::Durable).unwrap();
    for (i, found) in found.iter_mut().enumerate() {
        let shape = [found.len() as u64 / 2];
        slots.tensor(&format!("{i}"), Dtype::Bf16, &shape, found).unwrap();
    }
    repository.restore(&contents, targets).unwrap();
    assert!(state.iter().zip(&found).all(|((_, copy), found)| copy == found));
    repository.verify(&ledger, id, &|_, _| {}).unwrap();
}

fn open(repository: &Repository, compression: Compression) -> Run {
    let save = SaveOptions { compression, ..quick() };
    let options = RunOptions { save, ..options(World::ALONE, "a") };
    Run::open(repository, &run_name(), options).unwrap()
}

/// Saves each state; gives of each save the bytes that it put and the casts in it.
fn saved(states: &[State], compression: Compression) -> Vec<(u64, usize)> {
    let (store, repository): (MemoryStore, Repository) = in_memory();
    let mut run = open(&repository, compression);
    let mut costs = Vec::new();
    for (step, state) in (1..).zip(states) {
        let handle = run.save(step, Mode::Sync, |capture| declare(capture, state, &[])).unwrap();
        let id = handle.wait().unwrap();
        check(&repository, &id, state);
        let ledger = repository.existing(&run_name()).unwrap();
        let casts = rules(&store, &repository, &id, 0);
        let casts = casts.iter().filter(|rule| **rule == Rule::Cast).count();
        costs.push((ledger.history().checkpoint(&id).unwrap().new_bytes, casts));
    }
    run.close().unwrap();
    costs
}

#[test]
fn a_copy_is_found_and_costs_next_to_nothing() {
    // A first save has no save before it, and the turn of a chunk to be stored whole is no matter: of each chain one.
    let states: Vec<State> = (1..=4).map(|seed| state(seed, rounded)).collect();
    let delta = Compression::Delta { chain: 2 };
    let with = saved(&states, delta);
    let truncated: Vec<State> = (1..=4).map(|seed| state(seed, cut)).collect();
    let without = saved(&truncated, delta);
    for (step, ((bytes, casts), (other, none))) in with.iter().zip(&without).enumerate() {
        // Four whole chunks of copies; half a chunk has no two chunks of its size to be a copy of.
        assert_eq!((*casts, *none), (4, 0), "save {step}");
        assert!(bytes + 4 * 40_000 < *other, "save {step}: {bytes}, otherwise {other}");
    }
    // What is not asked for does not wait for all of a capture.
    assert!(saved(&states[..2], Compression::Zstd(1)).iter().all(|(_, casts)| *casts == 0));
}

#[test]
fn a_copy_that_differs_here_and_there_costs_that() {
    let mut states: Vec<State> = (1..=3).map(|seed| state(seed, rounded)).collect();
    // Not where the sample is.
    for (_, copy) in &mut states[1] {
        (1001..copy.len()).step_by(2000).for_each(|at| copy[at] ^= 0x81);
    }
    let costs = saved(&states, Compression::Delta { chain: 8 });
    assert!(costs.iter().all(|(_, casts)| *casts == 4), "{costs:?}");
    assert!(costs[1].0 < costs[0].0 + 4 * 2000, "{costs:?}");
}

#[test]
fn another_shape_is_no_copy() {
    let (store, repository) = in_memory();
    let state = state(1, rounded);
    let mut run = open(&repository, Compression::Delta { chain: 8 });
    let handle = run.save(1, Mode::Sync, |capture| declare(capture, &state, &[1])).unwrap();
    let id = handle.wait().unwrap();
    assert!(rules(&store, &repository, &id, 0).is_empty());
}
