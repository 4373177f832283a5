//! How often a run fails, by class: what the ledger has seen, and what is assumed before it has seen anything.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use lastgood_format::ledger::{Entry, Kind};
use serde::{Deserialize, Serialize};

/// An attempt that was closed by its program.
pub const CLOSED: &str = "closed";
/// The class of an attempt that gave way to a notice.
pub const PREEMPTION: &str = "preemption";
/// The class of a rank that ended by itself or by a signal.
pub const PROCESS: &str = "process";
/// The class of ranks that made no progress.
pub const STALL: &str = "stall";

/// What is assumed of each class before anything is known: the mean hours between failures of the whole job.
///
/// They are ours, and cautious: a new job fails by its own faults first. A host fails every 150 days, as those of
/// RSC-1 did (Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters", HPCA 2025:
/// 6.5 failures in 1,000 node-days); how many there are nobody tells, and 8 ranks are taken for one.
const PRIOR_HOURS: [(&str, f64); 5] =
    [(PROCESS, 1.0), (PREEMPTION, 24.0), (STALL, 168.0), ("host", HOST_HOURS), ("storage", 3600.0)];
const HOST_HOURS: f64 = 3600.0;
const RANKS_OF_A_HOST: u32 = 8;

/// An assumption weighs as much as this many failures that were seen.
pub const PRIOR_WEIGHT: f64 = 1.0 / 3.0;

/// How the attempts of a run ended: a pure fold over the ledger. Its times are of the writers' clocks, and for estimates
/// only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failures {
    /// Attempts before the newest that failed, by class.
    counts: BTreeMap<String, u64>,
    /// How long the attempts ran which are known to have failed or not.
    alive_ms: u64,
    /// When the newest attempt began, and its last entry.
    began_ms: u64,
    last_ms: u64,
    /// How the newest attempt ended, as far as somebody said.
    found: Option<String>,
    /// True if the newest attempt says how it ends: if it does not, it failed.
    tells: bool,
}

/// How often one class of failure comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// The class.
    pub class: String,
    /// How often it was seen.
    pub seen: u64,
    /// The mean seconds between two that are assumed before any was seen.
    pub assumed_s: f64,
    /// The mean seconds between two: what was seen and what is assumed together.
    pub mean_s: f64,
}

impl Failures {
    /// True if the run has no attempts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what the next entry says.
    pub(crate) fn fold(&mut self, entry: &Entry, newest_attempt: u64) {
        let at = ms(entry.at);
        match &entry.kind {
            Kind::AttemptStarted { .. } => {
                let (counts, alive_ms) = (self.counts(), self.alive_ms());
                *self = Self { counts, alive_ms, began_ms: at, last_ms: at, ..Self::default() };
                return;
            }
            Kind::IncidentOpened { class: Some(class), .. } => {
                self.found.get_or_insert_with(|| class.clone());
                self.last_ms = self.last_ms.max(at);
            }
            Kind::AttemptEnded { how, .. } if entry.attempt == newest_attempt => {
                self.found = Some(how.clone());
            }
            Kind::PolicyChosen { .. } if entry.attempt == newest_attempt => self.tells = true,
            _ => {}
        }
        if entry.attempt == newest_attempt && newest_attempt > 0 {
            self.last_ms = self.last_ms.max(at);
        }
    }

    /// True if somebody said how the newest attempt has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.found.is_some()
    }

    /// Failures by class, with that of the newest attempt if it has ended by one.
    fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = self.counts.clone();
        let found = match (&self.found, self.tells) {
            (Some(found), _) => Some(found.as_str()).filter(|found| *found != CLOSED),
            (None, tells) => tells.then_some(PROCESS),
        };
        if let Some(class) = found {
            *counts.entry(class.to_owned()).or_default() += 1;
        }
        counts
    }

    /// How long the attempts ran of which it is known how they ended.
    fn alive_ms(&self) -> u64 {
        let known = self.found.is_some() || self.tells;
        self.alive_ms + if known { self.last_ms.saturating_sub(self.began_ms) } else { 0 }
    }

    /// What is to be expected of a job of so many ranks that has run for `running_s` since its last attempt began.
    ///
    /// Each class is a Poisson process whose rate has a Gamma prior: (seen + weight) / (time + weight × assumed mean).
    #[must_use]
    pub fn rates(&self, ranks: u32, running_s: f64) -> Vec<Rate> {
        // The newest attempt runs, so that it has not failed yet.
        let time = self.alive_ms as f64 / 1e3 + running_s;
        let hosts = f64::from(ranks.div_ceil(RANKS_OF_A_HOST).max(1));
        let rate = |(class, hours): (&str, f64)| {
            let assumed_s = 3600.0 * if class == "host" { hours / hosts } else { hours };
            let seen = self.counts.get(class).copied().unwrap_or(0);
            let mean_s = (time + PRIOR_WEIGHT * assumed_s) / (seen as f64 + PRIOR_WEIGHT);
            Rate { class: class.to_owned(), seen, assumed_s, mean_s }
        };
        let mut rates: Vec<Rate> = PRIOR_HOURS.into_iter().map(rate).collect();
        let known = |class: &String| PRIOR_HOURS.iter().any(|(name, _)| name == class);
        let others = self.counts.iter().filter(|(class, _)| !known(class));
        rates.extend(others.map(|(class, seen)| Rate {
            class: class.clone(),
            seen: *seen,
            assumed_s: HOST_HOURS * 3600.0,
            mean_s: time.max(1.0) / *seen as f64,
        }));
        rates
    }

    /// As [`Failures::rates`] of a run that nobody runs any more: its newest attempt counts as it ended.
    #[must_use]
    pub fn rates_at_rest(&self, ranks: u32) -> Vec<Rate> {
        let counts = self.counts();
        Self { counts, alive_ms: self.alive_ms(), ..Self::default() }.rates(ranks, 0.0)
    }
}

fn ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
