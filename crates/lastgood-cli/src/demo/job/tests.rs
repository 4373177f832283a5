use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::*;
use crate::demo::collective::tests::in_world;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A job that is over soon, but whose loader begins a second epoch.
fn small() -> JobConfig {
    JobConfig {
        steps: 14,
        hidden: vec![18, 10],
        warmup: 3,
        step_delay_ms: 0,
        ..JobConfig::default()
    }
}

fn train(job: &mut Job, collective: &mut Collective, until: u64) {
    while job.step() < until {
        job.train_step(collective).unwrap();
    }
}

/// The digest after the last step, which all ranks must agree on.
fn digest_of(config: &JobConfig, world_size: u32) -> blake3::Hash {
    let digests = in_world(world_size, TIMEOUT, |rank, mut collective| {
        let mut job = Job::new(config, rank, world_size).unwrap();
        train(&mut job, &mut collective, config.steps);
        job.digest(&mut collective).unwrap()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    digests[0]
}

/// A checkpoint as a checkpoint library sees it: rows of tensors by name, and a value.
#[derive(Clone, Debug, Default)]
struct Saved {
    floats: BTreeMap<String, BTreeMap<u64, Vec<f32>>>,
    words: BTreeMap<u64, Vec<u64>>,
    control: Option<Control>,
}

impl Saved {
    fn add(&mut self, job: &Job) {
        let JobState { parameters, moments, generators, control } = job.state();
        for tensor in parameters.into_iter().chain(moments) {
            let rows = self.floats.entry(tensor.name).or_default();
            let columns = tensor.data.len() / (tensor.rows.end - tensor.rows.start) as usize;
            for (row, data) in tensor.rows.zip(tensor.data.chunks_exact(columns)) {
                rows.insert(row, data.to_vec());
            }
        }
        for (row, data) in generators.rows.zip(generators.data.chunks_exact(4)) {
            self.words.insert(row, data.to_vec());
        }
        self.control = Some(*control);
    }

    fn restore(&self, job: &mut Job) {
        let JobStateMut { parameters, moments, generators, control } = job.state_mut();
        for tensor in parameters.into_iter().chain(moments) {
            let rows = self.floats[&tensor.name].range(tensor.rows);
            let data: Vec<f32> = rows.flat_map(|(_, data)| data).copied().collect();
            tensor.data.copy_from_slice(&data);
        }
        let words: Vec<u64> =
            self.words.range(generators.rows).flat_map(|(_, data)| data).copied().collect();
        generators.data.copy_from_slice(&words);
        *control = self.control.unwrap();
    }
}

/// What `world_size` ranks hold after `step` steps.
fn saved_at(config: &JobConfig, world_size: u32, step: u64) -> Saved {
    let saved = std::sync::Mutex::new(Saved::default());
    in_world(world_size, TIMEOUT, |rank, mut collective| {
        let mut job = Job::new(config, rank, world_size).unwrap();
        train(&mut job, &mut collective, step);
        saved.lock().unwrap().add(&job);
    });
    saved.into_inner().unwrap()
}

/// The digest after the last step when new ranks go on from `saved`.
fn resumed(config: &JobConfig, world_size: u32, saved: &Saved) -> blake3::Hash {
    let digests = in_world(world_size, TIMEOUT, |rank, mut collective| {
        // What is not restored is another seed's, so that it cannot go unnoticed.
        let other = JobConfig { seed: config.seed + 1, ..config.clone() };
        let mut job = Job::new(&other, rank, world_size).unwrap();
        saved.restore(&mut job);
        train(&mut job, &mut collective, config.steps);
        job.digest(&mut collective).unwrap()
    });
    digests[0]
}

#[test]
fn the_same_configuration_gives_the_same_bytes() {
    let expected = digest_of(&small(), 4);
    assert_eq!(digest_of(&small(), 4), expected);
    assert_ne!(digest_of(&JobConfig { seed: 2, ..small() }, 4), expected);
}

#[test]
fn the_number_of_processes_does_not_change_a_byte() {
    let expected = digest_of(&small(), 4);
    for world_size in [1, 2, 3] {
        assert_eq!(digest_of(&small(), world_size), expected, "{world_size} processes");
    }
}

#[test]
fn a_restored_job_goes_on_to_the_same_bytes_on_any_number_of_processes() {
    let expected = digest_of(&small(), 4);
    for (before, after, step) in [(4, 4, 1), (4, 4, 7), (4, 2, 12), (1, 4, 7), (4, 4, 0)] {
        let saved = saved_at(&small(), before, step);
        assert_eq!(
            resumed(&small(), after, &saved),
            expected,
            "saved by {before} at step {step}, restored by {after}"
        );
    }
}

#[test]
fn every_part_of_the_state_decides_the_end() {
    let config = small();
    let saved = saved_at(&config, 4, 7);
    let expected = digest_of(&config, 4);
    let check = |what: &str, change: &dyn Fn(&mut Saved)| {
        let mut changed = saved.clone();
        change(&mut changed);
        assert_ne!(resumed(&config, 4, &changed), expected, "{what} may be lost unnoticed");
    };
    for name in saved.floats.keys() {
        check(name, &|saved| {
            let row = saved.floats.get_mut(name).unwrap().values_mut().last().unwrap();
            let last = row.last_mut().unwrap();
            *last += last.abs() / 8.0 + 1e-3;
        });
    }
    check("a generator", &|saved| saved.words.get_mut(&3).unwrap()[0] ^= 1);
    check("the position", &|saved| saved.control.as_mut().unwrap().loader.position -= 1);
    check("the epoch", &|saved| saved.control.as_mut().unwrap().loader.epoch += 1);
    check("the order", &|saved| saved.control.as_mut().unwrap().loader.seed += 1);
    check("the schedule", &|saved| saved.control.as_mut().unwrap().schedule.peak *= 2.0);
    check("the step", &|saved| saved.control.as_mut().unwrap().step -= 1);
}

#[test]
fn shards_make_up_whole_tensors() {
    let config = small();
    let mut saved = Saved::default();
    let mut shapes = BTreeMap::new();
    for rank in 0..4 {
        let job = Job::new(&config, rank, 4).unwrap();
        saved.add(&job);
        let state = job.state();
        shapes
            .extend(state.moments.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())));
        assert_eq!(state.generators.shape, [4, 4]);
    }
    assert_eq!(shapes.len(), 2 * 6);
    assert_eq!(shapes["m.layer0.weight"], [64, 18]);
    assert_eq!(shapes["v.layer2.bias"], [10]);
    for (name, shape) in shapes {
        let rows = &saved.floats[&name];
        assert!(rows.keys().copied().eq(0..shape[0]), "{name}");
        assert_eq!(rows.values().flatten().count() as u64, shape.iter().product::<u64>(), "{name}");
    }
    assert_eq!(saved.words.len(), 4);
}

