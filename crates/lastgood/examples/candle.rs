//! A small network of candle that learns two spirals, and can be killed at any moment:
//!
//! ```sh
//! cargo run --example candle --features candle -p lastgood -- /tmp/spirals
//! ```
//!
//! Stop it and start it again: it goes on, and ends with the same digest as if nothing had happened. Under
//! `lastgood run --store /tmp/spirals --run spirals -- target/debug/examples/candle` it is started again
//! by itself.
#![expect(clippy::disallowed_methods, reason = "a program reads its own environment")]
#![expect(clippy::print_stdout, reason = "a program says what it does")]

use std::env;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear, loss};
use lastgood::candle::{AdamW, Rng};
use lastgood::save::Mode;
use lastgood::state::{Capture, Durability, Targets};
use lastgood::{Repository, Result, Run, RunOptions};
use lastgood_format::Hash;
use lastgood_store::{Env, SystemEnv, open_url};

const STEPS: u64 = 300;
const EVERY: u64 = 10;
const POINTS: usize = 512;
const BATCH: usize = 128;
const HIDDEN: usize = 96;

/// Everything that decides how the training goes on.
struct Trainer {
    vars: VarMap,
    optimizer: AdamW,
    rng: Rng,
    /// The mean of the losses so far, a plain value.
    loss: Mean,
}

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Mean {
    sum_millionths: u64,
    steps: u64,
}

impl Trainer {
    fn capture<'a>(&'a self, capture: &mut Capture<'a>) -> Result<()> {
        capture.add("model", "trainer", &self.vars)?;
        capture.add("optimizer", "trainer", &self.optimizer)?;
        capture.add("rng", "trainer", &self.rng)?;
        capture.component("loss", "metrics", Durability::Durable)?.value("mean", &self.loss)
    }

    fn restore<'a>(&'a mut self, targets: &mut Targets<'a>) -> Result<()> {
        targets.add("model", "trainer", &mut self.vars)?;
        targets.add("optimizer", "trainer", &mut self.optimizer)?;
        targets.add("rng", "trainer", &mut self.rng)?;
        targets.component("loss", "metrics", Durability::Durable)?.value("mean", &mut self.loss)
    }
}

struct Network {
    layers: [Linear; 3],
}

impl Network {
    fn new(vars: &VarMap) -> candle_core::Result<Self> {
        let builder = VarBuilder::from_varmap(vars, DType::F32, &Device::Cpu);
        let layer = |name: &str, from, to| linear(from, to, builder.pp(name));
        let layers = [
            layer("first", 2, HIDDEN)?,
            layer("second", HIDDEN, HIDDEN)?,
            layer("last", HIDDEN, 2)?,
        ];
        Ok(Self { layers })
    }

    fn forward(&self, points: &Tensor) -> candle_core::Result<Tensor> {
        let [first, second, last] = &self.layers;
        last.forward(&second.forward(&first.forward(points)?.tanh()?)?.tanh()?)
    }
}

/// Two spirals around each other: where each point is, and which spiral it is of.
fn spirals() -> candle_core::Result<(Tensor, Tensor)> {
    let mut points = Vec::with_capacity(2 * POINTS);
    let mut labels = Vec::with_capacity(POINTS);
    for i in 0..POINTS {
        let (spiral, along) = ((i % 2) as u32, i as f32 / POINTS as f32);
        let angle = along * 7.0 + std::f32::consts::PI * spiral as f32;
        points.extend([angle.cos() * along, angle.sin() * along]);
        labels.push(spiral);
    }
    let points = Tensor::from_vec(points, (POINTS, 2), &Device::Cpu)?;
    Ok((points, Tensor::from_vec(labels, POINTS, &Device::Cpu)?))
}

fn step(
    trainer: &mut Trainer,
    network: &Network,
    data: &(Tensor, Tensor),
) -> candle_core::Result<f32> {
    let chosen: Vec<u32> = (0..BATCH).map(|_| trainer.rng.below(POINTS) as u32).collect();
    let chosen = Tensor::from_vec(chosen, BATCH, &Device::Cpu)?;
    let noise = trainer.rng.normal(0.0, 0.01, (BATCH, 2), &Device::Cpu)?;
    let points = (data.0.index_select(&chosen, 0)? + noise)?;
    let labels = data.1.index_select(&chosen, 0)?;
    let loss = loss::cross_entropy(&network.forward(&points)?, &labels)?;
    trainer.optimizer.backward_step(&loss)?;
    loss.to_scalar()
}

/// The initial weights from our generator: candle's own cannot be seeded on the CPU.
fn initial(rng: &mut Rng, vars: &VarMap) -> candle_core::Result<()> {
    let map = vars.data().lock().map_err(candle_core::Error::msg)?;
    let names: std::collections::BTreeSet<&String> = map.keys().collect();
    for name in names {
        let deviation = if name.ends_with("bias") { 0.0 } else { 0.35 };
        map[name].set(&rng.normal(0.0, deviation, map[name].shape(), &Device::Cpu)?)?;
    }
    Ok(())
}

fn digest(vars: &VarMap) -> candle_core::Result<Hash> {
    let map = vars.data().lock().map_err(candle_core::Error::msg)?;
    let all: std::collections::BTreeMap<_, _> = map.iter().collect();
    let mut bytes = Vec::new();
    for (name, var) in all {
        bytes.extend(name.as_bytes());
        bytes.extend(var.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()));
    }
    Ok(Hash::of(&bytes))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let url = env::args().nth(1).or_else(|| env::var("LASTGOOD_STORE").ok());
    let url = url.ok_or("give a folder or a store's URL")?;
    let name = env::var("LASTGOOD_RUN").unwrap_or_else(|_| "spirals".into()).parse()?;
    let clock: Arc<dyn Env> = Arc::new(SystemEnv::default());
    let repository = Repository::create(open_url(&url, &Default::default(), &clock)?, clock)?;
    // Under a supervisor this joins the attempt that it has started. A job of several ranks takes all of
    // this from `lastgood_serve::Rank::from_env`, which also tells the supervisor of each step.
    let incarnation = env::var("LASTGOOD_INCARNATION").ok();
    let mut run = Run::open(&repository, &name, RunOptions { incarnation, ..Default::default() })?;

    let vars = VarMap::new();
    let network = Network::new(&vars)?;
    let mut rng = Rng::seeded(7);
    initial(&mut rng, &vars)?;
    let optimizer = AdamW::of(&vars, ParamsAdamW { lr: 0.01, ..Default::default() })?;
    let mut trainer = Trainer { vars, optimizer, rng, loss: Mean::default() };
    let restored = run.restore(&mut trainer, Trainer::restore)?;
    let begin = restored.map_or(0, |restored| restored.step);
    println!("from step {begin}");

    let data = spirals()?;
    for number in begin + 1..=STEPS {
        let loss = step(&mut trainer, &network, &data)?;
        trainer.loss.sum_millionths += (f64::from(loss) * 1e6) as u64;
        trainer.loss.steps += 1;
        println!("step {number}: loss {loss:.4}");
        if number % EVERY == 0 {
            run.save(number, Mode::Async, |capture| trainer.capture(capture))?;
        }
    }
    run.close()?;
    let guessed = network.forward(&data.0)?.argmax(D::Minus1)?;
    let right = guessed.eq(&data.1)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()?;
    let mean = trainer.loss.sum_millionths as f64 / trainer.loss.steps as f64 / 1e6;
    println!("{right} of {POINTS} points right, mean loss {mean:.6}");
    println!("digest {}", digest(&trainer.vars)?);
    Ok(())
}
