//! A rank of the training job: what one step does, and what of it must be saved.
//!
//! The data, the noise and the sums belong to *logical* ranks, whose number the configuration fixes.
//! A process takes an equal part of them. So the job comes to the same bytes on any number of
//! processes, and a checkpoint of four can go on with two.

mod state;

use std::ops::Range;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use self::state::rows;
pub(crate) use self::state::{Control, JobState, JobStateMut, Tensor};
use super::augmentation::Augmentation;
use super::collective::{Collective, CollectiveError, to_bytes};
use super::digits::{CLASSES, Digits, PIXELS};
use super::loader::{Loader, LoaderState};
use super::network::{Activations, Network};
use super::optimizer::{AdamW, Schedule};
use super::rng::{Rng, Stream, seeded};
use super::shares::{Shares, part};

/// All that decides what a job computes; the same on every rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct JobConfig {
    /// Decides the first weights, the order of the samples and the noise. Default 1.
    pub(crate) seed: u64,
    /// The steps of the whole training. Default 300.
    pub(crate) steps: u64,
    /// The samples of a step over all ranks. Default 128.
    pub(crate) global_batch: usize,
    /// Into how many parts the batch is divided; at least as many as there are processes. Default 4.
    pub(crate) logical_ranks: usize,
    /// The widths of the layers between pixels and classes. Default 192 and 96.
    pub(crate) hidden: Vec<usize>,
    /// How far images are moved at most while learning, in pixels. Default 0.5.
    pub(crate) shift: f32,
    /// How much each pixel is changed at most while learning, where ink is 1. Default 0.5.
    pub(crate) noise: f32,
    /// The largest learning rate. Default 0.01.
    pub(crate) learning_rate: f32,
    /// The steps until it is reached. Default 20.
    pub(crate) warmup: u64,
    /// How much weights shrink per step and learning rate; biases do not. Default 0.01.
    pub(crate) weight_decay: f32,
    /// A rest in each step that makes it as long as a larger model's, in milliseconds. Default 5.
    pub(crate) step_delay_ms: u64,
}

impl Default for JobConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            steps: 300,
            global_batch: 128,
            logical_ranks: 4,
            hidden: vec![192, 96],
            shift: 0.5,
            noise: 0.5,
            learning_rate: 0.01,
            warmup: 20,
            weight_decay: 0.01,
            step_delay_ms: 5,
        }
    }
}

impl JobConfig {
    /// Differs between jobs that must not train together.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        Ok(blake3::hash(&serde_json::to_vec(self)?).to_hex().to_string())
    }

    fn check(&self, rank: u32, world_size: u32) -> Result<()> {
        ensure!(rank < world_size, "rank {rank} of {world_size}: ranks count from 0");
        ensure!(
            world_size as usize <= self.logical_ranks,
            "{world_size} processes have nothing to do for all in {} logical ranks: start fewer",
            self.logical_ranks
        );
        ensure!(
            self.logical_ranks <= self.global_batch,
            "a batch of {} leaves some of {} logical ranks without samples",
            self.global_batch,
            self.logical_ranks
        );
        ensure!(!self.hidden.contains(&0), "a hidden layer needs a width of at least 1");
        let numbers = [self.shift, self.noise, self.learning_rate, self.weight_decay];
        ensure!(
            numbers.iter().all(|number| (0.0..=1.0).contains(number)),
            "shift, noise, learning_rate and weight_decay are {numbers:?}: each is from 0 to 1"
        );
        Ok(())
    }
}

/// What one step did.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepReport {
    /// The finished steps, this one included.
    pub(crate) step: u64,
    /// The mean loss over the batch before the update.
    pub(crate) loss: f32,
    /// The learning rate of the update.
    pub(crate) learning_rate: f32,
    /// The samples that each logical rank of this process learned from.
    pub(crate) samples: Vec<(u32, Vec<usize>)>,
}

/// One rank of the job.
#[derive(Debug)]
pub(crate) struct Job {
    config: JobConfig,
    rank: u32,
    training: Digits,
    test: Digits,
    network: Network,
    loader: Loader,
    activations: Activations,
    /// The logical ranks of this process.
    logical: Range<usize>,
    /// The rows of each parameter whose moments this process holds.
    own_rows: Vec<Range<usize>>,
    /// These rows in the flat vector, for every rank.
    shares: Shares,
    // What follows is the state.
    weights: Vec<f32>,
    optimizer: AdamW,
    generators: Vec<[u64; 4]>,
    control: Control,
}

impl Job {
    /// The job before its first step, as rank `rank` of `world_size` processes.
    pub(crate) fn new(config: &JobConfig, rank: u32, world_size: u32) -> Result<Self> {
        config.check(rank, world_size)?;
        let (training, test) = Digits::load()?;
        let widths = [&[PIXELS], config.hidden.as_slice(), &[CLASSES]].concat();
        let network = Network::new(&widths);
        let logical = part(config.logical_ranks, rank as usize, world_size as usize);
        let shares = Shares::new(world_size, |rank| {
            let rows = rows(network.parameters(), rank, world_size);
            network.parameters().iter().zip(&rows).map(|(p, rows)| p.rows_range(rows)).collect()
        });
        let generators =
            logical.clone().map(|l| seeded(config.seed, Stream::Noise(l as u64))).collect();
        let schedule =
            Schedule { peak: config.learning_rate, warmup: config.warmup, steps: config.steps };
        let loader = LoaderState { seed: config.seed, epoch: 0, position: 0 };
        Ok(Self {
            rank,
            loader: Loader::new(training.len()),
            activations: network.activations(),
            own_rows: rows(network.parameters(), rank, world_size),
            weights: network.initial(config.seed),
            optimizer: AdamW::new(shares.pack(rank, &decay(&network, config.weight_decay))),
            generators,
            control: Control { step: 0, loader, schedule },
            config: config.clone(),
            training,
            test,
            network,
            logical,
            shares,
        })
    }

