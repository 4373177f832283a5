//! What steps and saves cost, as this rank measures it.

use std::collections::VecDeque;
use std::time::Duration;

/// So many of the last measurements count.
const STEPS_KEPT: usize = 64;
const SAVES_KEPT: usize = 9;

/// The last measurements of one thing, in seconds. One that is far off moves the median by one place.
#[derive(Clone, Debug)]
pub struct Window {
    values: VecDeque<f64>,
    kept: usize,
}

impl Window {
    fn new(kept: usize) -> Self {
        Self { values: VecDeque::new(), kept }
    }

    fn push(&mut self, value: f64) {
        self.values.push_back(value);
        if self.values.len() > self.kept {
            self.values.pop_front();
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// Their median.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        median(self.values.iter().copied())
    }

    /// Between which two values the middle half of them is.
    #[must_use]
    pub fn middle_half(&self) -> Option<(f64, f64)> {
        let quarter = |part| quantile(self.values.iter().copied(), part);
        quarter(0.25).zip(quarter(0.75))
    }
}

/// The median of some numbers.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    quantile(values, 0.5)
}

/// The number below which `part` of some numbers are, between two of them if need be.
fn quantile(values: impl Iterator<Item = f64>, part: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let place = part * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

/// A save that is not durable yet.
#[derive(Clone, Debug)]
struct Flying {
    step: u64,
    began: Duration,
    call: f64,
    slower: f64,
}

/// What steps and saves cost. Times are given to it, from some fixed moment.
#[derive(Clone, Debug)]
pub struct Meter {
    /// When the step that goes on began.
    began: Option<Duration>,
    /// Steps during which no save was under way.
    steps: Window,
    costs: Window,
    durable: Window,
    flying: Vec<Flying>,
    saves: u64,
    last_saved: Option<u64>,
    /// The last restore.
    pub(crate) restore: Option<f64>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            began: None,
            steps: Window::new(STEPS_KEPT),
            costs: Window::new(SAVES_KEPT),
            durable: Window::new(SAVES_KEPT),
            flying: Vec::new(),
            saves: 0,
            last_saved: None,
            restore: None,
        }
    }
}

impl Meter {
    /// A step has ended at `now`. While saves are under way, what it took longer than the others is their cost.
    pub fn step(&mut self, now: Duration) {
        if let Some(began) = self.began.replace(now) {
            let took = now.saturating_sub(began).as_secs_f64();
            let saves = self.flying.len() as f64;
            if self.flying.is_empty() {
                self.steps.push(took);
            } else if let Some(usual) = self.steps.median() {
                self.flying.iter_mut().for_each(|save| save.slower += (took - usual) / saves);
            }
        }
    }

    /// The next step is not to be measured: something else goes on before it.
    pub fn skip(&mut self) {
        self.began = None;
    }

    /// The call of a save took from `began` to `now`.
    pub fn save(&mut self, step: u64, began: Duration, now: Duration) {
        let call = now.saturating_sub(began).as_secs_f64();
        self.flying.retain(|save| save.step != step);
        self.flying.push(Flying { step, began, call, slower: 0.0 });
        self.last_saved = Some(step);
        // The step after it begins now.
        self.began = self.began.map(|_| now);
    }

    /// The save of `step` became a checkpoint at `at`, or never will.
    pub fn saved(&mut self, step: u64, at: Option<Duration>) {
        let Some(place) = self.flying.iter().position(|save| save.step == step) else { return };
        let save = self.flying.swap_remove(place);
        let Some(at) = at else { return };
        // Steps differ by more than some saves cost: a save costs its call at least.
        self.costs.push((save.call + save.slower).max(save.call));
        self.durable.push(at.saturating_sub(save.began).as_secs_f64());
        self.saves += 1;
    }

    /// The seconds of a step, and of how many it is the median.
    #[must_use]
    pub fn steps(&self) -> &Window {
        &self.steps
    }

    /// The seconds that a save costs the training.
    #[must_use]
    pub fn costs(&self) -> &Window {
        &self.costs
    }

    /// The seconds until a save is durable.
    #[must_use]
    pub fn durable(&self) -> &Window {
        &self.durable
    }

    /// How many saves were measured.
    #[must_use]
    pub fn saves(&self) -> u64 {
        self.saves
    }

    /// The last step that was saved.
    #[must_use]
    pub fn last_saved(&self) -> Option<u64> {
        self.last_saved
    }
}
