//! The memory tier: what is in memory is not read from the store, and is believed only by its hash.

use std::sync::Arc;
use std::time::Duration;

use lastgood::restore::Restored;
use lastgood::save::{Completed, Compression, Mode, SaveOptions, complete};
use lastgood::state::{Durability, World};
use lastgood::tier::{Taken, Tier};
use lastgood::{Dtype, ErrorKind, Hash, Repository, Result, Run, RunOptions};
use lastgood_format::layout::NdBox;
use lastgood_store::SharedMemory;

use crate::fixture::{
    Model, bytes, capture_bytes, in_memory, open_all, options, quick, restore_bytes, run_name,
    save_all, save_bytes, tapped,
};
use crate::tap::{Act, Op, Tap};

const CHUNK: usize = 64 << 10;
/// More than one segment of an arena.
const STATE: usize = 70 << 20;

/// As a process that takes the memory of the one before.
fn open(repository: &Repository, memory: &SharedMemory, incarnation: &str) -> Run {
    open_with(repository, memory, (World::ALONE, incarnation), quick())
}

fn open_with(
    repository: &Repository,
    memory: &SharedMemory,
    (world, incarnation): (World, &str),
    save: SaveOptions,
) -> Run {
    let tier = Some(Tier::open(&memory.path()).unwrap());
    let options = RunOptions { tier, save, ..options(world, incarnation) };
    Run::open(repository, &run_name(), options).unwrap()
}

fn restored(run: &mut Run, length: usize) -> (Restored, Vec<u8>) {
    restore_bytes(run, length).unwrap().unwrap()
}

#[test]
fn a_state_in_memory_is_not_read_from_the_store() {
    let (_store, tap, repository) = tapped();
    let memory = SharedMemory::create("test").unwrap();
    let data = bytes(1, STATE);
    let mut run = open(&repository, &memory, "a");
    save_bytes(&mut run, 1, &data).unwrap();
    drop(run);
    tap.pass();
    let mut run = open(&repository, &memory, "b");
    let (told, found) = restored(&mut run, STATE);
    assert!(found == data);
    assert_eq!((told.step, told.bytes, told.bytes_read), (1, STATE as u64, 0));
    let read = tap.calls().into_iter().filter(|call| call.op == Op::Range);
    assert_eq!(read.filter(|call| call.key.ends_with(".pack")).count(), 0);
}

#[test]
fn a_run_that_goes_back_finds_what_it_has_captured_since() {
    let (_store, repository) = in_memory();
    let memory = SharedMemory::create("test").unwrap();
    let mut run = open(&repository, &memory, "a");
    for step in 1..4 {
        let data = bytes(step, 30 * CHUNK);
        save_bytes(&mut run, step, &data).unwrap();
        for _ in 0..2 {
            let (told, found) = restored(&mut run, data.len());
            assert!(found == data);
            assert_eq!((told.step, told.bytes_read), (step, 0));
        }
    }
}

#[test]
fn compressed_and_delta_chunks_are_found_by_what_they_decode_to() {
    for compression in [Compression::Zstd(1), Compression::Delta { chain: 4 }] {
        let (_store, repository) = in_memory();
        let memory = SharedMemory::create("test").unwrap();
        let save = SaveOptions { compression, ..quick() };
        let mut run = open_with(&repository, &memory, (World::ALONE, "a"), save.clone());
        let mut data = vec![7; 20 * CHUNK];
        for step in 1..5 {
            data[step * CHUNK] = step as u8;
            save_bytes(&mut run, step as u64, &data).unwrap();
        }
        drop(run);
        let mut run = open_with(&repository, &memory, (World::ALONE, "b"), save);
        let (told, found) = restored(&mut run, data.len());
        assert!(found == data);
        assert_eq!((told.step, told.bytes_read), (4, 0), "{compression:?}");
    }
}

#[test]
fn what_is_damaged_in_memory_is_read_from_the_store() {
    let (_store, repository) = in_memory();
    let memory = SharedMemory::create("test").unwrap();
    let data = bytes(1, 30 * CHUNK);
    save_bytes(&mut open(&repository, &memory, "a"), 1, &data).unwrap();
    // Every chunk in turn, in a bit of its own.
    let begin = 2 << 20;
    for chunk in 0..30 {
        let at = begin + (chunk * CHUNK + chunk * 2111 % CHUNK) as u64;
        let mut byte = [0];
        memory.read_at(at, &mut byte).unwrap();
        memory.write_at(at, &[byte[0] ^ (1 << (chunk % 8))]).unwrap();
        let mut run = open(&repository, &memory, &format!("b{chunk}"));
        let (told, found) = restored(&mut run, data.len());
        assert!(found == data);
        assert_eq!(told.bytes_read, ((chunk + 1) * CHUNK) as u64);
    }
}

