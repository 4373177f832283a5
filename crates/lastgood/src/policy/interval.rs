//! The interval between saves that leaves the most useful time.
//!
//! With failures that come at random at a rate of `1/M`, a save that costs `c` and an interval of `t` seconds of work
//! between two saves, the useful part of the time is
//!
//! ```text
//! U(t) = t·e^((c − D)/M) / (M·e^(R/M)·(e^((t + c)/M) − 1))
//! ```
//!
//! `D` is the time from the call of a save until it is durable, `R` that of a restart. It follows from counting: a failure
//! after `x` seconds leaves the saves `j = 1, 2, …` that were durable by then, `j·(t + c) − c + D ≤ x`, so that
//! `t·Σ e^(−(j·(t + c) − c + D)/M)` seconds of work survive an incarnation, and an incarnation and its restart take
//! `M·e^(R/M)`. For `D = c`, a save that is waited for, it is the model of Daly (2006). `D` and `R` are factors: they cost
//! time, and do not move the best interval.
//!
//! `U` is largest where `(1 − t/M)·e^((t + c)/M) = 1`. Young (1974) and Daly give approximations of that root for `c`
//! much smaller than `M`; [`best`] solves it.

/// What saves cost, and how often what they save is needed. All in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tier {
    /// What the training loses by each save: the call, and what it is slower until the save is durable.
    pub cost: f64,
    /// From the call of a save until it is durable.
    pub durable: f64,
    /// From a failure until the training goes on.
    pub restore: f64,
    /// The mean time between the failures that this tier survives and no cheaper one.
    pub mean: f64,
}

/// Young's first order: `√(2·c·M)` seconds of work between two saves ("A First Order Approximation to the Optimum
/// Checkpoint Interval", CACM 17(9), 1974).
#[must_use]
pub fn young(cost: f64, mean: f64) -> f64 {
    (2.0 * cost * mean).sqrt()
}

/// Daly's higher order, for a cost below twice the mean ("A higher order estimate of the optimum checkpoint interval for
/// restart dumps", Future Generation Computer Systems 22, 2006, eq. 37).
#[must_use]
pub fn daly(cost: f64, mean: f64) -> f64 {
    if cost >= 2.0 * mean {
        return mean;
    }
    let part = cost / (2.0 * mean);
    young(cost, mean) * (1.0 + part.sqrt() / 3.0 + part / 9.0) - cost
}

/// The best interval in seconds of work between two saves: the root of `ln(1 − x) + x + c/M` in 0 to 1, times `M`.
#[must_use]
pub fn best(cost: f64, mean: f64) -> f64 {
    let slope = |x: f64| (-x).ln_1p() + x + cost / mean;
    let (mut below, mut above) = (0.0, 1.0);
    // Halving comes to the last bit, and cannot run away.
    for _ in 0..64 {
        let middle = f64::midpoint(below, above);
        if slope(middle) > 0.0 { below = middle } else { above = middle }
    }
    below * mean
}

/// The useful part of the time, 0 to 1, with `interval` seconds of work between two saves.
#[must_use]
pub fn useful(interval: f64, tier: &Tier) -> f64 {
    let Tier { cost, durable, restore, mean } = *tier;
    let survives = interval * ((cost - durable) / mean).exp() / ((interval + cost) / mean).exp_m1();
    survives / (mean * (restore / mean).exp())
}

/// The best intervals of two tiers: a light one, which survives frequent failures at a low cost, and a full one, which
/// survives all of them, and where both are due takes the place of the light one. `None` for the light one if it is not
/// worth its cost beside the full one.
///
/// Each failure is survived by one tier, and a tier loses time only by its own saves and failures; a full save saves the
/// cost of a light one. So each has its own best interval, with the full cost less the light one.
#[must_use]
pub fn best_of_two(light: &Tier, full: &Tier) -> (Option<f64>, f64) {
    let apart = (best(light.cost, light.mean), best((full.cost - light.cost).max(0.0), full.mean));
    if apart.0 < apart.1 {
        return (Some(apart.0), apart.1);
    }
    let mean = 1.0 / (1.0 / light.mean + 1.0 / full.mean);
    (None, best(full.cost, mean))
}
