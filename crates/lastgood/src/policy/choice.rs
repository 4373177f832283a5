//! How many steps apart saves are, why, and when another number is worth a change.

use std::fmt;

use lastgood_format::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Policy;
use super::failures::Rate;
use super::interval::{self, Tier};

/// A choice stands until a better one is so many times longer or shorter. Around the best interval the lost time is flat:
/// 1.25 times as long, or as short, costs 2.5 % more of it.
pub const CHANGE: f64 = 1.25;

/// A choice stands, too, unless a better one leaves so much more of the time useful: where saves cost next to nothing,
/// what they are measured to cost is noise.
pub const GAIN: f64 = 0.001;

/// What a choice is made of. Seconds, unless a name says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// One step, and of how many it is the median.
    pub step_s: f64,
    /// Steps measured.
    pub steps: usize,
    /// What a save costs the training.
    pub cost_s: f64,
    /// What the middle half of the saves cost: from, and to.
    pub cost_half_s: (f64, f64),
    /// From the call of a save to its commit.
    pub durable_s: f64,
    /// Saves measured.
    pub saves: usize,
    /// From opening the run to the restored state; `None` if nothing was restored.
    pub restore_s: Option<f64>,
    /// New bytes of a checkpoint; `None` if there is none yet.
    pub bytes: Option<f64>,
    /// What fails how often.
    pub failures: Vec<Rate>,
}

impl Inputs {
    /// The mean time between failures of any class.
    #[must_use]
    pub fn mean_s(&self) -> f64 {
        1.0 / self.failures.iter().map(|rate| 1.0 / rate.mean_s).sum::<f64>()
    }

    fn tier(&self) -> Tier {
        let (cost, durable) = (self.cost_s, self.durable_s);
        Tier { cost, durable, restore: self.restore_s.unwrap_or(0.0), mean: self.mean_s() }
    }
}

/// A bound on the interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    /// What it comes from.
    pub name: String,
    /// In seconds between two saves.
    pub interval_s: f64,
    /// True for the longest interval, false for the shortest.
    pub is_longest: bool,
    /// True if the choice is this bound.
    pub applies: bool,
}

/// A choice with everything that led to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// The policy, for a person.
    pub policy: String,
    /// The steps from one save to the next.
    pub every: u64,
    /// The seconds that these steps take.
    pub interval_s: f64,
    /// The interval with the most useful time.
    pub best_s: f64,
    /// Young's approximation of it.
    pub young_s: f64,
    /// Daly's.
    pub daly_s: f64,
    /// From how many steps to how many an earlier choice is kept.
    pub kept: (u64, u64),
    /// The useful part of the time at the chosen interval, as the formula says.
    pub useful: f64,
    /// The mean time between failures.
    pub mean_s: f64,
    /// What was measured.
    pub inputs: Inputs,
    /// What bounds it.
    pub bounds: Vec<Bound>,
}

/// The steps between two saves, and why.
#[must_use]
pub fn choose(policy: &Policy, inputs: &Inputs) -> Explanation {
    let mut choice = choose_at(policy, inputs, inputs.cost_s);
    // What is as well explained by the scatter of what saves cost is noise.
    let (low, high) = inputs.cost_half_s;
    let [low, high] = [low, high].map(|cost| choose_at(policy, inputs, cost).every as f64);
    choice.kept = ((low / CHANGE).ceil().max(1.0) as u64, (high * CHANGE).floor() as u64);
    choice
}

fn choose_at(policy: &Policy, inputs: &Inputs, cost: f64) -> Explanation {
    let step = inputs.step_s.max(1e-6);
    let mean_s = inputs.mean_s();
    let timed = policy.seconds.filter(|_| !policy.auto).map(|time| time.as_secs_f64());
    let best_s = timed.unwrap_or_else(|| interval::best(cost, mean_s));
    let bounds = bounds(policy, inputs);
    let longest = bounds.iter().filter(|bound| bound.is_longest).map(|bound| bound.interval_s);
    let longest = longest.fold(f64::INFINITY, f64::min);
    // A promise counts more than a budget; but nothing makes a save durable before it is.
    let budget = bounds.iter().filter(|bound| bound.name == BANDWIDTH).map(|b| b.interval_s);
    let shortest = budget.fold(0.0, f64::max).min(longest).max(inputs.durable_s);
    let wanted = best_s.min(longest).max(shortest);
    // A bound is kept, and the best is met as nearly as steps allow.
    let every = match wanted {
        _ if wanted == shortest && wanted > best_s => (wanted / step).ceil(),
        _ if wanted == longest => (wanted / step).floor(),
        _ => (wanted / step).round(),
    };
    let every = every.clamp(1.0, 1e15);
    let (interval_s, every) = (every * step, every as u64);
    let applies = |bound: Bound| {
        let applies = bound.interval_s == wanted && wanted != best_s;
        Bound { applies, ..bound }
    };
    Explanation {
        policy: policy.describe(),
        every,
        interval_s,
        best_s,
        young_s: interval::young(inputs.cost_s, mean_s),
        daly_s: interval::daly(inputs.cost_s, mean_s),
        kept: (every, every),
        useful: interval::useful(interval_s, &inputs.tier()),
        mean_s,
        bounds: bounds.into_iter().map(applies).collect(),
        inputs: inputs.clone(),
    }
}

const BANDWIDTH: &str = "bandwidth: new bytes of a checkpoint / bytes a second";

