//! One rank process of the demo: trains, saves every few steps, restores when it is started again.

use std::collections::BTreeMap;
use std::env;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lastgood::journal::{JournalOptions, StepRecord, Value};
use lastgood::replay::Due;
use lastgood::save::{Mode, SaveHandle, SaveOptions, SaveStatus};
use lastgood::state::{Capture, Durability, Part, Slots, Targets};
use lastgood::{Dtype, Repository, Run, RunOptions};
use lastgood_format::layout::NdBox;
use lastgood_serve::Rank;
use lastgood_store::Store;

use super::collective::{Collective, Rendezvous};
use super::job::{Control, Job, JobConfig, JobState, JobStateMut, StepReport, Tensor};
use super::message::{Message, Report};
use super::pause::{Pause, PauseStore};
use crate::args::{Component, DemoRank};
use crate::exit::Exit;
use crate::session;

/// Holds a [`Pause`], if this rank is to stop in a save.
pub(crate) const PAUSE: &str = "LASTGOOD_DEMO_PAUSE";

/// How long the other ranks may take to join, or in a step.
const PATIENCE: Duration = Duration::from_secs(30);

const OWNER: &str = "demo";

/// Trains to the end.
pub(crate) fn run(args: &DemoRank) -> Result<Exit> {
    let default = JobConfig::default();
    let step_delay_ms = args.rest_ms.unwrap_or(default.step_delay_ms);
    let config = JobConfig { steps: args.steps, step_delay_ms, ..default };
    let place = Rank::from_env()?;
    let repository = repository(place.store.as_deref().context("no store is given")?)?;
    let name = place.run.context("no run is given")?;
    // A digest that was asked for is not left out because the next one comes.
    let in_flight_max = if args.digest_every > 0 { 1 } else { 2 };
    let save = SaveOptions { in_flight_max, ..SaveOptions::default() };
    let world = place.options.world;
    let mut job = Job::new(&config, world.rank, world.size)?;
    let journal = place
        .options
        .journal
        .map(|journal| JournalOptions { logical: Some(job.logical()), ..journal });
    let environment = environment(&config)?;
    let options = RunOptions { save, journal, environment, ..place.options };
    let mut run = Run::open(&repository, &name, options)?;
    let known = Known(args.forget);
    run.restore(&mut job, |job, targets| known.targets(job.state_mut(), targets))?;
    let token = format!("{name} {}", config.fingerprint()?);
    let mut collective = Collective::join(&Rendezvous {
        address: env::var("MASTER_ADDR").context("MASTER_ADDR")?,
        port: env::var("MASTER_PORT").context("MASTER_PORT")?.parse().context("MASTER_PORT")?,
        token,
        attempt: run.attempt().number,
        rank: world.rank,
        world_size: world.size,
        timeout: PATIENCE,
    })?;
    let mut saves = Saves { tell: world.rank == 0, under_way: Vec::new() };
    let mut loss = None;
    while !job.is_finished() && run.goes_on() {
        let report = job.train_step(&mut collective)?;
        loss = Some(report.loss);
        if args.flip == Some(job.step()) {
            job.flip_bit();
        }
        run.step(record(&report));
        if args.crash == Some(job.step()) {
            process::abort();
        }
        let is_due = run.due(job.step()) != Due::Nothing;
        if job.step().is_multiple_of(args.every) || job.is_finished() || is_due {
            let mode = if job.is_finished() { Mode::Sync } else { Mode::Async };
            saves.under_way.push(run.save(job.step(), mode, |c| known.capture(job.state(), c))?);
        } else if args.digest_every > 0 && job.step().is_multiple_of(args.digest_every) {
            run.digest(job.step(), |c| known.capture(job.state(), c))?;
        }
        saves.look()?;
    }
    // Else the other ranks are where this one has left them.
    run.check_resume()?;
    let digest = job.digest(&mut collective)?.to_hex().to_string();
    if world.rank == 0 {
        let accuracy = job.evaluate();
        Message::Done(Report { step: job.step(), digest, accuracy, loss }).send()?;
    }
    run.close()?;
    Ok(Exit::Done)
}

