//! Lightning's `.ckpt`: a file of `torch.save` with a dictionary of known keys.

use crate::doctor::report::{Checkpoint, Finding};
use crate::doctor::torch::TorchFile;

const VERSION: &str = "pytorch-lightning_version";

/// The step that a name tells of, as `epoch=1-step=800.ckpt`, `step-800.pt` or `model_step800.pt` do. A metric
/// is none, though Lightning puts it into a name as `train_loss_step=0.25`.
pub(super) fn step_in_name(name: &str) -> Option<u64> {
    let (stem, _) = name.rsplit_once('.')?;
    let number_at = |at: usize| {
        let rest = &stem[at + "step".len()..];
        let is_metric = rest.starts_with('=') && stem[..at].ends_with('_');
        let digits = rest.trim_start_matches(['=', '-', '_']);
        let end = digits.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
        let ends = digits[end..].is_empty() || digits[end..].starts_with(['-', '_']);
        digits[..end]
            .parse()
            .ok()
            .filter(|_| ends && (!is_metric || stem[..at].ends_with("global_")))
    };
    stem.match_indices("step").find_map(|(at, _)| number_at(at))
}

/// What a file of `torch.save` says of itself.
pub(super) fn audit(file: &TorchFile, name: &str, checkpoint: &mut Checkpoint) {
    let pickle = &file.pickle;
    let Some(root) = pickle.root() else { return };
    let value = |key: &str| pickle.get(root, key);
    let step = ["global_step", "step", "iteration"].iter().find_map(|key| {
        let number = file.scalar(value(key)?)?;
        (number >= 0.0 && number.fract() == 0.0 && number < 1e15).then_some(number as u64)
    });
    if value(VERSION).is_none() {
        checkpoint.step = step.or(checkpoint.step);
        return;
    }
    checkpoint.format = "lightning";
    if let (Some(said), Some(named)) = (step, checkpoint.step)
        && said != named
    {
        checkpoint.findings.add(
            Finding::doubt("step", name)
                .expected(format!("step {named}, as its name says"))
                .found(format!("global_step {said}"))
                .remedy("the file was renamed, or holds another save"),
        );
    }
    checkpoint.step = step.or(checkpoint.step);
    let findings = &mut checkpoint.findings;
    let lacks = |key: &str, expected: &str, found: &str| {
        Finding::doubt("state-missing", format!("{name}:{key}"))
            .expected(expected)
            .found(found)
            .remedy("it can be evaluated, not resumed (save_weights_only?)")
    };
    if value("state_dict").is_none() {
        findings.add(
            Finding::damage("state-missing", format!("{name}:state_dict"))
                .expected("the weights")
                .found("there are none")
                .remedy("take an older checkpoint"),
        );
    }
    for (key, expected) in
        [("optimizer_states", "the optimizers' state"), ("loops", "where the loops stand")]
    {
        if value(key).is_none() {
            findings.add(lacks(key, expected, "it is not there"));
        }
    }
    findings.add(
        Finding::note("state-missing", "rng")
            .expected("the state of random numbers")
            .found("Lightning does not save it")
            .remedy("a resumed run draws other numbers than the one that was stopped"),
    );
}

#[cfg(test)]
mod tests;
