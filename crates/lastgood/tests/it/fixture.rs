//! Repositories to test on, and states to save.

use std::sync::Arc;
use std::time::Duration;

use lastgood::restore::{Restored, Selector};
use lastgood::save::{Compression, Mode, SaveOptions};
use lastgood::state::{Capture, Targets, World};
use lastgood::{Dtype, Hash, Repository, Result, Run, RunName, RunOptions};
use lastgood_format::layout::NdBox;
use lastgood_store::{LocalStore, MemoryStore, Store, SystemEnv};

use crate::tap::Tap;

pub(crate) fn run_name() -> RunName {
    "test".parse().unwrap()
}

pub(crate) fn on(store: impl Store) -> Repository {
    Repository::create(Arc::new(store), Arc::new(SystemEnv::default())).unwrap()
}

pub(crate) fn in_memory() -> (MemoryStore, Repository) {
    let store = MemoryStore::default();
    let repository = on(store.clone());
    (store, repository)
}

pub(crate) fn in_folder() -> (tempfile::TempDir, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let repository = on(LocalStore::open(folder.path()).unwrap());
    (folder, repository)
}

/// A repository in memory whose calls a test decides.
pub(crate) fn tapped() -> (MemoryStore, Tap, Repository) {
    let store = MemoryStore::default();
    let tap = Tap::new(store.clone());
    let repository = on(tap.clone());
    (store, tap, repository)
}

/// Small chunks, no compression, and a wait that a test can sit through.
pub(crate) fn quick() -> SaveOptions {
    SaveOptions {
        chunk_bytes: 64 << 10,
        compression: Compression::Off,
        commit_wait: Duration::from_secs(20),
        ..SaveOptions::default()
    }
}

pub(crate) fn options(world: World, incarnation: &str) -> RunOptions {
    RunOptions {
        world,
        incarnation: Some(incarnation.into()),
        save: quick(),
        ..RunOptions::default()
    }
}

pub(crate) fn open(repository: &Repository, world: World, incarnation: &str) -> Run {
    Run::open(repository, &run_name(), options(world, incarnation)).unwrap()
}

pub(crate) fn open_alone(repository: &Repository, incarnation: &str) -> Run {
    open(repository, World::ALONE, incarnation)
}

/// Every rank of a world, each with a handle of its own, in one thread.
pub(crate) fn open_all(repository: &Repository, size: u32, incarnation: &str) -> Vec<Run> {
    (0..size).map(|rank| open(repository, World { rank, size }, incarnation)).collect()
}

/// Saves on every rank and waits for the checkpoint.
pub(crate) fn save_all(
    runs: &mut [Run],
    step: u64,
    declare: impl for<'a> Fn(&mut Capture<'a>) -> Result<()>,
) -> Result<Hash> {
    let handles: Vec<_> =
        runs.iter_mut().map(|run| run.save(step, Mode::Async, &declare)).collect::<Result<_>>()?;
    let mut id = None;
    for handle in handles {
        id = Some(handle.wait()?);
    }
    Ok(id.unwrap())
}

/// One tensor `m/w` of bytes, as a whole state.
pub(crate) fn capture_bytes<'a>(capture: &mut Capture<'a>, data: &'a [u8]) -> Result<()> {
    let mut part = capture.component("m", "t", lastgood::state::Durability::Durable)?;
    part.tensor("w", Dtype::U8, &[data.len() as u64], data)
}

pub(crate) fn save_bytes(run: &mut Run, step: u64, data: &[u8]) -> Result<Hash> {
    run.save(step, Mode::Sync, |capture| capture_bytes(capture, data))?.wait()
}

pub(crate) fn target_bytes<'a>(targets: &mut Targets<'a>, data: &'a mut [u8]) -> Result<()> {
    let mut slots = targets.component("m", "t", lastgood::state::Durability::Durable)?;
    slots.tensor("w", Dtype::U8, &[data.len() as u64], data)
}

pub(crate) fn restore_bytes(run: &mut Run, length: usize) -> Result<Option<(Restored, Vec<u8>)>> {
    let mut data = vec![0xee; length];
    let restored = run.restore(data.as_mut_slice(), |data, targets| target_bytes(targets, data))?;
    Ok(restored.map(|restored| (restored, data)))
}

