//! DeepSpeed: `latest`, `global_stepN`, one file for each rank of the model and of the optimizer's shards.
//!
//! What is looked at is what `DeepSpeedEngine.save_checkpoint` of 0.19 writes, for every stage of ZeRO, for
//! pipelines and for experts, and what `ds_to_universal` makes of it.

mod ranks;
mod universal;

use std::path::Path;

use ranks::Ranks;

use super::files;
use crate::doctor::Audit;
use crate::doctor::discover::{Folder, number_behind};
use crate::doctor::report::{Checkpoint, Coverage, Finding, Findings};
use crate::doctor::torch::TorchFile;

/// The file that names the checkpoint that is loaded.
pub(super) const TRACKER: &str = "latest";
/// The same for universal checkpoints.
pub(super) const TRACKER_UNIVERSAL: &str = "latest_universal";
const MODEL: &str = "_model_states.pt";
const OPTIMIZER: &str = "_optim_states.pt";

pub(super) fn is(name: &str, folder: &Folder) -> bool {
    let states = |file: &str| {
        file.ends_with(OPTIMIZER)
            || (file.ends_with(MODEL) && file.starts_with("mp_rank_"))
            || (file.ends_with(MODEL) && file.starts_with("zero_pp_rank_"))
    };
    folder.any(states)
        || step_in_name(name).is_some()
        || (folder.has_folder(universal::PARAMETERS) && name.ends_with(universal::SUFFIX))
}

/// N of `global_stepN` and of `global_stepN_universal`.
fn step_in_name(name: &str) -> Option<u64> {
    number_behind(name.strip_suffix(universal::SUFFIX).unwrap_or(name), "global_step")
}

pub(super) fn audit(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let path = checkpoint.path.clone();
    checkpoint.step = path.file_name().and_then(|name| name.to_str()).and_then(step_in_name);
    audit_folder(audit, &path, "", folder, checkpoint);
}

/// True if a checkpoint was made by `ds_to_universal`.
pub(super) fn is_universal(path: &Path) -> bool {
    path.join(universal::PARAMETERS).is_dir()
}

/// Checks one `global_stepN`; `prefix` is where it is below its checkpoint.
pub(super) fn audit_folder(
    audit: &Audit<'_>,
    path: &Path,
    prefix: &str,
    folder: &Folder,
    checkpoint: &mut Checkpoint,
) {
    let named = path.file_name().and_then(|name| name.to_str()).and_then(step_in_name);
    let mut ranks = Ranks::default();
    let Checkpoint { findings, coverage, step, .. } = checkpoint;
    for name in folder.files.iter().filter(|name| name.ends_with(".pt")) {
        let file = part(audit, path, prefix, name, findings, coverage);
        ranks.add(name, file.as_ref());
    }
    ranks.check_steps(prefix, named, findings);
    *step = step.or(named).or(ranks.steps());
    ranks.check_models(prefix, findings);
    if folder.has_folder(universal::PARAMETERS) {
        return universal::audit(audit, path, prefix, &ranks, findings, coverage);
    }
    ranks.check_layers(prefix, findings);
    ranks.check_experts(prefix, findings);
    ranks.check_optimizer(prefix, findings);
}

fn part(
    audit: &Audit<'_>,
    path: &Path,
    prefix: &str,
    name: &str,
    findings: &mut Findings,
    coverage: &mut Coverage,
) -> Option<TorchFile> {
    let span = files::open_in(path, prefix, name, findings)?;
    crate::doctor::torch::audit(audit, &format!("{prefix}{name}"), &span, findings, coverage)
}

fn missing(name: String, expected: String) -> Finding {
    Finding::damage("missing-shard", name)
        .expected(expected)
        .found("it is not there")
        .remedy("the checkpoint is not whole; take an older one")
}
