//! Which samples a step learns from.

use serde::{Deserialize, Serialize};

use super::rng::{Rng, Stream, seeded};

/// Where the loader is: the samples that follow depend on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoaderState {
    /// Decides the order in every epoch.
    pub(crate) seed: u64,
    /// How often all samples have been given.
    pub(crate) epoch: u64,
    /// The samples of this epoch that have been given.
    pub(crate) position: u64,
}

/// Gives every sample once per epoch, in an order that is drawn anew for each.
#[derive(Debug)]
pub(crate) struct Loader {
    samples: usize,
    /// The order of the epoch that was needed last: it can be drawn again, so it is not state.
    order: Option<(u64, u64, Vec<usize>)>,
}

impl Loader {
    /// Over `samples` samples, at least 1.
    pub(crate) fn new(samples: usize) -> Self {
        Self { samples, order: None }
    }

    /// The next `count` samples after `state`, which moves on behind them. A batch may reach into the
    /// next epoch, so that none is cut short.
    pub(crate) fn next(&mut self, state: &mut LoaderState, count: usize) -> Vec<usize> {
        let mut batch = Vec::with_capacity(count);
        while batch.len() < count {
            if state.position >= self.samples as u64 {
                state.epoch += 1;
                state.position = 0;
            }
            let start = state.position as usize;
            let end = self.samples.min(start + count - batch.len());
            batch.extend_from_slice(&self.order(state)[start..end]);
            state.position = end as u64;
        }
        batch
    }

    fn order(&mut self, state: &LoaderState) -> &[usize] {
        let LoaderState { seed, epoch, .. } = *state;
        let known = self.order.take().filter(|(s, e, _)| (*s, *e) == (seed, epoch));
        let known = known.unwrap_or_else(|| (seed, epoch, shuffled(seed, epoch, self.samples)));
        &self.order.insert(known).2
    }
}

/// The numbers `0 .. samples` in the order of an epoch, by the shuffle of Fisher and Yates.
fn shuffled(seed: u64, epoch: u64, samples: usize) -> Vec<usize> {
    let mut state = seeded(seed, Stream::Order(epoch));
    let mut rng = Rng(&mut state);
    let mut order: Vec<usize> = (0..samples).collect();
    for last in (1..samples).rev() {
        order.swap(last, rng.below(last + 1));
    }
    order
}

#[cfg(test)]
mod tests;
