//! What a step says of itself.

use std::collections::BTreeMap;

use lastgood_format::journal::Value;

/// A finished step: nondeterministic inputs and digests of outputs, never what can be computed again.
///
/// ```
/// use lastgood::journal::StepRecord;
///
/// let record = StepRecord::new(7).loss(0.25_f32).with("lr", 1e-3_f64);
/// assert_eq!(record.step(), 7);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRecord {
    step: u64,
    shared: BTreeMap<String, Value>,
    ranks: BTreeMap<u32, BTreeMap<String, Value>>,
}

impl StepRecord {
    /// The `step`th step is done: so many steps are finished.
    #[must_use]
    pub fn new(step: u64) -> Self {
        Self { step, shared: BTreeMap::new(), ranks: BTreeMap::new() }
    }

    /// The steps that are finished.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The loss, bit for bit.
    #[must_use]
    pub fn loss(self, loss: impl Into<Value>) -> Self {
        self.with("loss", loss)
    }

    /// Something that every logical rank of this process shares.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.shared.insert(name.to_owned(), value.into());
        self
    }

    /// Something of one logical rank, such as the samples that it learned from.
    #[must_use]
    pub fn of_rank(mut self, logical: u32, name: &str, value: impl Into<Value>) -> Self {
        self.ranks.entry(logical).or_default().insert(name.to_owned(), value.into());
        self
    }

    /// What the frame in the lane of logical rank `logical` says.
    #[must_use]
    pub(crate) fn value(&self, logical: u32) -> Value {
        let mut members = self.shared.clone();
        members.extend(self.ranks.get(&logical).cloned().unwrap_or_default());
        Value::Map(members)
    }
}

impl From<u64> for StepRecord {
    fn from(step: u64) -> Self {
        Self::new(step)
    }
}
