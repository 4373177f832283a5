//! What is stored already is not written again, and is never reused when it must not be.

use lastgood::ledger::{Decision, Writer};
use lastgood::restore::{Selector, VerifiedPacks};
use lastgood::save::{Compression, Mode, SaveOptions};
use lastgood::state::{Durability, World};
use lastgood::{Dtype, Hash, Repository, Run, RunOptions};
use lastgood_format::layout::NdBox;
use lastgood_format::ledger::Kind;

use crate::fixture::{
    bytes, in_memory, open, open_all, open_alone, options, quick, read_bytes, restore_bytes,
    run_name, save_all, save_bytes, tapped,
};
use crate::tap::{Call, Op, Tap};

const CHUNK: usize = 64 << 10;

/// The bytes of the packs that were put since the last look.
fn packed(tap: &Tap) -> usize {
    let packs = tap.calls().iter().filter(|c| c.op == Op::Put && c.key.ends_with(".pack")).count();
    tap.pass();
    packs
}

#[test]
fn what_did_not_change_is_not_written_again() {
    let (_store, tap, repository) = tapped();
    let mut data = bytes(1, 40 * CHUNK);
    let mut run = open_alone(&repository, "a");
    save_bytes(&mut run, 1, &data).unwrap();
    tap.pass();
    let written = |run: &mut Run, step, data: &[u8]| {
        let before = tap.bytes_put();
        save_bytes(run, step, data).unwrap();
        (tap.bytes_put() - before, packed(&tap))
    };
    let (bytes_put, packs) = written(&mut run, 2, &data);
    assert!(bytes_put < 4000 && packs == 0, "{bytes_put} bytes, {packs} packs");
    // One byte in the middle, one at the very end.
    data[20 * CHUNK + 5] ^= 1;
    let (bytes_put, packs) = written(&mut run, 3, &data);
    assert!((CHUNK as u64..CHUNK as u64 + 5000).contains(&bytes_put) && packs == 1, "{bytes_put}");
    *data.last_mut().unwrap() ^= 1;
    let (bytes_put, _) = written(&mut run, 4, &data);
    assert!((CHUNK as u64..CHUNK as u64 + 5000).contains(&bytes_put), "{bytes_put}");
    assert_eq!(read_bytes(&repository, &Selector::Latest, data.len()).unwrap(), (4, data));
}

#[test]
fn the_ledger_tells_what_is_new() {
    let (_store, repository) = in_memory();
    let mut data = bytes(1, 10 * CHUNK);
    let mut run = open_alone(&repository, "a");
    save_bytes(&mut run, 1, &data).unwrap();
    data[0] ^= 1;
    save_bytes(&mut run, 2, &data).unwrap();
    let ledger = repository.existing(&run_name()).unwrap();
    let [first, second] = ledger.history().checkpoints() else { unreachable!() };
    assert_eq!((first.bytes, second.bytes), (data.len() as u64, data.len() as u64));
    assert_eq!(second.parent, Some(first.id));
    assert!(first.new_bytes > first.bytes, "{first:?}");
    assert!((CHUNK as u64..2 * CHUNK as u64).contains(&second.new_bytes), "{second:?}");
}

#[test]
fn a_long_chain_of_saves_restores_at_every_step() {
    let (_store, tap, repository) = tapped();
    let mut data = bytes(1, 16 * CHUNK);
    let mut states = Vec::new();
    let mut run = open_alone(&repository, "a");
    for step in 1..=40u64 {
        // Each save changes one chunk, so that the newest stands on packs of sixteen saves.
        data[(step as usize * 7 % 16) * CHUNK] = step as u8;
        save_bytes(&mut run, step, &data).unwrap();
        states.push(data.clone());
    }
    assert!(tap.bytes_put() < 60 * CHUNK as u64 + 400_000, "{}", tap.bytes_put());
    for (step, state) in (1..).zip(&states) {
        let found = read_bytes(&repository, &Selector::Step(step), data.len()).unwrap();
        assert!(found == (step, state.clone()), "step {step}");
    }
    let ledger = repository.existing(&run_name()).unwrap();
    for checkpoint in ledger.history().checkpoints() {
        repository.verify(&ledger, &checkpoint.id, &|_, _| ()).unwrap();
    }
}

