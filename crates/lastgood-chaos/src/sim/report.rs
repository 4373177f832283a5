//! Playing many seeds, on every core.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::coverage::Coverage;
use super::play::{Played, play};
use crate::failure::{Result, bail};
use crate::setting::Setting;
use crate::violation::Violation;

/// Of so many seeds one is played twice.
const TWICE_EVERY: u64 = 50;

/// What became of many seeds.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Seeds that were played.
    pub seeds: u64,
    /// Seeds that were played twice and did the same.
    pub twice: u64,
    /// Sums over all seeds.
    pub sum: Played,
    /// What happened in how many seeds, and together with what.
    pub coverage: Coverage,
    /// The number of different traces.
    pub distinct: u64,
    /// Seeds that broke a promise, in order.
    pub failed: Vec<Failed>,
}

/// A seed that broke a promise.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// The promise.
    pub violation: Violation,
}

/// Plays `count` seeds from `first`; with `until_failure`, ends soon after the first that fails.
///
/// # Errors
/// If a seed does not do the same again, or a thread panicked.
pub fn simulate(first: u64, count: u64, setting: &Setting, until_failure: bool) -> Result<Report> {
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    let stop = AtomicBool::new(false);
    let shares: Vec<Result<(Report, Vec<u64>)>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|i| {
                let seeds = (first + i..first + count).step_by(threads as usize);
                let (setting, stop) = (setting.clone(), &stop);
                scope.spawn(move || share(seeds, &setting, until_failure.then_some(stop)))
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a simulation panicked")))
            .collect()
    });
    let mut report = Report::default();
    let mut traces = Vec::new();
    for one in shares {
        let (share, seen) = one?;
        report.add(share);
        traces.extend(seen);
    }
    traces.sort_unstable();
    traces.dedup();
    report.distinct = traces.len() as u64;
    report.failed.sort_by_key(|failed| failed.seed);
    Ok(report)
}

fn share(
    seeds: impl Iterator<Item = u64>,
    setting: &Setting,
    stop: Option<&AtomicBool>,
) -> Result<(Report, Vec<u64>)> {
    let mut report = Report::default();
    let mut traces = Vec::new();
    for seed in seeds {
        if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            break;
        }
        let played = play(seed, setting, false);
        if seed % TWICE_EVERY == 0 {
            if play(seed, setting, false).trace != played.trace {
                bail!("seed {seed} did something else when it was played again");
            }
            report.twice += 1;
        }
        traces.push(played.trace);
        if let Some(violation) = &played.violation {
            report.failed.push(Failed { seed, violation: violation.clone() });
            if let Some(stop) = stop {
                stop.store(true, Ordering::Relaxed);
            }
        }
        report.count(&played);
    }
    Ok((report, traces))
}

impl Report {
    fn count(&mut self, played: &Played) {
        self.seeds += 1;
        self.sum.add(played);
        self.coverage.count(played.features);
    }

    fn add(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.twice += other.twice;
        self.sum.add(&other.sum);
        self.coverage.add(&other.coverage);
        self.failed.extend(other.failed);
    }
}

impl Played {
    fn add(&mut self, other: &Self) {
        self.commits += other.commits;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.vanished += other.vanished;
        self.fences += other.fences;
        self.abandoned += other.abandoned;
        self.given_up += other.given_up;
        self.waits += other.waits;
        self.events += other.events;
    }
}
