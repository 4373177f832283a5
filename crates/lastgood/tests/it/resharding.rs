//! Saved in any boxes by any number of ranks, restored in any boxes by any other number.

use lastgood::ledger::{Decision, Writer};
use lastgood::save::Mode;
use lastgood::state::{Durability, Targets, World};
use lastgood::{Dtype, Error, ErrorKind, Hash, Repository, Result, commit};
use lastgood_format::FORMAT_VERSION;
use lastgood_format::index::{Component, Shard, ShardIndex, Tensor};
use lastgood_format::key::{self, SaveKey};
use lastgood_format::layout::NdBox;
use lastgood_format::ledger::Kind;
use lastgood_format::manifest::{IndexRef, Manifest};
use lastgood_store::MemoryStore;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::fixture::{bytes, in_memory, open, open_all, open_alone, run_name, save_all};

/// The part of a tensor's bytes, by plain arithmetic on the index of each element.
fn cut_out(global: &[u8], shape: &[u64], part: &NdBox, width: usize) -> Vec<u8> {
    let mut out = Vec::new();
    if part.sizes.contains(&0) {
        return out;
    }
    let mut index = part.offsets.clone();
    loop {
        let mut element = 0;
        for d in 0..shape.len() {
            element = element * shape[d] + index[d];
        }
        out.extend(&global[element as usize * width..][..width]);
        let mut d = shape.len();
        loop {
            if d == 0 {
                return out;
            }
            d -= 1;
            index[d] += 1;
            if index[d] < part.offsets[d] + part.sizes[d] {
                break;
            }
            index[d] = part.offsets[d];
        }
    }
}

/// Cuts a whole tensor into boxes: each cut takes one box, and halves it in one dimension, at any
/// place, its ends included.
fn partition(shape: &[u64], cuts: &[(usize, usize, u64)]) -> Vec<NdBox> {
    let mut boxes = vec![NdBox::whole(shape)];
    for (which, dimension, place) in cuts {
        if shape.is_empty() {
            break;
        }
        let i = which % boxes.len();
        let d = dimension % shape.len();
        let place = place % (boxes[i].sizes[d] + 1);
        let mut upper = boxes[i].clone();
        upper.offsets[d] += place;
        upper.sizes[d] -= place;
        boxes[i].sizes[d] = place;
        boxes.push(upper);
    }
    boxes
}

#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    shape: Vec<u64>,
    writers: Vec<NdBox>,
    /// The rank that holds each of the writers' boxes.
    held_by: Vec<u32>,
    ranks: u32,
    readers: Vec<NdBox>,
}

fn cases() -> impl Strategy<Value = Case> {
    let dtype = proptest::sample::select(vec![Dtype::U8, Dtype::Bf16, Dtype::F32, Dtype::C64]);
    let shape = proptest::collection::vec(0u64..=9, 0..=5)
        .prop_flat_map(|small| {
            // Now and then one dimension is long, so that shards have many chunks.
            let dims = small.len();
            (Just(small), 0..=dims, proptest::sample::select(vec![0u64, 0, 700, 30_000]))
        })
        .prop_map(|(mut shape, d, long)| {
            if let Some(size) = shape.get_mut(d) {
                *size = (*size).max(long);
            }
            while shape.iter().product::<u64>() > 120_000 {
                let largest = shape.iter().position_max();
                shape[largest] /= 2;
            }
            shape
        });
    let cuts = || proptest::collection::vec((0..64usize, 0..5usize, 0..40_000u64), 0..8);
    (dtype, shape, cuts(), cuts(), 1..=4u32, proptest::collection::vec(0..64u32, 9)).prop_map(
        |(dtype, shape, writers, readers, ranks, held)| {
            let writers = partition(&shape, &writers);
            let readers = partition(&shape, &readers);
            let held_by = held.into_iter().take(writers.len()).map(|rank| rank % ranks).collect();
            Case { dtype, shape, writers, held_by, ranks, readers }
        },
    )
}

trait PositionMax {
    fn position_max(self) -> usize;
}

