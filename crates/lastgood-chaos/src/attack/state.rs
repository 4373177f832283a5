//! A state whose every byte is a function of its step, so that what comes back can be judged.

use lastgood::restore::Restored;
use lastgood::save::{Mode, SaveHandle};
use lastgood::state::{Capture, Durability, Targets, World};
use lastgood::{Dtype, Repository, Result, Run, RunName, RunOptions};
use lastgood_format::layout::NdBox;

/// Rows of the sharded tensor.
const ROWS: u64 = 8;

/// The run that attacks write.
///
/// # Panics
/// Never: the name is a plain one.
#[must_use]
pub fn run_name() -> RunName {
    #[expect(clippy::unwrap_used, reason = "a constant that is a plain name")]
    "attack".parse().unwrap()
}

/// How large the state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes of one row of the sharded tensor, of which there are eight.
    pub row_bytes: u64,
    /// Bytes of the tensor that every rank holds.
    pub replicated_bytes: u64,
}

impl Size {
    /// About 20 kB.
    pub const SMALL: Self = Self { row_bytes: 1800, replicated_bytes: 5000 };
    /// About 5 MB: parts of three ranks that a local store writes past the page cache.
    pub const LARGE: Self = Self { row_bytes: 600_000, replicated_bytes: 5000 };
}

/// One rank's part of the state.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    size: Size,
    world: World,
    replicated: Vec<u8>,
    /// Unchanged from step to step, so that its chunks are reused.
    frozen: Vec<u8>,
    /// Changes a little from step to step, so that its chunks become deltas.
    drifting: Vec<u8>,
    rows: Vec<u8>,
    step: u64,
}

impl Clone for State {
    fn clone(&self) -> Self {
        let Self { size, world, step, .. } = *self;
        let (replicated, frozen) = (self.replicated.clone(), self.frozen.clone());
        let (drifting, rows) = (self.drifting.clone(), self.rows.clone());
        Self { size, world, replicated, frozen, drifting, rows, step }
    }

    /// Keeps the memory of `self`.
    fn clone_from(&mut self, other: &Self) {
        (self.size, self.world, self.step) = (other.size, other.world, other.step);
        self.replicated.clone_from(&other.replicated);
        self.frozen.clone_from(&other.frozen);
        self.drifting.clone_from(&other.drifting);
        self.rows.clone_from(&other.rows);
    }
}

/// The bytes of what drifts.
const DRIFTING: u64 = 1600;

/// Noise of which a few numbers depend on the step.
fn drifted(step: u64) -> Vec<u8> {
    let mut bytes = fill(11, DRIFTING);
    bytes.iter_mut().step_by(160).for_each(|byte| *byte ^= step as u8);
    bytes
}

