//! Optimizers of torch, as `state_dict()` gives them.

use crate::doctor::pickle::{Id, Pickle};
use crate::doctor::torch::TorchFile;

/// How many steps an optimizer has done, if it counts them.
pub(super) fn steps(file: &TorchFile, optimizer: Id) -> Option<u64> {
    /// Parameters that are looked at.
    const PARAMETERS_MAX: usize = 10_000;
    let pickle = &file.pickle;
    let state = pickle.get(optimizer, "state")?;
    let of = |id: Id| -> Option<u64> {
        let number = file.scalar(step_of(pickle, id)?)?;
        (0.0..1e15).contains(&number).then_some(number as u64)
    };
    let parameters = pickle.pairs(state)?.iter().take(PARAMETERS_MAX);
    parameters.filter_map(|(_, parameter)| of(*parameter)).max()
}

fn step_of(pickle: &Pickle, parameter: Id) -> Option<Id> {
    let pairs = pickle.pairs(parameter)?.iter().take(16);
    let mut found = pairs.filter(|(key, _)| pickle.text(*key) == Some("step"));
    found.next().map(|(_, value)| *value)
}