impl<'s, I: Iterator<Item = &'s u64>> PositionMax for I {
    fn position_max(self) -> usize {
        self.enumerate().max_by_key(|(_, size)| **size).map_or(0, |(i, _)| i)
    }
}

impl Case {
    fn global(&self) -> Vec<u8> {
        let elements = NdBox::whole(&self.shape).elements().unwrap();
        bytes(elements + 1, self.dtype.bytes_of(elements).unwrap() as usize)
    }

    fn width(&self) -> usize {
        self.dtype.bits() as usize / 8
    }

    fn save(&self, repository: &Repository, global: &[u8]) {
        let mut runs = open_all(repository, self.ranks, "save");
        save_all(&mut runs, 1, |capture| {
            let rank = capture.world().rank;
            let mut part = capture.component("m", "t", Durability::Durable)?;
            for (held, extent) in self.held_by.iter().zip(&self.writers) {
                if *held == rank {
                    let data = cut_out(global, &self.shape, extent, self.width());
                    part.shard("w", self.dtype, &self.shape, extent.clone(), data)?;
                }
            }
            Ok(())
        })
        .unwrap();
    }

    fn check(&self) -> std::result::Result<(), TestCaseError> {
        let (_store, repository) = in_memory();
        let global = self.global();
        self.save(&repository, &global);
        let ledger = repository.existing(&run_name()).unwrap();
        let id = ledger.history().checkpoints()[0].id;
        let contents = repository.contents(&ledger, &id).unwrap();
        // All boxes at once, so that chunks go to several targets; and each one alone.
        let mut together: Vec<Vec<u8>> = Vec::new();
        for extent in &self.readers {
            let expected = cut_out(&global, &self.shape, extent, self.width());
            let mut alone = vec![0xa5; expected.len()];
            let mut targets = Targets::new(World::ALONE);
            let mut slots = targets.component("m", "t", Durability::Durable).unwrap();
            slots.shard("w", self.dtype, &self.shape, extent.clone(), &mut alone).unwrap();
            repository.restore(&contents, targets).unwrap();
            prop_assert!(alone == expected, "{extent} differs");
            together.push(vec![0x5a; expected.len()]);
        }
        let mut targets = Targets::new(World::ALONE);
        let mut slots = targets.component("m", "t", Durability::Durable).unwrap();
        for (extent, memory) in self.readers.iter().zip(&mut together) {
            slots.shard("w", self.dtype, &self.shape, extent.clone(), memory).unwrap();
        }
        repository.restore(&contents, targets).unwrap();
        for (extent, found) in self.readers.iter().zip(&together) {
            let expected = cut_out(&global, &self.shape, extent, self.width());
            prop_assert!(*found == expected, "{extent} differs, together with others");
        }
        Ok(())
    }
}

#[test]
fn any_partition_into_any_other() {
    let config = Config { cases: 256, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&cases(), |case| case.check()).unwrap();
}