#[test]
fn no_flip_of_page_or_table_makes_a_wrong_byte() {
    let (_store, repository) = in_memory();
    let memory = SharedMemory::create("test").unwrap();
    let data = bytes(1, 3 * CHUNK);
    save_bytes(&mut open(&repository, &memory, "a"), 1, &data).unwrap();
    let mut words = [0; 16];
    memory.read_at(16, &mut words).unwrap();
    let (begin, end) = words.split_at(8);
    let [begin, end] = [begin, end].map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let mut found_whole = 0;
    for at in (0..64).chain(begin..end) {
        let mut byte = [0];
        memory.read_at(at, &mut byte).unwrap();
        for bit in [0, 3, 7] {
            memory.write_at(at, &[byte[0] ^ (1 << bit)]).unwrap();
            let mut run = open(&repository, &memory, &format!("b{at}-{bit}"));
            let (told, found) = restored(&mut run, data.len());
            assert!(found == data);
            found_whole += u32::from(told.bytes_read == 0);
        }
        memory.write_at(at, &byte).unwrap();
    }
    // Only what nothing is read from can be flipped without a loss: the rest of the page.
    assert_eq!(found_whole, 32 * 3);
}

#[test]
fn a_save_that_replaces_another_takes_it_away_before_it_changes_a_byte() {
    let (_store, repository) = in_memory();
    let memory = SharedMemory::create("test").unwrap();
    let data = bytes(1, 30 * CHUNK);
    let mut run = open(&repository, &memory, "a");
    save_bytes(&mut run, 1, &data).unwrap();
    let other = bytes(2, 30 * CHUNK);
    // A capture that fails half way.
    let failed = run.save(2, Mode::Sync, |capture| {
        capture_bytes(capture, &other)?;
        capture.check(|| Err(lastgood::Error::internal("not this one")));
        Ok(())
    });
    assert_eq!(failed.map(drop).map_err(|e| e.kind()), Err(ErrorKind::Internal));
    run.take_failures();
    drop(run);
    let mut run = open(&repository, &memory, "b");
    let (told, found) = restored(&mut run, data.len());
    assert!(found == data);
    assert_eq!(told.bytes_read, data.len() as u64);
}

#[test]
fn states_grow_and_shrink_in_memory() {
    let (_store, repository) = in_memory();
    let memory = SharedMemory::create("test").unwrap();
    for (step, length) in [STATE, CHUNK, 0, 2 * STATE, STATE - 1].into_iter().enumerate() {
        let data = bytes(step as u64, length);
        let name = format!("a{step}");
        save_bytes(&mut open(&repository, &memory, &name), 1 + step as u64, &data).unwrap();
        let mut run = open(&repository, &memory, &format!("b{step}"));
        let (told, found) = restored(&mut run, length);
        assert!(found == data);
        assert_eq!(told.bytes_read, 0, "{length}");
    }
}

#[test]
fn a_client_that_still_holds_the_memory_of_a_save_sees_it_as_it_was() {
    let (store, tap, repository) = tapped();
    let memory = SharedMemory::create("test").unwrap();
    let first = bytes(1, STATE);
    let mut run = open(&repository, &memory, "a");
    tap.hold();
    save_bytes(&mut run, 1, &first).unwrap();
    for (step, length) in [(2, STATE), (3, CHUNK), (4, STATE)] {
        save_bytes(&mut run, step, &bytes(step, length)).unwrap();
    }
    drop(run);
    // What was put first is what was captured first, although the memory was wanted three times since.
    for (key, payload) in tap.held() {
        let stored = store.peek(&key).unwrap();
        assert!(payload.to_bytes() == stored, "{key}");
    }
    let mut run = open(&repository, &memory, "b");
    assert!(restored(&mut run, STATE).1 == bytes(4, STATE));
}

/// A run whose tensor `m/w` of 70 MiB was left in memory by another, taken from there.
fn taken(
    memory: &SharedMemory,
    damage: impl FnOnce(),
) -> (Repository, Tap, Run, Taken, Vec<u8>, Result<()>) {
    let (_store, tap, repository) = tapped();
    let data = bytes(1, STATE);
    save_bytes(&mut open(&repository, memory, "a"), 1, &data).unwrap();
    damage();
    let mut run = open(&repository, memory, "b");
    let contents = run.candidate(&mut Vec::new()).unwrap().unwrap();
    let mut taking = run.tier().unwrap().take();
    let whole = NdBox::whole(&[STATE as u64]);
    let taken = taking.take(&contents, ("m", "w"), &whole).unwrap();
    run.build_on(&contents).unwrap();
    (repository, tap, run, taken, data, taking.verify_behind())
}