#[test]
fn a_pack_that_checkpoints_share_is_verified_once_and_its_damage_is_told_of_each() {
    let (store, tap, repository) = tapped();
    let mut data = bytes(1, 4 * CHUNK);
    let mut run = open_alone(&repository, "a");
    let mut ids = Vec::new();
    for step in 1..=3u8 {
        data[3 * CHUNK] = step;
        ids.push(save_bytes(&mut run, step.into(), &data).unwrap());
    }
    let ledger = repository.existing(&run_name()).unwrap();
    let packs: Vec<_> = store.keys().into_iter().filter(|key| key.ends_with(".pack")).collect();
    assert_eq!(packs.len(), 3, "{packs:?}");
    let verify = || {
        tap.pass();
        let known = VerifiedPacks::default();
        let verified: Vec<_> =
            ids.iter().map(|id| repository.verify_next(&ledger, id, &known, &|_, _| ())).collect();
        let is_read = |call: &Call| call.op == Op::Range && call.key.ends_with(".pack");
        (verified, tap.calls().iter().filter(|call| is_read(call)).count())
    };
    let (verified, reads) = verify();
    assert!(verified.iter().all(Result::is_ok) && reads == 3, "{reads}: {verified:?}");
    // The first pack is that of the chunks that never change.
    store.tamper(&packs[0], |bytes| bytes[CHUNK / 2] ^= 1);
    let (verified, reads) = verify();
    for error in verified.iter().map(|verified| verified.as_ref().unwrap_err()) {
        assert_eq!(error.object(), Some(packs[0].as_str()), "{error}");
    }
    // Whole, and the damaged chunk once more.
    assert_eq!(reads, 2);
}

/// Rank `rank` of `size` holds its rows of a tensor of 12 rows, a chunk each.
fn save_rows(runs: &mut [Run], step: u64, data: &[u8]) -> Hash {
    let size = runs.len() as u64;
    save_all(runs, step, |capture| {
        let rank = u64::from(capture.world().rank);
        let (begin, end) = (12 * rank / size, 12 * (rank + 1) / size);
        let extent = NdBox { offsets: vec![begin, 0], sizes: vec![end - begin, CHUNK as u64] };
        let mine = data[begin as usize * CHUNK..end as usize * CHUNK].to_vec();
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.shard("w", Dtype::U8, &[12, CHUNK as u64], extent, mine)
    })
    .unwrap()
}

fn restore_rows(run: &mut Run, world: World) {
    let (size, rank) = (u64::from(world.size), u64::from(world.rank));
    let (begin, end) = (12 * rank / size, 12 * (rank + 1) / size);
    let mut memory = vec![0; (end - begin) as usize * CHUNK];
    run.restore(&mut memory, |memory, targets| {
        let extent = NdBox { offsets: vec![begin, 0], sizes: vec![end - begin, CHUNK as u64] };
        let mut slots = targets.component("m", "t", Durability::Durable)?;
        slots.shard("w", Dtype::U8, &[12, CHUNK as u64], extent, memory)
    })
    .unwrap()
    .unwrap();
}

#[test]
fn other_ranks_of_another_attempt_reuse_after_a_restore() {
    let (_store, tap, repository) = tapped();
    let data = bytes(1, 12 * CHUNK);
    let mut runs = open_all(&repository, 4, "a");
    save_rows(&mut runs, 1, &data);
    drop(runs);
    let mut changed = data.clone();
    changed[5 * CHUNK] ^= 1;
    for (size, incarnation) in [(3, "b"), (1, "c"), (6, "d")] {
        let mut runs = open_all(&repository, size, incarnation);
        for (rank, run) in (0..).zip(&mut runs) {
            restore_rows(run, World { rank, size });
        }
        tap.pass();
        save_rows(&mut runs, 2, &data);
        assert_eq!(packed(&tap), 0, "{size} ranks wrote again what is there");
        save_rows(&mut runs, 3, &changed);
        assert_eq!(packed(&tap), 1, "{size} ranks wrote more than what changed");
        save_rows(&mut runs, 4, &data);
    }
    let ledger = repository.existing(&run_name()).unwrap();
    for checkpoint in ledger.history().checkpoints() {
        repository.verify(&ledger, &checkpoint.id, &|_, _| ()).unwrap();
    }
}

