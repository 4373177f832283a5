//! The interval that the formula gives beside the best of many, in simulated runs whose failures come by chance.

use lastgood::policy::interval::{Tier, best, best_of_two, useful};

/// Numbers from 0 to 1 by chance.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Seconds until a failure: Weibull of this shape and mean; of shape 1 it is exponential.
    fn failure(&mut self, mean: f64, shape: f64) -> f64 {
        let scale = mean / gamma(1.0 + 1.0 / shape);
        scale * (-self.next().ln()).powf(1.0 / shape)
    }
}

/// Lanczos' approximation, good to 10 digits.
fn gamma(x: f64) -> f64 {
    let parts = [
        76.180_091_729_471_46,
        -86.505_320_329_416_77,
        24.014_098_240_830_91,
        -1.231_739_572_450_155,
        0.001_208_650_973_866_179,
        -0.000_005_395_239_384_953,
    ];
    let sum: f64 = (1..).zip(parts).map(|(i, part)| part / (x + f64::from(i))).sum();
    let base = x + 5.5;
    (2.0 * std::f64::consts::PI).sqrt() / x
        * (base.powf(x + 0.5) * (-base).exp())
        * (1.000_000_000_190_015 + sum)
}

/// The useful part of the time of a run: restarts, works, saves, and fails `failures` times.
fn simulate(interval: f64, tier: &Tier, shape: f64, failures: u32) -> f64 {
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let (mut work, mut time) = (0.0, 0.0);
    for _ in 0..failures {
        let lived = chance.failure(tier.mean, shape);
        time += lived;
        // A failure during the restart begins it anew.
        let ran = lived - tier.restore;
        let durable = (ran - tier.durable + tier.cost) / (interval + tier.cost);
        work += interval * durable.floor().max(0.0);
    }
    work / time
}

/// The interval of a grid around `from` that simulates best.
fn best_of_grid(from: f64, judge: impl Fn(f64) -> f64) -> f64 {
    let grid = (-12..=12).map(|i| from * 1.2_f64.powi(i));
    grid.map(judge).fold(0.0, f64::max)
}

/// Means, costs, times to durable, restores.
fn parameters() -> impl Iterator<Item = Tier> {
    let costs = [0.003, 0.2, 6.0, 60.0];
    let means = [60.0, 1800.0, 86_400.0];
    let all = costs.into_iter().flat_map(move |cost| means.map(|mean| (cost, mean)));
    all.filter(|(cost, mean)| cost * 8.0 <= *mean).flat_map(|(cost, mean)| {
        [(1.0, 0.0), (1.0, 0.2), (8.0, 0.2)].map(|(durable, restore)| Tier {
            cost,
            durable: cost * durable,
            restore: restore * mean.min(100.0),
            mean,
        })
    })
}

#[test]
fn the_chosen_interval_is_as_good_as_the_best_of_many() {
    // Failures that come in bursts, or rather at an age, are not what the formula is for; it is little worse for them.
    for (shape, allowed) in [(1.0, 0.002), (0.7, 0.02), (1.5, 0.02)] {
        let mut worst: (f64, Option<Tier>) = (0.0, None);
        for tier in parameters() {
            let chosen = best(tier.cost, tier.mean);
            let judge = |interval| simulate(interval, &tier, shape, 10_000);
            let (found, most) = (judge(chosen), best_of_grid(chosen, judge));
            let lost = 1.0 - found / most;
            if lost >= worst.0 {
                worst = (lost, Some(tier));
            }
        }
        println!("shape {shape}: at most {:.3} % less useful time, {:?}", worst.0 * 100.0, worst.1);
        assert!(worst.0 <= allowed, "shape {shape}: {worst:?}");
    }
}

#[test]
fn the_formula_says_how_much_time_is_useful() {
    for tier in parameters() {
        for part in [0.5, 1.0, 2.0] {
            let interval = part * best(tier.cost, tier.mean);
            let (said, found) = (useful(interval, &tier), simulate(interval, &tier, 1.0, 100_000));
            assert!((said - found).abs() < 0.01, "{said} and {found}: {interval} {tier:?}");
        }
    }
}

/// The useful part of the time with light saves every `light_every` seconds of work, each `full_every`th of them a full
/// one. Failures are of two kinds: the light tier survives one of them.
fn simulate_two(light_every: f64, full_every: u64, tiers: &[Tier; 2], failures: u32) -> f64 {
    let [light, full] = tiers;
    let mean = 1.0 / (1.0 / light.mean + 1.0 / full.mean);
    let mut chance = Chance(0x2545_f491_4f6c_dd1d);
    // Work at the last light and the last full save, counted in light intervals.
    let (mut light_at, mut full_at, mut time) = (0_u64, 0_u64, 0.0);
    for _ in 0..failures {
        let lived = chance.failure(mean, 1.0);
        let is_full = chance.next() > mean / light.mean;
        time += lived;
        let mut at = light_at;
        let mut now = if at == full_at { full.restore } else { light.restore };
        loop {
            let saves_full = (at + 1).is_multiple_of(full_every);
            let tier = if saves_full { full } else { light };
            now += light_every;
            if now + tier.durable > lived {
                break;
            }
            now += tier.cost;
            at += 1;
            light_at = at;
            full_at = if saves_full { at } else { full_at };
        }
        if is_full {
            light_at = full_at;
        }
    }
    light_at as f64 * light_every / time
}

#[test]
fn the_intervals_of_two_tiers_are_as_good_as_the_best_of_many() {
    let tier = |cost: f64, mean: f64| Tier { cost, durable: cost, restore: 0.0, mean };
    for tiers in [
        [tier(0.05, 900.0), tier(5.0, 40_000.0)],
        [tier(0.5, 3600.0), tier(20.0, 86_400.0)],
        // Hosts are lost about as often as processes, and full saves cost little more.
        [tier(2.0, 7200.0), tier(3.0, 3600.0)],
    ] {
        let judge = |light: Option<f64>, full: f64| match light {
            Some(light) => {
                simulate_two(light, (full / light).round().max(1.0) as u64, &tiers, 4_000)
            }
            None => simulate_two(full, 1, &tiers, 4_000),
        };
        let chosen = best_of_two(&tiers[0], &tiers[1]);
        let found = judge(chosen.0, chosen.1);
        let alone = best_of_grid(chosen.1, |full| judge(None, full));
        let from = chosen.0.unwrap_or(chosen.1 / 2.0);
        let most = best_of_grid(from, |light| {
            let every =
                [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64].map(|every| f64::from(every) * light);
            every.map(|full| judge(Some(light), full)).into_iter().fold(alone, f64::max)
        });
        println!("{chosen:?}: {found:.4} of {most:.4}, with one tier {alone:.4}");
        assert!(found >= 0.999 * most, "{chosen:?}: {found} of {most}");
        assert_eq!(chosen.0.is_some(), alone < 0.998 * most, "{chosen:?}: {alone} of {most}");
    }
}
