//! Whom the demo kills, and when: a function of the seed.

use super::pause::Pause;
use super::rng::{Rng, Stream, seeded};

/// One kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    /// The rank.
    pub(crate) rank: u32,
    /// When.
    pub(crate) at: Moment,
}

/// When a rank is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// While it trains, once this step is finished.
    Step(u64),
    /// Inside a save.
    Save(Pause),
}

impl Moment {
    fn step(self) -> u64 {
        match self {
            Self::Step(step) | Self::Save(Pause { step, .. }) => step,
        }
    }
}

/// A put beyond the last one of a save would come in the next save only: of a pack, of a segment of the journal,
/// of the shard index, and perhaps of the commit.
const PUTS: usize = 4;

/// `kills` kills in order, spread over the training, the first of every two inside a save. Between two of
/// them there is a step that is saved, so that each one comes.
///
/// `ranks` says how many there are when so many were killed before. There must be room for the kills: see
/// [`kills_max`].
pub(crate) fn plan(
    seed: u64,
    kills: u32,
    ranks: impl Fn(u32) -> u32,
    steps: u64,
    every: u64,
) -> Vec<Kill> {
    let mut state = seeded(seed, Stream::Kills);
    let mut rng = Rng(&mut state);
    let saves = steps / every;
    let mut plan = Vec::new();
    for before in 0..kills {
        let kill = u64::from(before);
        // The saves between which this kill falls; the first and the last one are left in peace.
        let window = |kill: u64| 1 + kill * (saves - 2) / u64::from(kills);
        let (first, next) = (window(kill), window(kill + 1));
        let save = first + rng.below((next - first) as usize) as u64;
        let rank = rng.below(ranks(before) as usize) as u32;
        let put = rng.below(PUTS) as u32;
        let later = rng.below(every as usize) as u64;
        let at = match kill % 2 {
            0 => Moment::Save(Pause { step: save * every, put }),
            _ => Moment::Step(save * every + later),
        };
        plan.push(Kill { rank, at });
    }
    debug_assert!(plan.is_sorted_by_key(|kill| kill.at.step()));
    plan
}

/// How many of `ranks` there are when `killed` were killed and not replaced; the last one is.
pub(crate) fn left(ranks: u32, killed: u32) -> u32 {
    ranks.saturating_sub(killed).max(1)
}

/// How many kills fit into a training of `steps` that is saved every `every` steps.
pub(crate) fn kills_max(steps: u64, every: u64) -> u64 {
    (steps / every).saturating_sub(2)
}

#[cfg(test)]
mod tests;