#[test]
fn a_tensor_is_taken_as_it_lies_and_keeps_its_bytes_when_the_next_save_comes() {
    let memory = SharedMemory::create("test").unwrap();
    let (repository, tap, mut run, taken, data, verified) = taken(&memory, || {});
    verified.unwrap();
    assert!(taken.to_vec() == data);
    assert!(taken.address().is_multiple_of(64));
    run.check_memory().unwrap();
    // The next save is captured where the tensor lay.
    let other = bytes(2, STATE);
    save_bytes(&mut run, 2, &other).unwrap();
    assert!(taken.to_vec() == data);
    tap.pass();
    drop(run);
    let mut run = open(&repository, &memory, "c");
    let (told, found) = restored(&mut run, STATE);
    assert!(found == other);
    assert_eq!(told.bytes_read, 0);
}

#[test]
fn nothing_that_comes_of_damaged_memory_becomes_durable() {
    let memory = SharedMemory::create("test").unwrap();
    let last_byte = (2 << 20) + STATE as u64 - 1;
    let damage = || {
        let mut byte = [0];
        memory.read_at(last_byte, &mut byte).unwrap();
        memory.write_at(last_byte, &[byte[0] ^ 1]).unwrap();
    };
    let (repository, _tap, mut run, taken, data, verified) = taken(&memory, damage);
    verified.unwrap();
    assert!(taken.to_vec() != data);
    let kind = |result: Result<()>| result.map_err(|error| error.kind());
    assert_eq!(kind(run.check_memory()), Err(ErrorKind::Corrupt));
    assert_eq!(kind(save_bytes(&mut run, 2, &data).map(drop)), Err(ErrorKind::Corrupt));
    drop(run);
    // The next attempt does not come to the same.
    let mut run = open(&repository, &memory, "c");
    let (told, found) = restored(&mut run, STATE);
    assert!(found == data);
    assert_eq!((told.step, told.bytes_read), (1, STATE as u64));
}

#[test]
fn what_does_not_lie_in_one_piece_is_not_taken() {
    let (_store, repository) = in_memory();
    let memory = SharedMemory::create("test").unwrap();
    let sizes = [5, 40 << 20, 3, 30 << 20, 100 << 20, CHUNK + 4, 20 << 20];
    let tensors: Vec<Vec<u8>> =
        sizes.iter().enumerate().map(|(i, size)| bytes(i as u64, *size)).collect();
    let mut run = open(&repository, &memory, "a");
    run.save(1, Mode::Sync, |capture| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        for (i, tensor) in tensors.iter().enumerate() {
            part.tensor(&format!("{i}"), Dtype::U8, &[tensor.len() as u64], tensor)?;
        }
        Ok(())
    })
    .unwrap();
    drop(run);
    let mut run = open(&repository, &memory, "b");
    let contents = run.candidate(&mut Vec::new()).unwrap().unwrap();
    let mut taking = run.tier().unwrap().take();
    for (i, tensor) in tensors.iter().enumerate() {
        let length = tensor.len() as u64;
        let name = format!("{i}");
        let taken = taking.take(&contents, ("m", &name), &NdBox::whole(&[length]));
        // Every one that is large, whatever stands before it.
        assert_eq!(taken.is_some(), tensor.len() >= CHUNK, "{i}");
        assert!(taken.is_none_or(|taken| taken.to_vec() == *tensor));
        let part = NdBox { offsets: vec![1], sizes: vec![length - 1] };
        assert!(taking.take(&contents, ("m", &name), &part).is_none());
    }
    let whole = NdBox::whole(&[5]);
    assert!(taking.take(&contents, ("m", "other"), &whole).is_none());
    taking.verify_behind().unwrap();
    run.check_memory().unwrap();
}

#[test]
fn the_memory_has_one_writer() {
    let memory = SharedMemory::create("test").unwrap();
    let first = Tier::open(&memory.path()).unwrap();
    let kind = || Tier::open(&memory.path()).map(drop).map_err(|error| error.kind());
    assert_eq!(kind(), Err(ErrorKind::Conflict));
    drop(first);
    assert_eq!(kind(), Ok(()));
}

/// Two ranks whose memory a supervisor holds.
struct Supervised {
    tap: Tap,
    repository: Repository,
    memories: [Arc<SharedMemory>; 2],
}

fn world(rank: u32) -> World {
    World { rank, size: 2 }
}