#[test]
fn rows_to_columns_to_blocks() {
    const SIDE: u64 = 600;
    let global = bytes(1, (SIDE * SIDE * 4) as usize);
    let shape = [SIDE, SIDE];
    let rows = |i: u64, n: u64| NdBox {
        offsets: vec![SIDE * i / n, 0],
        sizes: vec![SIDE * (i + 1) / n - SIDE * i / n, SIDE],
    };
    let columns = |i: u64, n: u64| {
        let NdBox { mut offsets, mut sizes } = rows(i, n);
        offsets.reverse();
        sizes.reverse();
        NdBox { offsets, sizes }
    };
    let block =
        |i: u64, _| NdBox { offsets: vec![300 * (i / 2), 300 * (i % 2)], sizes: vec![300; 2] };
    type Layout<'l> = (u32, &'l dyn Fn(u64, u64) -> NdBox);
    let layouts: [Layout<'_>; 4] = [(3, &rows), (7, &columns), (4, &block), (1, &rows)];
    let (_store, repository) = in_memory();
    for (step, pair) in (1..).zip(layouts.windows(2)) {
        let [(from, by), (to, into)] = pair else { unreachable!() };
        let mut runs = open_all(&repository, *from, &format!("save {step}"));
        save_all(&mut runs, step, |capture| {
            let rank = capture.world().rank;
            let extent = by(rank.into(), (*from).into());
            let data = cut_out(&global, &shape, &extent, 4);
            let mut part = capture.component("m", "t", Durability::Durable)?;
            part.shard("w", Dtype::F32, &shape, extent, data)
        })
        .unwrap();
        drop(runs);
        for rank in 0..*to {
            let extent = into(rank.into(), (*to).into());
            let expected = cut_out(&global, &shape, &extent, 4);
            let mut found = vec![0xee; expected.len()];
            let world = World { rank, size: *to };
            let mut run = open(&repository, world, &format!("restore {step}"));
            let restored = run
                .restore(&mut found, |found, targets| {
                    let mut slots = targets.component("m", "t", Durability::Durable)?;
                    slots.shard("w", Dtype::F32, &shape, extent.clone(), found)
                })
                .unwrap()
                .unwrap();
            assert_eq!(restored.step, step);
            assert!(found == expected, "step {step}, rank {rank} of {to}");
        }
    }
}

/// Saves the boxes `written` of a 4 by 4 tensor, one for each rank.
fn save_boxes(repository: &Repository, written: &[NdBox]) -> Result<Hash> {
    let mut runs = open_all(repository, written.len() as u32, "save");
    save_all(&mut runs, 1, |capture| {
        let extent = &written[capture.world().rank as usize];
        let data = vec![7; extent.elements().unwrap() as usize];
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.shard("w", Dtype::U8, &[4, 4], extent.clone(), data)
    })
}

/// Saves one chunk of 4 bytes, which forgeries name again and again.
fn save_row(repository: &Repository) {
    let mut runs = open_all(repository, 1, "save");
    save_all(&mut runs, 1, |capture| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.tensor("row", Dtype::U8, &[4], vec![7; 4])
    })
    .unwrap();
}

fn at(offsets: [u64; 2], sizes: [u64; 2]) -> NdBox {
    NdBox { offsets: offsets.into(), sizes: sizes.into() }
}

/// What a restore of `extent` says, with the proof that nothing was written.
fn refused(repository: &Repository, extent: &NdBox) -> Error {
    let mut run = open_alone(repository, "restore");
    let mut canary = vec![0xc5; extent.elements().unwrap() as usize];
    let error = run
        .restore(&mut canary, |memory, targets| {
            let mut slots = targets.component("m", "t", Durability::Durable)?;
            slots.shard("w", Dtype::U8, &[4, 4], extent.clone(), memory)
        })
        .unwrap_err();
    assert!(canary.iter().all(|byte| *byte == 0xc5), "{error}");
    error
}

#[test]
fn a_gap_is_never_committed() {
    let (store, repository) = in_memory();
    // The last row is nobody's.
    let error = save_boxes(&repository, &[at([0, 0], [2, 4]), at([2, 0], [1, 4])]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("m/w: no rank stores 4 of its elements"), "{error}");
    assert!(!store.keys().iter().any(|key| key.contains("/checkpoints/")), "{:?}", store.keys());
}

