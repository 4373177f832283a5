use std::collections::BTreeMap;

use lastgood_format::chunk::Codec;
use lastgood_format::index::{Chunk, Pack, ShardIndex};
use lastgood_format::key::SaveKey;

use super::*;
use crate::state::{Capture, Durability, World};
use crate::{Dtype, Hash};

const BYTES: usize = 100_000;

fn numbers(seed: u32) -> Vec<u8> {
    let number =
        |i: u32| 0.01 + (i.wrapping_mul(2_654_435_761) >> 12) as f32 * 1e-8 + seed as f32 * 1e-9;
    (0..BYTES as u32 / 4).flat_map(|i| number(i).to_le_bytes()).collect()
}

fn planned(data: &[u8], fill: &mut Arena) -> Arc<Plan> {
    let mut capture = Capture::new(World::ALONE);
    let mut part = capture.component("m", "t", Durability::Durable).unwrap();
    part.tensor("w", Dtype::F32, &[BYTES as u64 / 4], data).unwrap();
    let plan = Plan::new(&capture, 64 << 10).unwrap();
    fill.fill(&capture, &plan, |_, _| Ok(())).unwrap();
    Arc::new(plan)
}

/// A base whose rows are chunks of `data`, deltas of others if `linked`.
fn base(data: &[u8], linked: bool) -> Arc<Base> {
    let codec = if linked { Codec::Delta } else { Codec::Raw };
    let chunk = |bytes: &[u8]| Chunk {
        hash: Hash::of(bytes),
        decoded_bytes: bytes.len() as u32,
        stored_bytes: bytes.len() as u32,
        codec,
        pack: 0,
        offset: 16,
    };
    let index = ShardIndex {
        run: "r".parse().unwrap(),
        save: SaveKey { attempt: 1, step: 1, generation: 0 },
        rank: 0,
        world_size: 1,
        parent: None,
        reuses: Vec::new(),
        chunk_bytes: 64 << 10,
        components: Vec::new(),
        tensors: Vec::new(),
        shards: Vec::new(),
        chunks: data.chunks(64 << 10).map(chunk).collect(),
        bases: data.chunks(64 << 10).filter(|_| linked).map(chunk).collect(),
        operands: (0..2).filter(|_| linked).map(|row| (row, vec![row + 2])).collect(),
        packs: vec![Pack { object: "packs/x.pack".into(), bytes: 1 << 20, is_new: true }],
        metadata: BTreeMap::new(),
    };
    Arc::new(Base::new(Hash::of(b"checkpoint"), [&index]))
}

/// Kept memory that holds `held`, of a checkpoint that holds `committed`.
fn deltas(held: &[u8], committed: &[u8], number: u64) -> Deltas {
    deltas_of(held, &base(committed, false), number)
}

fn deltas_of(held: &[u8], base: &Arc<Base>, number: u64) -> Deltas {
    let mut arena = Arena::new(u64::MAX, None);
    let plan = planned(held, &mut arena);
    let kept = Kept { checkpoint: base.checkpoint, plan: Arc::clone(&plan), arena };
    Deltas::new(&plan, Some(&kept), Some(base), (number, 8))
}

#[test]
fn memory_that_is_not_what_was_committed_is_not_relied_on() {
    let (before, after) = (numbers(0), numbers(1));
    let (first, level) = (&after[..64 << 10], (4, 1));
    let held = deltas(&before, &before, 1);
    let delta = held.of(0, first, level, (first.len(), None)).unwrap().unwrap();
    assert!(delta.stored.len() * 2 < first.len(), "{}", delta.stored.len());
    assert_eq!(delta.rows, [OperandRow::Base(0)]);
    for bit in [0, 12_345, (64 << 10) * 8 - 1] {
        let mut rotten = before.clone();
        rotten[bit / 8] ^= 1 << (bit % 8);
        assert!(
            deltas(&rotten, &before, 1).of(0, first, level, (first.len(), None)).unwrap().is_none(),
            "bit {bit}"
        );
        // The other chunk is as it was.
        let second = &after[64 << 10..];
        assert!(
            deltas(&rotten, &before, 1)
                .of(1, second, level, (second.len(), None))
                .unwrap()
                .is_some()
        );
    }
}

#[test]
fn every_chunk_is_stored_whole_once_in_a_chain() {
    let (before, after) = (numbers(0), numbers(1));
    let parts = [&after[..64 << 10], &after[64 << 10..]];
    for linked in [true, false] {
        let base = base(&before, linked);
        for (row, bytes) in parts.into_iter().enumerate() {
            let whole = (0..16u64).filter(|number| {
                let deltas = deltas_of(&before, &base, *number);
                deltas.of(row, bytes, (4, 1), (bytes.len(), None)).unwrap().is_none()
            });
            // What is whole already begins a chain.
            assert_eq!(whole.count(), if linked { 2 } else { 0 }, "row {row}");
        }
    }
}