fn fill(seed: u64, bytes: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

fn rows_of(world: World) -> NdBox {
    let begin = ROWS * u64::from(world.rank) / u64::from(world.size);
    let end = ROWS * (u64::from(world.rank) + 1) / u64::from(world.size);
    NdBox { offsets: vec![begin, 0], sizes: vec![end - begin, 0] }
}

impl State {
    /// The state of one rank at `step`.
    #[must_use]
    pub fn at(step: u64, world: World, size: Size) -> Self {
        let extent = rows_of(world);
        let rows = extent.offsets[0]..extent.offsets[0] + extent.sizes[0];
        Self {
            size,
            world,
            replicated: fill(step, size.replicated_bytes),
            frozen: fill(7, 3000),
            drifting: drifted(step),
            rows: rows
                .map(|row| fill(step * 1000 + row, size.row_bytes))
                .collect::<Vec<_>>()
                .concat(),
            step,
        }
    }

    /// Memory to restore into, full of bytes that no step has.
    #[must_use]
    pub fn blank(world: World, size: Size) -> Self {
        let mut state = Self::at(0, world, size);
        state.replicated.fill(0xee);
        state.frozen.fill(0xee);
        state.drifting.fill(0xee);
        state.rows.fill(0xee);
        state
    }

    /// The step that the state says it is of.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    fn extent(&self) -> NdBox {
        let mut extent = rows_of(self.world);
        extent.sizes[1] = self.size.row_bytes;
        extent
    }

    /// Names the state for a save.
    ///
    /// # Errors
    /// As [`lastgood::state::Part`].
    pub fn capture<'a>(&'a self, capture: &mut Capture<'a>) -> Result<()> {
        let shape = [ROWS, self.size.row_bytes];
        let mut model = capture.component("model", "attack", Durability::Durable)?;
        model.replicated("w", Dtype::U8, &[self.size.replicated_bytes], &self.replicated)?;
        let mut frozen = capture.component("frozen", "attack", Durability::Durable)?;
        frozen.replicated("f", Dtype::F32, &[750], &self.frozen)?;
        let mut drifting = capture.component("drifting", "attack", Durability::Durable)?;
        drifting.replicated("d", Dtype::F32, &[DRIFTING / 4], &self.drifting)?;
        let mut optimizer = capture.component("optimizer", "attack", Durability::Durable)?;
        optimizer.shard("m", Dtype::U8, &shape, self.extent(), &self.rows)?;
        optimizer.value("step", &self.step)
    }

    /// Names the memory for a restore.
    ///
    /// # Errors
    /// As [`lastgood::state::Slots`].
    pub fn targets<'a>(&'a mut self, targets: &mut Targets<'a>) -> Result<()> {
        let (shape, extent) = ([ROWS, self.size.row_bytes], self.extent());
        let mut model = targets.component("model", "attack", Durability::Durable)?;
        model.tensor("w", Dtype::U8, &[self.size.replicated_bytes], &mut self.replicated)?;
        let mut frozen = targets.component("frozen", "attack", Durability::Durable)?;
        frozen.tensor("f", Dtype::F32, &[750], &mut self.frozen)?;
        let mut drifting = targets.component("drifting", "attack", Durability::Durable)?;
        drifting.tensor("d", Dtype::F32, &[DRIFTING / 4], &mut self.drifting)?;
        let mut optimizer = targets.component("optimizer", "attack", Durability::Durable)?;
        optimizer.shard("m", Dtype::U8, &shape, extent, &mut self.rows)?;
        optimizer.value("step", &mut self.step)
    }
}

/// Opens the run as one rank.
///
/// # Errors
/// As [`Run::open`].
pub fn open(
    repository: &Repository,
    world: World,
    incarnation: &str,
    options: RunOptions,
) -> Result<Run> {
    let incarnation = Some(incarnation.to_owned());
    Run::open(repository, &run_name(), RunOptions { world, incarnation, ..options })
}

/// Begins a save of the state at `step`.
///
/// # Errors
/// As [`Run::save`].
pub fn save(run: &mut Run, step: u64, size: Size) -> Result<SaveHandle> {
    let state = State::at(step, run.world(), size);
    run.save(step, Mode::Async, |capture| state.capture(capture))
}

/// Restores one rank alone and checks every byte against the step that the state says it is of.
///
/// # Errors
/// As [`Run::restore`]; `Diverged` if a byte is wrong.
pub fn restore_and_check(run: &mut Run, size: Size) -> Result<Option<Restored>> {
    let mut state = State::blank(run.world(), size);
    let Some(restored) = run.restore(&mut state, |state, targets| state.targets(targets))? else {
        return Ok(None);
    };
    check(&state, restored.step, size)?;
    Ok(Some(restored))
}

/// Checks every byte of a restored state.
///
/// # Errors
/// `Diverged` if a byte is wrong.
pub fn check(state: &State, step: u64, size: Size) -> Result<()> {
    if *state == State::at(step, state.world, size) {
        return Ok(());
    }
    Err(lastgood::Error::new(
        lastgood::ErrorKind::Diverged,
        format!("the state restored for step {step} has wrong bytes"),
    ))
}