/// What decides the bytes that this program comes to, beside its state.
fn environment(config: &JobConfig) -> Result<BTreeMap<String, String>> {
    Ok(BTreeMap::from([
        ("code.configuration".to_owned(), config.fingerprint()?),
        ("package.lastgood".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("cpu.architecture".to_owned(), env::consts::ARCH.to_owned()),
    ]))
}

fn record(report: &StepReport) -> StepRecord {
    let whole = StepRecord::new(report.step).loss(report.loss).with("lr", report.learning_rate);
    report.samples.iter().fold(whole, |record, (logical, samples)| {
        let samples = samples.iter().map(|sample| Value::from(*sample as u64)).collect::<Vec<_>>();
        record.of_rank(*logical, "data", samples)
    })
}

fn repository(url: &str) -> Result<Repository> {
    let (store, env) = session::open_store(url)?;
    let pause = env::var(PAUSE).ok().map(|pause| pause.parse::<Pause>()).transpose()?;
    let store: Arc<dyn Store> = match pause {
        Some(pause) => Arc::new(PauseStore::new(store, pause)),
        None => store,
    };
    Ok(Repository::open(store, env)?)
}

/// The saves that go on behind the training.
struct Saves {
    tell: bool,
    under_way: Vec<SaveHandle>,
}

impl Saves {
    /// Tells of the ones that are over.
    fn look(&mut self) -> Result<()> {
        let mut under_way = Vec::new();
        for save in self.under_way.drain(..) {
            let step = save.step();
            let message = match save.status() {
                SaveStatus::Committed(id) => Message::Saved { step, id },
                SaveStatus::Failed(error) => Message::SaveFailed { step, error: error.to_string() },
                SaveStatus::Superseded => continue,
                SaveStatus::Capturing | SaveStatus::Captured | SaveStatus::Durable => {
                    under_way.push(save);
                    continue;
                }
            };
            if self.tell {
                message.send()?;
            }
        }
        self.under_way = under_way;
        Ok(())
    }
}

/// Which components are saved and restored: all but the one that is forgotten.
#[derive(Clone, Copy, Debug)]
struct Known(Option<Component>);

impl Known {
    fn has(self, component: Component) -> bool {
        self.0 != Some(component)
    }

    fn capture<'a>(self, state: JobState<'a>, to: &mut Capture<'a>) -> lastgood::Result<()> {
        if self.has(Component::Model) {
            let mut model = to.component("model", OWNER, Durability::Durable)?;
            for tensor in state.parameters {
                let bytes = bytemuck::cast_slice(tensor.data);
                model.replicated(&tensor.name, Dtype::F32, &tensor.shape, bytes)?;
            }
        }
        if self.has(Component::Optimizer) {
            let mut optimizer = to.component("optimizer", OWNER, Durability::Durable)?;
            for tensor in state.moments {
                shard(&mut optimizer, tensor, Dtype::F32)?;
            }
        }
        if self.has(Component::Rng) {
            let mut rng = to.component("rng", OWNER, Durability::Durable)?;
            shard(&mut rng, state.generators, Dtype::U64)?;
        }
        to.component("control", OWNER, Durability::Durable)?.value("control", state.control)
    }

    fn targets<'a>(self, state: JobStateMut<'a>, to: &mut Targets<'a>) -> lastgood::Result<()> {
        if self.has(Component::Model) {
            let mut model = to.component("model", OWNER, Durability::Durable)?;
            for tensor in state.parameters {
                let bytes = bytemuck::cast_slice_mut(tensor.data);
                model.tensor(&tensor.name, Dtype::F32, &tensor.shape, bytes)?;
            }
        }
        if self.has(Component::Optimizer) {
            let mut optimizer = to.component("optimizer", OWNER, Durability::Durable)?;
            for tensor in state.moments {
                slot(&mut optimizer, tensor, Dtype::F32)?;
            }
        }
        if self.has(Component::Rng) {
            let mut rng = to.component("rng", OWNER, Durability::Durable)?;
            slot(&mut rng, state.generators, Dtype::U64)?;
        }
        let control: &'a mut Control = state.control;
        to.component("control", OWNER, Durability::Durable)?.value("control", control)
    }
}

fn shard<'a, T: bytemuck::Pod>(
    part: &mut Part<'_, 'a>,
    tensor: Tensor<&'a [T]>,
    dtype: Dtype,
) -> lastgood::Result<()> {
    let extent = extent(&tensor);
    part.shard(&tensor.name, dtype, &tensor.shape, extent, bytemuck::cast_slice(tensor.data))
}

fn slot<'a, T: bytemuck::Pod>(
    slots: &mut Slots<'_, 'a>,
    tensor: Tensor<&'a mut [T]>,
    dtype: Dtype,
) -> lastgood::Result<()> {
    let extent = extent(&tensor);
    slots.shard(&tensor.name, dtype, &tensor.shape, extent, bytemuck::cast_slice_mut(tensor.data))
}

/// The rows that a rank holds, as a box.
fn extent<D>(tensor: &Tensor<D>) -> NdBox {
    let (rows, rest) = (&tensor.rows, tensor.shape.get(1..).unwrap_or_default());
    let mut extent = NdBox { offsets: vec![rows.start], sizes: vec![rows.end - rows.start] };
    extent.offsets.extend(rest.iter().map(|_| 0));
    extent.sizes.extend(rest);
    extent
}
