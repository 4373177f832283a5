//! Which steps a ledger says are saved.

use lastgood_format::ledger::{Entry, Kind, SaveOrder};
use serde::{Deserialize, Serialize};

/// So many choices and requests are kept: a rank needs those that are ahead of it, and the one before.
const INTERVALS_KEPT: usize = 4;
const REQUESTS_KEPT: usize = 16;

/// The steps that every rank saves beside those of its policy: a pure fold over the ledger, so that ranks that have read
/// as far decide the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    intervals: Vec<Interval>,
    requests: Vec<Request>,
    asked: Option<u64>,
}

/// From `from_step` on, every `every` steps are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// The entry that says so.
    pub entry: u64,
    /// The first step that is saved by it.
    pub from_step: u64,
    /// The steps from one save to the next.
    pub every: u64,
}

/// A step that is saved beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The entry that says so.
    pub entry: u64,
    /// The step.
    pub step: u64,
    /// What is done then.
    pub order: SaveOrder,
}

impl Orders {
    /// True if nothing was ordered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what the next entry says. An attempt begins with no requests: those before it were to the steps of another.
    pub(crate) fn fold(&mut self, entry: &Entry) {
        match &entry.kind {
            Kind::AttemptStarted { .. } => {
                self.requests.clear();
                self.asked = None;
            }
            Kind::PolicyChosen { from_step, every, .. } => {
                let (from_step, every) = (*from_step, (*every).max(1));
                self.intervals.push(Interval { entry: entry.n, from_step, every });
                self.intervals.drain(..self.intervals.len().saturating_sub(INTERVALS_KEPT));
            }
            Kind::SaveRequested { step: None, .. } => self.asked = Some(entry.n),
            Kind::SaveRequested { step: Some(step), order, .. } => {
                self.asked = None;
                self.requests.push(Request { entry: entry.n, step: *step, order: *order });
                self.requests.drain(..self.requests.len().saturating_sub(REQUESTS_KEPT));
            }
            _ => {}
        }
    }

    /// The newest choice of an interval.
    #[must_use]
    pub fn newest_interval(&self) -> Option<Interval> {
        self.intervals.last().copied()
    }

    /// The interval that holds at `step`: the newest that begins at it or before.
    #[must_use]
    pub fn interval_at(&self, step: u64) -> Option<Interval> {
        self.intervals.iter().rev().find(|interval| interval.from_step <= step).copied()
    }

    /// True if the interval that holds at `step` saves it.
    #[must_use]
    pub fn is_multiple(&self, step: u64) -> bool {
        let saves = |found: Interval| (step - found.from_step).is_multiple_of(found.every);
        self.interval_at(step).is_some_and(saves)
    }

    /// The last request to `step`.
    #[must_use]
    pub fn request_at(&self, step: u64) -> Option<Request> {
        self.requests.iter().rev().find(|request| request.step == step).copied()
    }

    /// The requests, oldest first.
    #[must_use]
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// The entry of a request without a step that is not answered yet.
    #[must_use]
    pub fn asked(&self) -> Option<u64> {
        self.asked
    }

    /// True if the ranks are to end at a step after `step`.
    #[must_use]
    pub fn ends_after(&self, step: Option<u64>) -> bool {
        let ends =
            |request: &Request| request.order != SaveOrder::Save && Some(request.step) > step;
        self.requests.iter().any(ends)
    }
}