/// The bytes of `m/w` in the checkpoint that `selector` names, read outside of any attempt.
pub(crate) fn read_bytes(
    repository: &Repository,
    selector: &Selector,
    length: usize,
) -> Result<(u64, Vec<u8>)> {
    let ledger = repository.existing(&run_name())?;
    let id = lastgood::restore::resolve(ledger.history(), selector)?.id;
    let contents = repository.contents(&ledger, &id)?;
    let mut data = vec![0xee; length];
    let mut targets = Targets::new(World::ALONE);
    target_bytes(&mut targets, &mut data)?;
    let restored = repository.restore(&contents, targets)?;
    Ok((restored.step, data))
}

/// A state whose bytes are a function of a seed: a replicated tensor, a row-sharded one, small ones,
/// and values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) weights: Vec<u8>,
    pub(crate) moments: Vec<u8>,
    pub(crate) small: Vec<Vec<u8>>,
    pub(crate) step: u64,
    pub(crate) rng: u64,
}

pub(crate) const ROWS: u64 = 12;
pub(crate) const COLUMNS: u64 = 50_000;
pub(crate) const WEIGHTS: u64 = 700_000;

pub(crate) fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

pub(crate) fn rows_of(world: World) -> (u64, u64) {
    let begin = ROWS * u64::from(world.rank) / u64::from(world.size);
    let end = ROWS * (u64::from(world.rank) + 1) / u64::from(world.size);
    (begin, end - begin)
}

/// Row `row` of the sharded tensor, whoever holds it.
fn row(seed: u64, row: u64) -> Vec<u8> {
    bytes(seed * 1000 + row, COLUMNS as usize * 4)
}

impl Model {
    pub(crate) fn at(seed: u64, world: World) -> Self {
        let (begin, count) = rows_of(world);
        Self {
            weights: bytes(seed, WEIGHTS as usize * 2),
            moments: (begin..begin + count).flat_map(|r| row(seed, r)).collect(),
            small: (0..20).map(|i| bytes(seed + i, 4 * i as usize)).collect(),
            step: seed,
            rng: seed * 10 + u64::from(world.rank),
        }
    }

    pub(crate) fn blank(world: World) -> Self {
        let (_, count) = rows_of(world);
        Self {
            weights: vec![0xee; WEIGHTS as usize * 2],
            moments: vec![0xee; (count * COLUMNS * 4) as usize],
            small: (0..20).map(|i| vec![0xee; 4 * i]).collect(),
            step: 0,
            rng: 0,
        }
    }

    pub(crate) fn capture<'a>(&'a self, capture: &mut Capture<'a>) -> Result<()> {
        use lastgood::state::Durability::Durable;
        let (begin, count) = rows_of(capture.world());
        let mut model = capture.component("model", "trainer", Durable)?;
        model.replicated("weights", Dtype::Bf16, &[WEIGHTS], &self.weights)?;
        for (i, small) in self.small.iter().enumerate() {
            model.replicated(&format!("small.{i}"), Dtype::F32, &[i as u64], small)?;
        }
        model.tied("tied", "weights")?;
        let mut optimizer = capture.component("optimizer", "trainer", Durable)?;
        let extent = NdBox { offsets: vec![begin, 0], sizes: vec![count, COLUMNS] };
        optimizer.shard("m", Dtype::F32, &[ROWS, COLUMNS], extent, &self.moments)?;
        let mut control = capture.component("control", "trainer", Durable)?;
        control.value("step", &self.step)?;
        control.rank_value("rng", &self.rng)
    }

    pub(crate) fn targets<'a>(&'a mut self, targets: &mut Targets<'a>, world: World) -> Result<()> {
        use lastgood::state::Durability::Durable;
        let (begin, count) = rows_of(world);
        let mut model = targets.component("model", "trainer", Durable)?;
        model.tensor("weights", Dtype::Bf16, &[WEIGHTS], &mut self.weights)?;
        for (i, small) in self.small.iter_mut().enumerate() {
            model.tensor(&format!("small.{i}"), Dtype::F32, &[i as u64], small)?;
        }
        model.apply("tied", Dtype::Bf16, &[WEIGHTS], NdBox::whole(&[WEIGHTS]), |_| Ok(()))?;
        let mut optimizer = targets.component("optimizer", "trainer", Durable)?;
        let extent = NdBox { offsets: vec![begin, 0], sizes: vec![count, COLUMNS] };
        optimizer.shard("m", Dtype::F32, &[ROWS, COLUMNS], extent, &mut self.moments)?;
        let mut control = targets.component("control", "trainer", Durable)?;
        control.value("step", &mut self.step)?;
        control.rank_value("rng", &mut self.rng)
    }
}
