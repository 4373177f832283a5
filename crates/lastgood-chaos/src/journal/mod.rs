//! The journal's writer and its recovery under crashes at every operation of disk and store.
//!
//! One thread plays a process that appends events, makes groups of them durable, and seals them; it ends at some
//! operation, by a kill or by a cut of power. The attempts after it recover what is left, and may be cut off
//! too. What was acknowledged must be there at the end, and nothing that was never appended.

mod disk;
mod fate;
mod play;

use std::fmt;

pub use play::{Ending, Played, play};

use crate::setting::Setting;

/// What was played, and what went wrong.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Crashes, each at another operation or with another seed.
    pub crashes: u64,
    /// Those of them that were cuts of power.
    pub power_cuts: u64,
    /// Crashes of a recovery.
    pub second_crashes: u64,
    /// Frames that had been acknowledged.
    pub acknowledged: u64,
    /// Frames that were found at the end.
    pub found: u64,
    /// Torn ends that were cut off, and files that were set aside.
    pub notices: u64,
    /// The plays that broke a promise.
    pub failed: Vec<Broken>,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The seed.
    pub seed: u64,
    /// The operation that the writer ended with.
    pub operation: u64,
    /// How it shows.
    pub detail: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, operation {}: {}", self.seed, self.operation, self.detail)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} crashes of a journal's writer, {} of them cuts of power, {} of a recovery on top; {} frames \
             acknowledged, {} found, {} torn ends or files set aside",
            self.crashes,
            self.power_cuts,
            self.second_crashes,
            self.acknowledged,
            self.found,
            self.notices
        )
    }
}

/// Plays seeds from `first` on, with a crash at each operation of each, until there were `crashes`.
pub fn simulate(first: u64, crashes: u64, setting: &Setting) -> Report {
    let mut report = Report::default();
    let mut seed = first;
    while report.crashes < crashes {
        let whole = play(seed, None, setting);
        for operation in 0..whole.operations {
            add(&mut report, seed, operation, &play(seed, Some(operation), setting));
        }
        seed += 1;
    }
    report
}

fn add(report: &mut Report, seed: u64, operation: u64, played: &Played) {
    report.crashes += 1;
    report.power_cuts += u64::from(played.ending == Ending::PowerCut);
    report.second_crashes += played.second_crashes;
    report.acknowledged += played.acknowledged;
    report.found += played.found;
    report.notices += played.notices;
    if let Some(detail) = played.broken.clone() {
        report.failed.push(Broken { seed, operation, detail });
    }
}