#[test]
fn the_default_job_learns_to_read_digits() {
    let config = JobConfig { step_delay_ms: 0, ..JobConfig::default() };
    let accuracy = in_world(2, TIMEOUT, |rank, mut collective| {
        let mut job = Job::new(&config, rank, 2).unwrap();
        assert!(job.evaluate() < 0.3);
        let first = job.train_step(&mut collective).unwrap();
        train(&mut job, &mut collective, config.steps - 1);
        let last = job.train_step(&mut collective).unwrap();
        assert!(job.is_finished() && last.step == config.steps);
        assert!(last.loss < first.loss / 4.0, "{first:?} {last:?}");
        job.evaluate()
    });
    assert!(accuracy[0] > 0.93 && accuracy[0] == accuracy[1], "{accuracy:?}");
}

#[test]
fn a_rank_that_dies_ends_the_step_of_the_others() {
    let config = JobConfig { steps: 1000, ..small() };
    let ends = in_world(4, TIMEOUT, |rank, mut collective| {
        let mut job = Job::new(&config, rank, 4).unwrap();
        if rank == 2 {
            train(&mut job, &mut collective, 5);
            return (job.step(), None, Duration::ZERO);
        }
        loop {
            let started = Instant::now();
            if let Err(error) = job.train_step(&mut collective) {
                return (job.step(), error.rank(), started.elapsed());
            }
        }
    });
    for (rank, (step, lost, waited)) in ends.into_iter().enumerate().filter(|(rank, _)| *rank != 2)
    {
        assert_eq!((step, lost), (5, Some(2)), "rank {rank}");
        assert!(waited < TIMEOUT / 5, "rank {rank} waited {waited:?}");
    }
}

fn weights_digest(job: &Job) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    absorb(&mut hasher, &job.weights);
    hasher.finalize()
}

#[test]
fn weights_are_the_same_on_every_rank_after_each_step() {
    let config = small();
    let histories = in_world(4, TIMEOUT, |rank, mut collective| {
        let mut job = Job::new(&config, rank, 4).unwrap();
        let step = |_| {
            let report = job.train_step(&mut collective).unwrap();
            (report.step, report.loss.to_bits(), weights_digest(&job))
        };
        (0..config.steps).map(step).collect::<Vec<_>>()
    });
    assert!(histories.iter().all(|history| *history == histories[0]));
    let digests: BTreeSet<_> = histories[0].iter().map(|(.., digest)| digest.to_hex()).collect();
    assert_eq!(digests.len() as u64, config.steps, "every step changes the weights");
}

#[test]
fn configurations_that_cannot_be_run_are_refused() {
    let config = JobConfig::default;
    let refused = [
        (config(), 4, 4),
        (config(), 0, 5),
        (JobConfig { global_batch: 3, ..config() }, 0, 4),
        (JobConfig { logical_ranks: 0, ..config() }, 0, 1),
        (JobConfig { hidden: vec![0], ..config() }, 0, 4),
        (JobConfig { shift: 1.5, ..config() }, 0, 4),
        (JobConfig { noise: f32::NAN, ..config() }, 0, 4),
    ];
    for (config, rank, world_size) in refused {
        assert!(Job::new(&config, rank, world_size).is_err(), "{config:?} {rank} of {world_size}");
    }
    let other = JobConfig { seed: 2, ..config() };
    assert_ne!(config().fingerprint().unwrap(), other.fingerprint().unwrap());
    assert!(serde_json::from_str::<JobConfig>(r#"{"stpes": 3}"#).is_err());
}