fn bounds(policy: &Policy, inputs: &Inputs) -> Vec<Bound> {
    let bound = |name: &str, interval_s: f64, is_longest| Bound {
        name: name.to_owned(),
        interval_s,
        is_longest,
        applies: false,
    };
    // A failure just before a save is durable loses the interval and what came after it.
    let left = |loss: f64| (loss - inputs.durable_s).max(0.0);
    let steps = |steps: u64| steps as f64 * inputs.step_s;
    let auto = policy.auto;
    [
        auto.then(|| bound("a save is durable before the next", inputs.durable_s, false)),
        policy
            .bandwidth
            .zip(inputs.bytes)
            .map(|(speed, bytes)| bound(BANDWIDTH, bytes / speed, false)),
        policy.loss_max.map(|time| {
            bound("work that may be lost, less the time to durable", left(time.as_secs_f64()), true)
        }),
        policy.loss_steps_max.map(|count| {
            bound("steps that may be lost, less those to durable", left(steps(count)), true)
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl Explanation {
    /// True if a bound forbids to save only every `every` steps.
    #[must_use]
    pub fn forbids(&self, every: u64) -> bool {
        let interval = every as f64 * self.inputs.step_s;
        let mut bounds = self.bounds.iter().filter(|bound| bound.is_longest);
        every > self.every && bounds.any(|bound| bound.interval_s < interval)
    }

    /// True if an earlier choice of `every` steps is off by more than noise.
    #[must_use]
    pub fn replaces(&self, every: u64) -> bool {
        every < self.kept.0 || every > self.kept.1
    }

    /// What of the time becomes useful by this choice in the place of one of `every` steps.
    #[must_use]
    pub fn gain(&self, every: u64) -> f64 {
        self.useful - interval::useful(every as f64 * self.inputs.step_s, &self.inputs.tier())
    }
}

impl Explanation {
    /// All of it, for machines.
    ///
    /// # Errors
    /// `Internal` if a number is none.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|error| Error::internal(format!("an explanation is no JSON: {error}")))
    }

    /// The formula, and what is put into it.
    #[must_use]
    pub fn formula(&self) -> String {
        let (cost, mean) = (self.inputs.cost_s, self.mean_s);
        format!(
            "the root t of (1 − t/M)·e^((t + c)/M) = 1 with c = {} and M = {}: {}",
            time(cost),
            time(mean),
            time(self.best_s)
        )
    }

    /// What would change the choice.
    #[must_use]
    pub fn changes(&self) -> Vec<String> {
        let mut all = Vec::new();
        for bound in self.bounds.iter().filter(|bound| bound.applies) {
            let side = if self.best_s > self.interval_s { "longer" } else { "shorter" };
            all.push(format!("without {:?} it would be {side}: {}", bound.name, time(self.best_s)));
        }
        if self.bounds.iter().any(|bound| bound.applies) || self.policy.is_empty() {
            return all;
        }
        let square = CHANGE * CHANGE;
        all.push(format!(
            "a mean time between failures below {} or above {}, or a cost of a save below {} or above {}: the interval \
             goes with the root of both, and is changed only by more than {CHANGE} times, by more than saves differ, \
             and if {} % of the time become useful by it",
            time(self.mean_s / square),
            time(self.mean_s * square),
            time(self.inputs.cost_s / square),
            time(self.inputs.cost_s * square),
            100.0 * GAIN,
        ));
        all
    }
}

/// Seconds for a person.
#[must_use]
pub fn time(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "never".into(),
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs = &self.inputs;
        writeln!(f, "policy: {}", self.policy)?;
        let steps = if self.every == 1 { "step" } else { "steps" };
        writeln!(f, "saves every {} {steps}, {}", self.every, time(self.interval_s))?;
        writeln!(f, "measured:")?;
        writeln!(f, "  a step takes {} (median of {})", time(inputs.step_s), inputs.steps)?;
        if inputs.saves > 0 {
            let saves = inputs.saves;
            let (low, high) = inputs.cost_half_s;
            let half = format!("half of them {} to {}", time(low), time(high));
            writeln!(f, "  a save costs {} (median of {saves}; {half})", time(inputs.cost_s))?;
            writeln!(f, "  and is durable after {} (median of {saves})", time(inputs.durable_s))?;
        }
        if let Some(restore) = inputs.restore_s {
            writeln!(f, "  a restore took {}", time(restore))?;
        }
        if let Some(bytes) = inputs.bytes {
            writeln!(f, "  a checkpoint writes {bytes:.0} bytes (median of the last)")?;
        }
        writeln!(f, "failures, one in {} altogether:", time(self.mean_s))?;
        for rate in &inputs.failures {
            let (class, seen) = (&rate.class, rate.seen);
            let (mean, assumed) = (time(rate.mean_s), time(rate.assumed_s));
            writeln!(f, "  {class}: one in {mean} ({seen} seen; {assumed} assumed before)")?;
        }
        writeln!(f, "formula: {}", self.formula())?;
        writeln!(f, "  Young: {}, Daly: {}", time(self.young_s), time(self.daly_s))?;
        writeln!(f, "  useful time at the choice: {:.2} %", 100.0 * self.useful)?;
        if !self.bounds.is_empty() {
            writeln!(f, "bounds:")?;
        }
        for bound in &self.bounds {
            let side = if bound.is_longest { "at most" } else { "at least" };
            let applies = match bound.applies {
                true => ", which decides",
                false if bound.is_longest && bound.interval_s < self.interval_s => {
                    ", which cannot be kept"
                }
                false => "",
            };
            writeln!(f, "  {}: {side} {}{applies}", bound.name, time(bound.interval_s))?;
        }
        writeln!(f, "what would change it:")?;
        self.changes().iter().try_for_each(|change| writeln!(f, "  {change}"))
    }
}
