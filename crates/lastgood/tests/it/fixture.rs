//! Repositories to test on, and states to save.

use std::sync::Arc;

use lastgood::state::{Capture, Targets, World};
use lastgood::{Dtype, Repository, Result, RunName};
use lastgood_format::layout::NdBox;
use lastgood_store::{LocalStore, MemoryStore, SystemEnv};

pub(crate) fn run_name() -> RunName {
    "test".parse().unwrap()
}

pub(crate) fn in_memory() -> (MemoryStore, Repository) {
    let store = MemoryStore::default();
    let repository =
        Repository::create(Arc::new(store.clone()), Arc::new(SystemEnv::default())).unwrap();
    (store, repository)
}

pub(crate) fn in_folder() -> (tempfile::TempDir, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    let repository = Repository::create(Arc::new(store), Arc::new(SystemEnv::default())).unwrap();
    (folder, repository)
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
