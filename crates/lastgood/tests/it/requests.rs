//! How often a save and a restore ask the store for something, and for what.

use std::sync::Arc;
use std::time::Duration;

use lastgood::restore::Selector;
use lastgood::save::Mode;
use lastgood::state::{Capture, Durability, Targets, World};
use lastgood::{Dtype, Repository, Result};
use lastgood_format::layout::NdBox;
use lastgood_store::fault::{Fault, FaultPlan, Faults, Operation};
use lastgood_store::{Env, FaultStore, HedgedStore, MemoryStore, SystemEnv};

use crate::fixture::{
    bytes, on, open_all, open_alone, read_bytes, restore_bytes, run_name, save_all, save_bytes,
    tapped,
};
use crate::tap::{Op, Tap};

const MIB: usize = 1 << 20;
/// What saves of tests have.
const CHUNK: usize = 64 << 10;

/// How many calls there were of a kind on objects whose keys have `part` in them.
fn count(tap: &Tap, op: Op, part: &str) -> usize {
    tap.calls().iter().filter(|call| call.op == op && call.key.contains(part)).count()
}

/// The most bytes of one read.
fn read_bytes_max(repository: &Repository) -> usize {
    repository.store().transfers().read_bytes as usize
}

/// Beside packs: the shard index, the manifest, and the entry that commits them.
#[test]
fn a_save_puts_its_packs_and_three_objects_and_lists_nothing() {
    let (_, tap, repository) = tapped();
    let mut run = open_alone(&repository, "a");
    let mut state = bytes(1, 130 * MIB);
    for (step, new, packs) in [(1, 0..130, 3), (2, 60..61, 1), (3, 0..65, 2), (4, 0..0, 0)] {
        for at in (new.start * MIB..new.end * MIB).step_by(CHUNK) {
            state[at] ^= 0xff;
        }
        tap.pass();
        save_bytes(&mut run, step, &state).unwrap();
        assert_eq!(count(&tap, Op::Put, ".pack"), packs, "packs of save {step}");
        assert_eq!(count(&tap, Op::Put, ""), packs + 3, "puts of save {step}");
        assert_eq!(count(&tap, Op::List, ""), 0, "lists of save {step}");
        // The tail of the ledger, before the commit and for it, and the indexes of all ranks: here one.
        assert_eq!(count(&tap, Op::Get, ""), 3, "gets of save {step}");
        assert_eq!(count(&tap, Op::Size, ""), 1, "heads of save {step}");
        assert_eq!(count(&tap, Op::Range, ""), 0, "reads of save {step}");
    }
}

/// Beside ranges of packs: the manifest, the shard index, and a look at each pack.
#[test]
fn a_restore_reads_two_objects_and_each_byte_once_and_lists_nothing() {
    let (_, tap, repository) = tapped();
    let state = bytes(2, 33 * MIB);
    save_bytes(&mut open_alone(&repository, "a"), 1, &state).unwrap();
    let mut run = open_alone(&repository, "b");
    tap.pass();
    let (restored, found) = restore_bytes(&mut run, state.len()).unwrap().unwrap();
    assert!(found == state);
    assert_eq!(restored.bytes_read, state.len() as u64);
    let reads = state.len().div_ceil(read_bytes_max(&repository));
    assert_eq!(count(&tap, Op::Range, ".pack"), reads);
    assert_eq!(count(&tap, Op::Get, "/checkpoints/"), 1);
    assert_eq!(count(&tap, Op::Get, "/saves/"), 1);
    assert_eq!(count(&tap, Op::Size, ".pack"), 1);
    assert_eq!(count(&tap, Op::List, ""), 0);
    // And whether the ledger has gone on.
    let others = tap.calls().iter().filter(|call| !call.key.contains("/ledger/")).count();
    assert_eq!(others, reads + 3);
}

/// `m/w` from `begin` to `end`, of a tensor of `whole` bytes.
fn target_part<'a>(
    targets: &mut Targets<'a>,
    begin: usize,
    part: &'a mut [u8],
    whole: usize,
) -> Result<()> {
    targets.partial();
    let extent = NdBox { offsets: vec![begin as u64], sizes: vec![part.len() as u64] };
    let mut slots = targets.component("m", "t", Durability::Durable)?;
    slots.shard("w", Dtype::U8, &[whole as u64], extent, part)
}

#[test]
fn a_part_costs_two_objects_and_the_chunks_that_it_lies_in() {
    let (_, tap, repository) = tapped();
    let state = bytes(3, 10 * MIB);
    save_bytes(&mut open_alone(&repository, "a"), 1, &state).unwrap();
    let ledger = repository.existing(&run_name()).unwrap();
    let id = lastgood::restore::resolve(ledger.history(), &Selector::Latest).unwrap().id;
    for (begin, end) in [(0, MIB), (5, 6), (CHUNK, 3 * CHUNK + 1), (0, state.len())] {
        tap.pass();
        let contents = repository.contents(&ledger, &id).unwrap();
        assert_eq!(tap.calls().len(), 2, "the manifest and the shard index");
        let mut part = vec![0; end - begin];
        let mut targets = Targets::new(World::ALONE);
        target_part(&mut targets, begin, &mut part, state.len()).unwrap();
        let restored = repository.restore(&contents, targets).unwrap();
        assert!(part == state[begin..end], "{begin}..{end}");
        let chunks = end.div_ceil(CHUNK) - begin / CHUNK;
        assert_eq!(restored.bytes_read, (chunks * CHUNK) as u64, "{begin}..{end}");
        let reads = (chunks * CHUNK).div_ceil(read_bytes_max(&repository));
        // What lies in the last chunk alone is read apart from whole chunks.
        let reads = reads..=reads + 1;
        assert!(reads.contains(&count(&tap, Op::Range, ".pack")), "{begin}..{end}");
        assert_eq!(tap.calls().len(), 2 + count(&tap, Op::Range, ".pack"), "{begin}..{end}");
    }
}

