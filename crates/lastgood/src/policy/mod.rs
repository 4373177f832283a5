//! When to save. Decisions only: no threads and no clock; what is measured is passed in.
//!
//! | part | decides |
//! |---|---|
//! | [`interval`] | the interval that leaves the most useful time, of one tier and of two |
//! | [`failures`] | how often a run fails, from its ledger |
//! | [`meter`] | what steps and saves cost |
//! | [`choice`] | the steps between two saves, within bounds, and when it is worth a change |
//! | [`orders`] | which steps the ledger says are saved, for every rank the same |
//! | [`pace`] | what one rank does at the end of a step, and what it tells the others |
//!
//! Several ranks save the same steps without talking to each other: what depends on a clock or a measurement is decided
//! by one rank, some steps ahead, and stands in the ledger, which all of them read.

pub mod choice;
pub mod failures;
pub mod interval;
pub mod meter;
pub mod orders;
pub mod pace;

use std::collections::BTreeSet;
use std::time::Duration;

use lastgood_format::{Error, Result};

pub use self::choice::Explanation;
pub use self::pace::Want;

/// When a run saves: whenever one of the conditions holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Every so many steps.
    pub steps: Option<u64>,
    /// When so much time has passed since the last save. Several ranks take the number of steps that takes as long.
    pub seconds: Option<Duration>,
    /// At these steps.
    pub at: BTreeSet<u64>,
    /// At every multiple of these.
    pub multiples: BTreeSet<u64>,
    /// At the interval that leaves the most useful time, as measured.
    pub auto: bool,
    /// With `auto`: a failure loses at most so much time of work.
    pub loss_max: Option<Duration>,
    /// With `auto`: a failure loses at most so many steps.
    pub loss_steps_max: Option<u64>,
    /// With `auto`: saves write at most so many bytes a second.
    pub bandwidth: Option<f64>,
    /// After a notice that the process will be ended, so much time is left: the next step is saved if it fits.
    pub grace: Option<Duration>,
    /// Whether requests from outside are heard.
    pub demand: bool,
}

impl Policy {
    /// Every so many steps, and on demand.
    #[must_use]
    pub fn every(steps: u64) -> Self {
        Self { steps: Some(steps), demand: true, ..Self::default() }
    }

    /// Says whether it can be followed.
    ///
    /// # Errors
    /// `Invalid` if there is no condition, or a number is out of its range.
    pub fn check(&self) -> Result<()> {
        let zero = |what: &str| Err(Error::invalid(format!("{what} of a policy is above 0")));
        if self.steps == Some(0) {
            return zero("the number of steps");
        }
        if self.multiples.contains(&0) {
            return zero("a milestone");
        }
        for (name, time) in [
            ("the time between two saves", self.seconds),
            ("the work that may be lost", self.loss_max),
            ("the grace time", self.grace),
        ] {
            if time == Some(Duration::ZERO) {
                return zero(name);
            }
        }
        if self.loss_steps_max == Some(0) {
            return zero("the number of steps that may be lost");
        }
        if self.bandwidth.is_some_and(|bytes| !(bytes.is_finite() && bytes > 0.0)) {
            return zero("the bandwidth");
        }
        let bounds =
            self.loss_max.is_some() || self.loss_steps_max.is_some() || self.bandwidth.is_some();
        if bounds && !self.auto {
            return Err(Error::invalid("a bound on lost work or on bandwidth is one of `auto`")
                .with_remedy("set auto, or leave the bound out"));
        }
        let conditions = [
            self.steps.is_some(),
            self.seconds.is_some(),
            !self.at.is_empty(),
            !self.multiples.is_empty(),
            self.auto,
        ];
        if !conditions.contains(&true) {
            return Err(Error::invalid("a policy without a condition never saves")
                .with_remedy("give steps, seconds, milestones, at or auto"));
        }
        Ok(())
    }

    /// True if `step` is saved whatever was measured.
    #[must_use]
    pub fn is_fixed(&self, step: u64) -> bool {
        let mut multiples = self.steps.iter().chain(&self.multiples);
        self.at.contains(&step) || multiples.any(|every| step.is_multiple_of(*every))
    }

    /// For a person, such as `auto, at most 600 s lost`.
    #[must_use]
    pub fn describe(&self) -> String {
        let list =
            |steps: &BTreeSet<u64>| steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let seconds = |time: Duration| time.as_secs_f64();
        let parts = [
            self.auto.then(|| "auto".to_owned()),
            self.steps.map(|steps| format!("every {steps} steps")),
            self.seconds.map(|time| format!("every {} s", seconds(time))),
            (!self.at.is_empty()).then(|| format!("at steps {}", list(&self.at))),
            (!self.multiples.is_empty())
                .then(|| format!("at every multiple of {}", list(&self.multiples))),
            self.loss_max.map(|time| format!("at most {} s lost", seconds(time))),
            self.loss_steps_max.map(|steps| format!("at most {steps} steps lost")),
            self.bandwidth.map(|bytes| format!("at most {bytes} bytes a second")),
            self.grace.map(|time| format!("{} s of grace", seconds(time))),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests;