impl Supervised {
    /// Both have a checkpoint of step 1, and crash in the save of step 2, whose objects with `part` in their keys
    /// cannot be put.
    fn crashed(part: &'static str) -> Self {
        let (_store, tap, repository) = tapped();
        let memories = [(); 2].map(|()| Arc::new(SharedMemory::create("test").unwrap()));
        let this = Self { tap, repository, memories };
        let mut runs = this.open("a");
        this.save(&mut runs, 1).unwrap();
        this.tap.play(move |call| match call.op == Op::Put && call.key.contains(part) {
            true => Act::Fail(ErrorKind::Denied),
            false => Act::Pass,
        });
        assert!(this.save(&mut runs, 2).is_err());
        runs.iter_mut().for_each(|run| drop(run.take_failures()));
        drop(runs);
        this.tap.pass();
        this
    }

    fn open(&self, incarnation: &str) -> Vec<Run> {
        let open = |rank: u32| {
            let who = (world(rank), incarnation);
            // The rank that fails is waited for in vain.
            let save = SaveOptions { commit_wait: Duration::from_millis(100), ..quick() };
            open_with(&self.repository, &self.memories[rank as usize], who, save)
        };
        (0..2).map(open).collect()
    }

    fn save(&self, runs: &mut [Run], step: u64) -> Result<Hash> {
        save_all(runs, step, |capture| {
            let world = capture.world();
            Model::capture(Box::leak(Box::new(Model::at(step, world))), capture)
        })
    }

    fn tiers(&self) -> Vec<Tier> {
        self.memories.iter().map(|memory| Tier::open(&memory.path()).unwrap()).collect()
    }

    fn complete(&self) -> Result<Option<Completed>> {
        complete(&self.repository, &run_name(), &self.tiers())
    }

    /// That the last good checkpoint is the state of `step`, as the store alone tells it.
    fn check(&self, incarnation: &str, step: u64) {
        for (rank, mut run) in open_all(&self.repository, 2, incarnation).into_iter().enumerate() {
            let world = world(rank as u32);
            let mut model = Model::blank(world);
            let restored = run.restore(&mut model, |model, targets| model.targets(targets, world));
            assert_eq!(restored.unwrap().unwrap().step, step);
            assert!(model == Model::at(step, world));
        }
    }
}

#[test]
fn what_was_only_in_memory_becomes_a_checkpoint() {
    // Some packs are there, or all, or the index of one rank too, or all but the commit.
    for (part, writes) in
        [("/1-0.pack", true), (".idx", true), ("/1.idx", true), ("ledger/", false)]
    {
        let crashed = Supervised::crashed(part);
        let done = crashed.complete().unwrap().unwrap();
        assert_eq!((done.step, done.bytes > 0), (2, writes), "{part}");
        let ledger = crashed.repository.ledger(&run_name()).unwrap();
        let checkpoints = ledger.history().checkpoints();
        assert_eq!(checkpoints.len(), 2, "{part}");
        let (first, second) = (&checkpoints[0], &checkpoints[1]);
        assert_eq!((second.id, second.parent), (done.checkpoint, Some(first.id)), "{part}");
        crashed.check("b", 2);
        assert_eq!(crashed.complete().unwrap(), None);
    }
}

#[test]
fn completing_can_fail_at_every_call_and_be_done_again() {
    let calls = {
        let crashed = Supervised::crashed("/1-0.pack");
        crashed.complete().unwrap();
        crashed.tap.calls().len()
    };
    for n in 0..calls {
        for kind in [ErrorKind::Denied, ErrorKind::Unavailable] {
            let crashed = Supervised::crashed("/1-0.pack");
            let act = if kind == ErrorKind::Denied { Act::Fail(kind) } else { Act::Lose };
            crashed.tap.play(move |call| if call.n == n { act } else { Act::Pass });
            let first = crashed.complete();
            crashed.tap.pass();
            let again = crashed.complete();
            let found = [&first, &again].into_iter().flatten().flatten().count();
            assert!(found > 0, "call {n}: {first:?}, {again:?}");
            crashed.check("b", 2);
        }
    }
}

#[test]
fn what_is_not_whole_is_not_completed() {
    let crashed = Supervised::crashed("/1-0.pack");
    // A rank's memory is lost with its machine.
    let one = complete(&crashed.repository, &run_name(), &crashed.tiers()[..1]);
    assert_eq!(one.unwrap(), None);
    // Another attempt has begun.
    crashed.check("b", 1);
    assert_eq!(crashed.complete().unwrap(), None);
    crashed.check("c", 1);
}

#[test]
fn memory_that_has_changed_since_it_was_hashed_is_no_checkpoint() {
    let crashed = Supervised::crashed("/1.idx");
    // Rank 0 has put its part, and has hashed it before.
    crashed.memories[0].write_at((2 << 20) + 5000, &[1, 2, 3]).unwrap();
    let refused = crashed.complete().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert!(refused.to_string().contains("rank 0"), "{refused}");
    crashed.check("b", 1);
}