#[test]
fn a_gap_is_named_and_harms_no_checkpoint() {
    let (store, repository) = in_memory();
    save_row(&repository);
    // The last row is nobody's.
    let rows = [at([0, 0], [1, 4]), at([1, 0], [1, 4])];
    let id = forge(
        &repository,
        &[index_of(&store, 0, &rows), index_of(&store, 1, &[at([2, 0], [1, 4])])],
    );
    for (asked, gap) in [
        (at([0, 0], [4, 4]), at([3, 0], [1, 4])),
        (at([3, 3], [1, 1]), at([3, 3], [1, 1])),
        (at([1, 2], [3, 2]), at([3, 2], [1, 2])),
    ] {
        let error = refused(&repository, &asked);
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        let text = error.to_string();
        let expected = format!("m/w: asked for {asked}: no rank saved {gap} of it");
        assert!(text.contains(&expected), "{text}");
    }
    // Asking for what was never saved condemns nothing.
    let ledger = repository.existing(&run_name()).unwrap();
    let checkpoint = ledger.history().checkpoint(&id).unwrap();
    assert_eq!(checkpoint.standing, lastgood::ledger::Standing::Committed);
    let mut run = open_alone(&repository, "again");
    assert_eq!(run.attempt().from, Some(id));
    let mut found = vec![0; 12];
    run.restore(&mut found, |memory, targets| {
        let mut slots = targets.component("m", "t", Durability::Durable)?;
        slots.shard("w", Dtype::U8, &[4, 4], at([0, 0], [3, 4]), memory)
    })
    .unwrap()
    .unwrap();
    assert_eq!(found, [7; 12]);
}

#[test]
fn shards_that_overlap_are_never_committed() {
    let (store, repository) = in_memory();
    let error = save_boxes(&repository, &[at([0, 0], [3, 4]), at([2, 3], [2, 1])]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let text = error.to_string();
    assert!(text.contains("m/w") && text.contains("[2, 3]"), "{text}");
    assert!(!store.keys().iter().any(|key| key.contains("/checkpoints/")), "{:?}", store.keys());
    // Ranks that do not mean the same tensor.
    let mut runs = open_all(&repository, 2, "differ");
    let error = save_all(&mut runs, 2, |capture| {
        let dtype = if capture.world().rank == 0 { Dtype::U8 } else { Dtype::I8 };
        let rank = u64::from(capture.world().rank);
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.shard("w", dtype, &[2], NdBox { offsets: vec![rank], sizes: vec![1] }, vec![1])
    })
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("m/w: rank 0 says U8 of [2], rank 1 says I8"), "{error}");
}

#[test]
fn a_request_outside_of_the_tensor_is_refused() {
    let (_store, repository) = in_memory();
    save_boxes(&repository, &[at([0, 0], [4, 4])]).unwrap();
    let mut run = open_alone(&repository, "restore");
    for extent in [at([0, 1], [4, 4]), at([4, 0], [1, 1]), at([u64::MAX, 0], [2, 1])] {
        let mut memory = vec![0xc5; 16];
        let error = run
            .restore(&mut memory, |memory, targets| {
                let mut slots = targets.component("m", "t", Durability::Durable)?;
                slots.shard("w", Dtype::U8, &[4, 4], extent.clone(), memory)
            })
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("m/w"), "{error}");
        assert_eq!(memory, [0xc5; 16]);
    }
}

/// Commits `indexes` as they are, past every check that a commit makes.
fn forge(repository: &Repository, indexes: &[ShardIndex]) -> Hash {
    let first = &indexes[0];
    let mut ledger = repository.existing(&run_name()).unwrap();
    let refs = indexes.iter().map(|index| {
        let stored = index.encode().unwrap();
        repository.block_on(commit::publish(&ledger, index)).unwrap();
        IndexRef {
            rank: index.rank,
            object: key::index_in_run(&index.save, index.rank),
            bytes: stored.len() as u64,
            blake3: Hash::of(&stored),
        }
    });
    let manifest = Manifest {
        format: FORMAT_VERSION,
        kind: "checkpoint".into(),
        run: run_name(),
        attempt: first.save.attempt,
        step: first.save.step,
        generation: first.save.generation,
        world_size: first.world_size,
        parent: None,
        reuses: Vec::new(),
        tensors: 1,
        bytes: 0,
        new_bytes: 0,
        indexes: refs.collect(),
    };
    let (stored, checkpoint) = manifest.encode().unwrap();
    let object = key::manifest(&run_name(), &checkpoint);
    let store = std::sync::Arc::clone(repository.store());
    repository.block_on(store.put_if_absent(&object, stored.into())).unwrap();
    let writer = Writer { attempt: first.save.attempt, actor: "forger".into() };
    let kind = Kind::CheckpointCommitted {
        checkpoint,
        step: first.save.step,
        generation: 0,
        world_size: first.world_size,
        parent: None,
        reuses: Vec::new(),
        bytes: 0,
        new_bytes: 0,
    };
    let appended = repository
        .block_on(ledger.append(&writer, |_| Ok(Decision::Append(kind.clone()))))
        .unwrap();
    assert!(matches!(appended, lastgood::ledger::Appended::Committed(_)));
    checkpoint
}

