//! What a seed stands for: who saves what, when, over how bad a store, and when the power goes.

use super::store::Faults;
use crate::random::Random;

/// The time in which a story begins all that it begins, in microseconds.
const SPAN: u64 = 400_000;

/// One attempt.
#[derive(Clone, Debug)]
pub(super) struct Act {
    pub(super) begin: u64,
    pub(super) world_size: u32,
    /// The steps that each rank saves; a step may come twice.
    pub(super) steps: Vec<u64>,
    pub(super) faults: Faults,
    /// How much later than the first the last rank may begin.
    pub(super) stagger: u64,
    pub(super) commit_wait: u64,
}

/// A power cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// When it happens, at the earliest.
    pub(super) at: u64,
    /// How many of a thousand unsettled objects outlive it.
    pub(super) stay: u64,
    /// It waits for the worst moment: somebody has just been told something, and an object is not
    /// settled.
    pub(super) is_mean: bool,
}

/// Everything that a seed decides beforehand.
#[derive(Clone, Debug)]
pub(super) struct Story {
    pub(super) acts: Vec<Act>,
    pub(super) power_cuts: Vec<Cut>,
    pub(super) operators: u64,
    pub(super) readers: u64,
    /// Entries that the ledger has from before.
    pub(super) old_entries: u64,
    pub(super) faults: Faults,
}

impl Story {
    pub(super) fn of(random: &mut Random, has_past: bool) -> Self {
        let faults = faults(random);
        let count = random.between(1, 3);
        let mut begin = 0;
        let mut acts = Vec::new();
        for _ in 0..count {
            acts.push(act(random, begin, faults));
            begin += random.below(SPAN / count);
        }
        let power_cuts = match random.below(2) {
            0 => (0..random.between(1, 2)).map(|_| cut(random, &acts)).collect(),
            _ => Vec::new(),
        };
        Self {
            acts,
            power_cuts,
            operators: [0, 1, 2][random.below(3) as usize],
            readers: u64::from(random.chance(300)),
            old_entries: if random.chance(100) || has_past { random.between(56, 64) } else { 0 },
            faults,
        }
    }
}

/// Soon after an attempt began, when most is under way.
fn cut(random: &mut Random, acts: &[Act]) -> Cut {
    let act = &acts[random.below(acts.len() as u64) as usize];
    let at = act.begin + random.below(60_000);
    if random.chance(500) {
        return Cut { at, stay: 0, is_mean: true };
    }
    let stay = match random.below(3) {
        0 => 0,
        1 => 500,
        _ => 900,
    };
    Cut { at, stay, is_mean: false }
}

fn act(random: &mut Random, begin: u64, faults: Faults) -> Act {
    let first = random.between(1, 3);
    let mut steps: Vec<u64> = (first..=first + random.below(3)).collect();
    if random.chance(250) {
        steps.push(first);
    }
    Act {
        begin,
        world_size: random.between(1, 3) as u32,
        steps,
        faults,
        stagger: if random.chance(300) { 150_000 } else { 2_000 },
        commit_wait: random.between(20_000, 120_000),
    }
}

/// The last attempt of every story, on a store that works: it must get through.
pub(super) fn last_act(random: &mut Random) -> Act {
    let first = random.between(1, 3);
    Act {
        begin: 0,
        world_size: random.between(1, 3) as u32,
        steps: vec![first, first + 1, first],
        faults: Faults { micros_max: 500, ..Faults::default() },
        stagger: 2_000,
        // Long beside what undisturbed ranks need. An operator who abandons a save at the moment at which it
        // loses its base can part the ranks: then they wait for each other for so long.
        commit_wait: 5_000_000,
    }
}

fn faults(random: &mut Random) -> Faults {
    let mut some = |most: u64| if random.chance(500) { random.below(most + 1) } else { 0 };
    Faults {
        slow: some(30),
        refused: some(60),
        unsettled: some(600),
        lost: some(80),
        late: some(80),
        stray_entries: some(250),
        crash: some(16),
        crash_after_put: some(80),
        damaged: some(40),
        micros_max: 200 + some(3_000),
    }
}
