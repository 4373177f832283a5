//! The decisions, one by one.

use std::time::Duration;

use lastgood_format::ErrorKind;

use super::choice::{self, Inputs};
use super::failures::{Failures, Rate};
use super::meter::Meter;
use super::{Policy, interval};

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn auto() -> Policy {
    Policy { auto: true, ..Policy::default() }
}

/// A save that costs half a second, of a run that fails every half hour.
fn inputs() -> Inputs {
    let rate = Rate { class: "process".into(), seen: 3, assumed_s: 3600.0, mean_s: 1800.0 };
    Inputs {
        step_s: 0.5,
        steps: 64,
        cost_s: 0.5,
        cost_half_s: (0.45, 0.55),
        durable_s: 2.0,
        saves: 9,
        restore_s: Some(3.0),
        bytes: Some(1e9),
        failures: vec![rate],
    }
}

#[test]
fn approximations_are_those_of_their_papers() {
    // Figures 3 to 5 of Daly: a dump of 5 minutes, and 117, 57 and 9.1 minutes.
    for (mean, expected) in [(24.0 * 60.0, 117.0), (6.0 * 60.0, 57.0), (15.0, 9.1)] {
        let found = interval::daly(5.0, mean);
        assert!((found - expected).abs() < 0.005 * expected + 0.05, "{found} and {expected}");
        // What both approximate.
        let best = interval::best(5.0, mean);
        assert!((found - best).abs() < 0.02 * best, "{found} and {best}");
    }
    let (young, best) = (interval::young(0.01, 86_400.0), interval::best(0.01, 86_400.0));
    assert!((young - 41.569).abs() < 1e-3 && (young - best).abs() < 0.01, "{young} and {best}");
}

#[test]
fn a_policy_that_cannot_be_followed_is_refused() {
    let zero = Some(Duration::ZERO);
    let at_zero = Policy { multiples: [0].into(), ..Policy::default() };
    for (policy, says) in [
        (Policy::default(), "without a condition"),
        (Policy { grace: Some(seconds(1.0)), ..Policy::default() }, "without a condition"),
        (Policy::every(0), "number of steps"),
        (at_zero, "milestone"),
        (Policy { seconds: zero, ..Policy::default() }, "between two saves"),
        (Policy { loss_max: zero, ..auto() }, "may be lost"),
        (Policy { loss_steps_max: Some(0), ..auto() }, "may be lost"),
        (Policy { grace: zero, ..auto() }, "grace"),
        (Policy { bandwidth: Some(0.0), ..auto() }, "bandwidth"),
        (Policy { bandwidth: Some(f64::NAN), ..auto() }, "bandwidth"),
        (Policy { bandwidth: Some(1.0), ..Policy::every(1) }, "one of `auto`"),
        (Policy { loss_max: Some(seconds(9.0)), ..Policy::every(1) }, "one of `auto`"),
    ] {
        let error = policy.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(says), "{error}");
    }
    auto().check().unwrap();
    Policy { bandwidth: Some(1e6), loss_steps_max: Some(10), ..auto() }.check().unwrap();
}

#[test]
fn fixed_steps() {
    let policy =
        Policy { steps: Some(10), at: [3].into(), multiples: [7].into(), ..Policy::default() };
    let fixed: Vec<u64> = (1..=21).filter(|step| policy.is_fixed(*step)).collect();
    assert_eq!(fixed, [3, 7, 10, 14, 20, 21]);
    assert_eq!(policy.describe(), "every 10 steps, at steps 3, at every multiple of 7");
}

#[test]
fn bounds_hold_and_the_one_that_decides_is_named() {
    let check = |policy: Policy, every: u64, decides: Option<&str>| {
        let found = choice::choose(&policy, &inputs());
        let named = found.bounds.iter().find(|bound| bound.applies);
        assert_eq!(found.every, every, "{found}");
        assert_eq!(named.map(|bound| bound.name.split(':').next().unwrap()), decides, "{found}");
    };
    // √(2·0.5·1800) is 42.4 s.
    check(auto(), 84, None);
    let loss = |time| Policy { loss_max: Some(seconds(time)), ..auto() };
    check(loss(60.0), 84, None);
    check(loss(10.0), 16, Some("work that may be lost, less the time to durable"));
    let steps = |steps| Policy { loss_steps_max: Some(steps), ..auto() };
    check(steps(24), 20, Some("steps that may be lost, less those to durable"));
    // No save can be durable sooner than it is.
    check(steps(5), 4, Some("a save is durable before the next"));
    let broken = choice::choose(&steps(5), &inputs());
    assert!(broken.forbids(5) && broken.to_string().contains("which cannot be kept"), "{broken}");
    let speed = |bytes| Policy { bandwidth: Some(bytes), ..auto() };
    check(speed(1e9), 84, None);
    check(speed(1e7), 200, Some("bandwidth"));
    // A promise counts more than a budget.
    let both = Policy { bandwidth: Some(1e7), ..loss(10.0) };
    check(both, 16, Some("work that may be lost, less the time to durable"));
    let timed = Policy { seconds: Some(seconds(30.0)), ..Policy::default() };
    check(timed, 60, None);
}