/// A shard index of rank `rank` of 2 that says it holds `boxes` of a 4 by 4 tensor, in one chunk each.
fn index_of(store: &MemoryStore, rank: u32, boxes: &[NdBox]) -> ShardIndex {
    let model = store
        .keys()
        .into_iter()
        .filter(|key| key.ends_with(".idx"))
        .map(|key| ShardIndex::decode(&store.peek(&key).unwrap()).unwrap())
        .next()
        .unwrap();
    let mut packs = model.packs.clone();
    packs[0].is_new = false;
    ShardIndex {
        save: SaveKey { attempt: 1, step: 99, generation: 0 },
        rank,
        world_size: 2,
        components: vec![Component {
            name: "m".into(),
            owner: "t".into(),
            durability: Durability::Durable,
        }],
        tensors: vec![Tensor {
            component: 0,
            name: "w".into(),
            dtype: Dtype::U8,
            shape: vec![4, 4],
            tied_to: None,
            shards: 0..boxes.len() as u32,
        }],
        shards: (0..)
            .zip(boxes)
            .map(|(i, extent)| Shard { extent: extent.clone(), first_chunk: i, chunk_offset: 0 })
            .collect(),
        chunks: vec![model.chunks[0]; boxes.len()],
        reuses: vec![Hash::of(b"somewhere")],
        packs,
        ..model
    }
}

#[test]
fn a_forged_checkpoint_with_an_overlap_is_damage() {
    let (store, repository) = in_memory();
    save_row(&repository);
    let forged = forge(
        &repository,
        &[
            index_of(&store, 0, &[at([0, 0], [1, 4]), at([1, 0], [1, 4])]),
            index_of(&store, 1, &[at([1, 0], [1, 4]), at([3, 0], [1, 4])]),
        ],
    );
    let ledger = repository.existing(&run_name()).unwrap();
    let error = repository.contents(&ledger, &forged).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("m/w"), "{error}");
    // The same without the overlap can be read, which shows what the first one failed by.
    let (store, repository) = in_memory();
    save_row(&repository);
    let whole = [
        index_of(&store, 0, &[at([0, 0], [1, 4]), at([1, 0], [1, 4])]),
        index_of(&store, 1, &[at([2, 0], [1, 4]), at([3, 0], [1, 4])]),
    ];
    let forged = forge(&repository, &whole);
    let ledger = repository.existing(&run_name()).unwrap();
    repository.contents(&ledger, &forged).unwrap();
}

#[test]
fn a_missing_rank_is_damage_and_the_checkpoint_before_is_taken() {
    let (store, repository) = in_memory();
    let halves = [at([0, 0], [2, 4]), at([2, 0], [2, 4])];
    save_boxes(&repository, &halves).unwrap();
    let mut runs = open_all(&repository, 2, "second");
    save_all(&mut runs, 2, |capture| {
        let extent = halves[capture.world().rank as usize].clone();
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.shard("w", Dtype::U8, &[4, 4], extent, vec![9; 8])
    })
    .unwrap();
    drop(runs);
    let lost = store.keys().into_iter().rev().find(|key| key.ends_with("/1.idx")).unwrap();
    let kept = store.clone();
    repository.block_on(lastgood_store::Store::delete(&kept, &lost)).unwrap();
    let mut run = open_alone(&repository, "restore");
    let mut found = vec![0; 16];
    let restored = run
        .restore(&mut found, |memory, targets| {
            let mut slots = targets.component("m", "t", Durability::Durable)?;
            slots.tensor("w", Dtype::U8, &[4, 4], memory)
        })
        .unwrap()
        .unwrap();
    assert_eq!((restored.step, found), (1, vec![7; 16]));
    assert!(restored.notices[0].contains("1.idx"), "{:?}", restored.notices);
}