    /// The logical ranks of this process.
    pub(crate) fn logical(&self) -> Range<u32> {
        self.logical.start as u32..self.logical.end as u32
    }

    /// The finished steps.
    pub(crate) fn step(&self) -> u64 {
        self.control.step
    }

    /// True after the last step.
    pub(crate) fn is_finished(&self) -> bool {
        self.control.step >= self.config.steps
    }

    /// Learns from the next batch, together with the other ranks.
    ///
    /// After an error the job stands between two steps: it must not be saved, and must be restored
    /// before it goes on.
    pub(crate) fn train_step(
        &mut self,
        collective: &mut Collective,
    ) -> Result<StepReport, CollectiveError> {
        let batch = self.loader.next(&mut self.control.loader, self.config.global_batch);
        let gradients: Vec<Vec<f32>> =
            self.logical.clone().map(|logical| self.gradient(logical, &batch)).collect();
        thread::sleep(Duration::from_millis(self.config.step_delay_ms));

        // Every rank gets the sum for its own rows, and all get the loss, which stands behind them.
        let loss_at = self.network.len();
        let wanted = self.shares.clone().with_common(loss_at..loss_at + 1);
        let mut mean = collective.reduce(&gradients, &wanted)?;
        mean.iter_mut().for_each(|sum| *sum /= batch.len() as f32);
        let loss = mean.pop().unwrap_or_default();

        let learning_rate = self.control.schedule.rate(self.control.step);
        let mut own = self.shares.pack(self.rank, &self.weights);
        self.optimizer.update(self.control.step, learning_rate, &mean, &mut own);
        self.shares.unpack(self.rank, &own, &mut self.weights);
        collective.share(&mut self.weights, &self.shares)?;
        self.control.step += 1;
        let samples = self.logical.clone().map(|logical| {
            let own = part(batch.len(), logical, self.config.logical_ranks);
            (logical as u32, batch[own].to_vec())
        });
        let samples = samples.collect();
        Ok(StepReport { step: self.control.step, loss, learning_rate, samples })
    }

    /// The gradient of the samples of one logical rank, added up, and behind it their loss.
    fn gradient(&mut self, logical: usize, batch: &[usize]) -> Vec<f32> {
        let mut sum = vec![0.0; self.network.len() + 1];
        let (gradient, loss) = sum.split_at_mut(self.network.len());
        let augmentation = Augmentation { shift: self.config.shift, noise: self.config.noise };
        let mut rng = Rng(&mut self.generators[logical - self.logical.start]);
        let mut image = [0.0; PIXELS];
        for index in &batch[part(batch.len(), logical, self.config.logical_ranks)] {
            let (original, label) = self.training.sample(*index);
            augmentation.apply(original, &mut rng, &mut image);
            let sample = (&image[..], label);
            loss[0] +=
                self.network.add_gradient(&self.weights, sample, &mut self.activations, gradient);
        }
        sum
    }

    /// Flips a bit of the last bias, on which every loss depends; memory that fails does so without being asked.
    pub(crate) fn flip_bit(&mut self) {
        if let Some(weight) = self.weights.last_mut() {
            *weight = f32::from_bits(weight.to_bits() ^ 1 << 20);
        }
    }

    /// The share of the test samples that are recognised.
    pub(crate) fn evaluate(&self) -> f64 {
        let mut activations = self.network.activations();
        let recognised = (0..self.test.len()).filter(|index| {
            let (image, label) = self.test.sample(*index);
            self.network.forward(&self.weights, image, &mut activations);
            activations.likeliest() == label
        });
        recognised.count() as f64 / self.test.len() as f64
    }

    /// The BLAKE3 hash of the whole state, over all ranks. It does not depend on the number of
    /// processes: parameters, `m`, `v`, generators, step, loader and schedule, each as
    /// little-endian numbers in the order of the flat vector and of logical ranks.
    pub(crate) fn digest(
        &self,
        collective: &mut Collective,
    ) -> Result<blake3::Hash, CollectiveError> {
        let mut hasher = blake3::Hasher::new();
        absorb(&mut hasher, &self.weights);
        for own in [&self.optimizer.m, &self.optimizer.v] {
            let mut whole = vec![0.0; self.network.len()];
            self.shares.unpack(self.rank, own, &mut whole);
            collective.share(&mut whole, &self.shares)?;
            absorb(&mut hasher, &whole);
        }
        let words = self.generators.as_flattened().iter();
        hasher.update(&collective.gather(words.flat_map(|word| word.to_le_bytes()).collect())?);
        let Control { step, loader, schedule } = self.control;
        for word in [step, loader.seed, loader.epoch, loader.position] {
            hasher.update(&word.to_le_bytes());
        }
        hasher.update(&schedule.peak.to_le_bytes());
        for word in [schedule.warmup, schedule.steps] {
            hasher.update(&word.to_le_bytes());
        }
        Ok(hasher.finalize())
    }
}

/// The weight decay of every parameter.
fn decay(network: &Network, decay: f32) -> Vec<f32> {
    let mut flat = vec![0.0; network.len()];
    for parameter in network.parameters().iter().filter(|parameter| parameter.shape.len() > 1) {
        flat[parameter.range.clone()].fill(decay);
    }
    flat
}

fn absorb(hasher: &mut blake3::Hasher, numbers: &[f32]) {
    hasher.update(&to_bytes(numbers));
}

#[cfg(test)]
mod tests;