/// Who reads values first and tensors then, as Python does, reads the chunks that both lie in once.
#[test]
fn a_second_look_does_not_read_again_what_the_first_one_read() {
    let (_, tap, repository) = tapped();
    let data = bytes(4, 3000);
    let mut run = open_alone(&repository, "a");
    let saved = run.save(1, Mode::Sync, |capture: &mut Capture<'_>| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.blob("value", b"the value".to_vec())?;
        part.tensor("w", Dtype::U8, &[3000], &data)
    });
    let id = saved.unwrap().wait().unwrap();
    let contents = run.candidate(&mut Vec::new()).unwrap().unwrap();
    tap.pass();
    let mut value = Vec::new();
    let mut targets = Targets::new(World::ALONE);
    targets.partial();
    let mut slots = targets.component("m", "t", Durability::Durable).unwrap();
    slots
        .blob("value", |found| {
            value = found;
            Ok(())
        })
        .unwrap();
    let first = run.read(&contents, targets).unwrap();
    assert_eq!(value, b"the value");
    assert_eq!((first.bytes_read > 3000, tap.calls().len()), (true, 1));
    for _ in 0..2 {
        let mut found = vec![0; 3000];
        let mut targets = Targets::new(World::ALONE);
        target_part(&mut targets, 0, &mut found, 3000).unwrap();
        let second = run.read(&contents, targets).unwrap();
        assert!(found == data);
        assert_eq!((second.bytes_read, tap.calls().len()), (0, 1));
    }
    // Tables that are kept for longer than one restore show what is in the store.
    let ledger = repository.existing(&run_name()).unwrap();
    let contents = repository.contents(&ledger, &id).unwrap();
    for _ in 0..2 {
        let mut found = vec![0; 3000];
        let mut targets = Targets::new(World::ALONE);
        target_part(&mut targets, 0, &mut found, 3000).unwrap();
        assert!(repository.restore(&contents, targets).unwrap().bytes_read > 3000);
    }
}

/// Ranks that all read everything leave it in the page cache for each other; those that read parts need not.
#[test]
fn ranks_that_read_the_same_tell_the_store() {
    let (_, tap, repository) = tapped();
    let state: &'static [u8] = bytes(5, 4 * MIB).leak();
    let mut runs = open_all(&repository, 2, "a");
    let saved = save_all(&mut runs, 1, |capture| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.replicated("w", Dtype::U8, &[state.len() as u64], state)
    });
    let id = saved.unwrap();
    let ledger = repository.existing(&run_name()).unwrap();
    let contents = repository.contents(&ledger, &id).unwrap();
    let half = state.len() / 2;
    for (size, begin, end, is_shared) in [
        (1, 0, state.len(), false),
        (2, 0, half, false),
        (2, half, state.len(), false),
        (2, 0, state.len(), true),
        (8, half, state.len(), true),
    ] {
        let mut part = vec![0; end - begin];
        let mut targets = Targets::new(World { rank: 0, size });
        target_part(&mut targets, begin, &mut part, state.len()).unwrap();
        tap.pass();
        repository.restore(&contents, targets).unwrap();
        let op = if is_shared { Op::Shared } else { Op::Range };
        assert!(part == state[begin..end]);
        assert_eq!(count(&tap, op, ".pack"), tap.calls().len(), "{begin}..{end} of {size} ranks");
    }
}

#[test]
fn a_read_that_hangs_is_told_and_holds_nothing_up() {
    let (memory, env) = (MemoryStore::default(), Arc::new(SystemEnv::default()));
    let faults = Faults::new(FaultPlan::default());
    let below = FaultStore::new(memory, &faults, Arc::<SystemEnv>::clone(&env));
    let repository = on(HedgedStore::new(below, Arc::<SystemEnv>::clone(&env)));
    let state = bytes(6, 160 * MIB);
    save_bytes(&mut open_alone(&repository, "a"), 1, &state).unwrap();
    let packs = format!("runs/{}/packs/", run_name());
    faults.at(Operation::Read, &packs, 30, Fault::Delay(Duration::from_secs(600)));
    let begin = env.elapsed();
    let mut run = open_alone(&repository, "b");
    let (restored, found) = restore_bytes(&mut run, state.len()).unwrap().unwrap();
    assert!(found == state);
    assert!(env.elapsed() - begin < Duration::from_secs(300), "it waited for the slow read");
    assert_eq!(faults.injected().len(), 1);
    let told = restored.notices.iter().filter(|notice| notice.contains("slow to answer"));
    assert_eq!(told.count(), 1, "{:?}", restored.notices);
    // Nothing is told of a store that answers.
    let (step, found) = read_bytes(&repository, &Selector::Latest, state.len()).unwrap();
    assert!((step, found) == (1, state));
}