#[test]
fn packed_types_are_cut_only_where_bytes_meet() {
    let (_store, repository) = in_memory();
    let data = bytes(4, 12);
    let mut run = open_alone(&repository, "a");
    run.save(1, Mode::Sync, |capture| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.tensor("w", Dtype::F4, &[4, 6], data.as_slice())
    })
    .unwrap();
    drop(run);
    let cut = |incarnation: &str, extent: NdBox, length: usize| {
        let mut run = open_alone(&repository, incarnation);
        let mut found = vec![0xee; length];
        run.restore(&mut found, |memory, targets| {
            let mut slots = targets.component("m", "t", Durability::Durable)?;
            slots.shard("w", Dtype::F4, &[4, 6], extent.clone(), memory)
        })
        .map(|_| found)
    };
    assert_eq!(cut("b", at([1, 0], [2, 6]), 6).unwrap(), data[3..9]);
    assert_eq!(cut("c", at([0, 2], [4, 2]), 4).unwrap(), [data[1], data[4], data[7], data[10]]);
    let error = cut("d", at([0, 1], [4, 2]), 4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    assert!(error.to_string().contains("m/w"), "{error}");
}

#[test]
fn ranks_that_have_drifted_apart_commit_nothing() {
    let (_, repository) = in_memory();
    let mut runs = open_all(&repository, 2, "first");
    let save = |runs: &mut [lastgood::Run], step, odd: [u8; 2]| -> Result<Hash> {
        let mut handles = Vec::new();
        for (run, odd) in runs.iter_mut().zip(odd) {
            handles.push(run.save(step, Mode::Async, |capture| {
                let mut part = capture.component("m", "t", Durability::Durable)?;
                // One of each size is stored by each rank, so that both see the other one drift.
                part.replicated("a", Dtype::U8, &[9000], vec![1; 9000])?;
                part.replicated("b", Dtype::U8, &[9000], [vec![1; 8999], vec![odd]].concat())
            })?);
        }
        let results: Vec<_> = handles.iter().map(lastgood::save::SaveHandle::wait).collect();
        results.into_iter().collect::<Result<Vec<_>>>().map(|ids| ids[0])
    };
    let id = save(&mut runs, 1, [0, 0]).unwrap();
    let error = save(&mut runs, 2, [0, 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("ranks 0 and 1 hold different bytes"), "{error}");
    assert!(error.to_string().contains("m/b") && !error.to_string().contains("m/a"), "{error}");
    // Nothing was committed, and what comes after goes on as before.
    let ledger = repository.ledger(&run_name()).unwrap();
    assert_eq!(ledger.history().checkpoints().iter().map(|c| c.id).collect::<Vec<_>>(), [id]);
    save(&mut runs, 3, [1, 1]).unwrap();
}

#[test]
fn a_copy_that_its_owner_does_not_trust_is_no_checkpoint() {
    let (_, repository) = in_memory();
    let mut run = open_alone(&repository, "first");
    for (step, trusted) in [(1, true), (2, false), (3, true)] {
        let handle = run
            .save_overlapped(step, move |capture| {
                capture.component("m", "t", Durability::Durable)?.blob("b", vec![1; 9])?;
                capture.check(move || match trusted {
                    true => Ok(()),
                    false => Err(Error::invalid("changed while it was copied")),
                });
                Ok(())
            })
            .unwrap();
        assert_eq!(handle.wait().is_ok(), trusted, "step {step}");
        assert_eq!(handle.wait_captured(std::time::Duration::MAX).is_ok(), trusted);
    }
    let ledger = repository.ledger(&run_name()).unwrap();
    assert_eq!(ledger.history().checkpoints().iter().map(|c| c.step).collect::<Vec<_>>(), [1, 3]);
}