#[test]
fn a_new_attempt_that_restored_nothing_reuses_nothing() {
    let (_store, tap, repository) = tapped();
    let data = bytes(1, 3 * CHUNK);
    save_bytes(&mut open_alone(&repository, "a"), 1, &data).unwrap();
    tap.pass();
    save_bytes(&mut open_alone(&repository, "b"), 2, &data).unwrap();
    assert_eq!(packed(&tap), 1);
    // It is the child of what its attempt began with, all the same.
    let mut run = open_alone(&repository, "c");
    restore_bytes(&mut run, data.len()).unwrap().unwrap();
    tap.pass();
    save_bytes(&mut run, 3, &data).unwrap();
    assert_eq!(packed(&tap), 0);
}

fn expire(repository: &Repository, id: Hash) {
    let mut ledger = repository.existing(&run_name()).unwrap();
    let writer = Writer { attempt: 0, actor: "collector".into() };
    let kind = Kind::CheckpointExpired { checkpoint: id, reason: "test".into() };
    let appended =
        repository.block_on(ledger.append(&writer, |_| Ok(Decision::Append(kind.clone()))));
    assert!(matches!(appended.unwrap(), lastgood::ledger::Appended::Committed(_)));
}

#[test]
fn an_expired_base_is_written_again() {
    let (store, tap, repository) = tapped();
    let data = bytes(1, 12 * CHUNK);
    for size in [1, 3] {
        let mut runs = open_all(&repository, size, &format!("of {size}"));
        let first = save_rows(&mut runs, 1, &data);
        let before: Vec<String> = store.keys();
        expire(&repository, first);
        tap.pass();
        let second = save_rows(&mut runs, 2, &data);
        assert_eq!(packed(&tap), size as usize, "each rank writes its part again");
        // The second one stands without anything that was there when the first one expired.
        let copy = store.fork();
        for key in before.iter().filter(|key| key.ends_with(".pack") || key.ends_with(".idx")) {
            repository.block_on(lastgood_store::Store::delete(&copy, key)).unwrap();
        }
        let alone = crate::fixture::on(copy);
        let ledger = alone.existing(&run_name()).unwrap();
        alone.verify(&ledger, &second, &|_, _| ()).unwrap();
        // And it is a base like any other.
        tap.pass();
        save_rows(&mut runs, 3, &data);
        assert_eq!(packed(&tap), 0);
    }
}

#[test]
fn codecs_of_before_are_read_whatever_is_chosen_now() {
    let (_store, tap, repository) = tapped();
    // Compressible, and not zero.
    let data: Vec<u8> = (0..8 * CHUNK).map(|i| (i / 100) as u8).collect();
    let open_with = |incarnation: &str, compression| {
        let save = SaveOptions { compression, ..quick() };
        let options = RunOptions { save, ..options(World::ALONE, incarnation) };
        Run::open(&repository, &run_name(), options).unwrap()
    };
    let mut run = open_with("a", Compression::Zstd(3));
    let before = tap.bytes_put();
    save_bytes(&mut run, 1, &data).unwrap();
    assert!(tap.bytes_put() - before < 60_000, "{}", tap.bytes_put() - before);
    drop(run);
    let mut run = open_with("b", Compression::Off);
    assert_eq!(restore_bytes(&mut run, data.len()).unwrap().unwrap().1, data);
    tap.pass();
    let mut changed = data.clone();
    changed[0] ^= 1;
    save_bytes(&mut run, 2, &changed).unwrap();
    assert_eq!(packed(&tap), 1);
    assert_eq!(read_bytes(&repository, &Selector::Latest, data.len()).unwrap(), (2, changed));
}

#[test]
fn a_tensor_that_grows_shrinks_or_is_renamed_keeps_its_chunks() {
    let (_store, tap, repository) = tapped();
    let data = bytes(1, 8 * CHUNK);
    let mut run = open(&repository, World::ALONE, "a");
    let mut save = |step, name: &str, data: &[u8]| {
        tap.pass();
        let before = tap.bytes_put();
        run.save(step, Mode::Sync, |capture| {
            let mut part = capture.component("m", "t", Durability::Durable)?;
            part.tensor(name, Dtype::U8, &[data.len() as u64], data.to_vec())
        })
        .unwrap();
        tap.bytes_put() - before
    };
    save(1, "w", &data);
    assert!(save(2, "renamed", &data) < 5000);
    assert!(save(3, "w", &data[..4 * CHUNK]) < 5000);
    let longer = [&data[..4 * CHUNK], &bytes(9, CHUNK)].concat();
    assert!(save(4, "w", &longer) < CHUNK as u64 + 5000);
    assert_eq!(read_bytes(&repository, &Selector::Latest, longer.len()).unwrap(), (4, longer));
}