#[test]
fn a_choice_is_changed_for_more_than_noise() {
    let choice = choice::choose(&auto(), &inputs());
    for (every, replaces) in [(84, false), (66, false), (109, false), (60, true), (120, true)] {
        assert_eq!(choice.replaces(every), replaces, "{every}: {:?}", choice.kept);
        assert!(!choice.forbids(every));
    }
    // Saves differ by so much that nothing is known.
    let scattered = Inputs { cost_half_s: (0.05, 5.0), ..inputs() };
    let scattered = choice::choose(&auto(), &scattered);
    assert!(!scattered.replaces(60) && !scattered.replaces(200) && scattered.every == 84);
    // Three times as long costs a hundredth; of saves that cost nothing, nothing.
    assert!((choice.gain(252) - 0.0158).abs() < 0.001, "{}", choice.gain(252));
    let free = Inputs { cost_s: 1e-6, ..inputs() };
    assert!(choice::choose(&auto(), &free).gain(2).abs() < choice::GAIN);
    let bounded = Policy { loss_max: Some(seconds(40.0)), ..auto() };
    let bounded = choice::choose(&bounded, &inputs());
    assert!(bounded.every < 84 && bounded.forbids(84), "a bound is kept");
}

#[test]
fn an_explanation_says_what_it_is_made_of_and_survives_json() {
    let policy = Policy { loss_max: Some(seconds(10.0)), ..auto() };
    let found = choice::choose(&policy, &inputs());
    let read: choice::Explanation = serde_json::from_str(&found.to_json().unwrap()).unwrap();
    assert_eq!(read, found);
    let text = found.to_string();
    for part in [
        "policy: auto, at most 10 s lost",
        "saves every 16 steps, 8.0 s",
        "a save costs 500.0 ms (median of 9; half of them 450.0 ms to 550.0 ms)",
        "durable after 2.0 s",
        "process: one in 30.0 min (3 seen; 60.0 min assumed before)",
        "which decides",
        "without \"work that may be lost, less the time to durable\" it would be longer: 42.1 s",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_slowdown_behind_a_save_is_its_cost() {
    let mut meter = Meter::default();
    let mut now = 0.0;
    let step = |meter: &mut Meter, now: &mut f64, took: f64| {
        *now += took;
        meter.step(seconds(*now));
    };
    meter.step(seconds(now));
    for round in 0..9 {
        for _ in 0..5 {
            step(&mut meter, &mut now, 1.0);
        }
        let began = now;
        now += 0.2;
        meter.save(round, seconds(began), seconds(now));
        // Two steps beside it are slower; one save takes ten times as long, and counts as any other.
        let slower = if round == 4 { 5.0 } else { 0.3 };
        step(&mut meter, &mut now, 1.0 + slower);
        step(&mut meter, &mut now, 1.0 + slower);
        meter.saved(round, Some(seconds(now - 0.1)));
    }
    let near = |found: Option<f64>, expected: f64| {
        assert!((found.unwrap() - expected).abs() < 1e-6, "{found:?} and {expected}");
    };
    near(meter.steps().median(), 1.0);
    near(meter.costs().median(), 0.8);
    near(meter.durable().median(), 2.7);
    assert_eq!((meter.saves(), meter.last_saved()), (9, Some(8)));
    // A save that failed is no measurement.
    meter.save(9, seconds(now), seconds(now + 50.0));
    meter.saved(9, None);
    near(meter.costs().median(), 0.8);
}

#[test]
fn what_is_assumed_gives_way_to_what_is_seen() {
    let rate = |failures: &Failures, running: f64, class: &str| {
        let all = failures.rates(1, running);
        all.into_iter().find(|rate| rate.class == class).unwrap().mean_s
    };
    let fresh = Failures::default();
    assert!((rate(&fresh, 0.0, "process") - 3600.0).abs() < 1e-6);
    // Nothing has failed for ten hours.
    assert!(rate(&fresh, 36_000.0, "process") > 100_000.0);
    let hosts = |ranks| {
        let all = fresh.rates(ranks, 0.0);
        all.into_iter().find(|rate| rate.class == "host").unwrap().mean_s
    };
    assert!((hosts(1) / hosts(64) - 8.0).abs() < 1e-6, "eight ranks are a host");
}
