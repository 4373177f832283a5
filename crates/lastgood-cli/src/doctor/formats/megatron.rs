//! Megatron: `iter_N` with a folder for each rank of the model, or with a distributed checkpoint.

use super::{dcp, files};
use crate::doctor::Audit;
use crate::doctor::discover::{Folder, number_behind};
use crate::doctor::pickle::Id;
use crate::doctor::report::{Checkpoint, Finding};
use crate::doctor::torch::TorchFile;

/// The file that names the iteration that is loaded.
pub(super) const TRACKER: &str = "latest_checkpointed_iteration.txt";
const MODEL: &str = "model_optim_rng.pt";
/// More ranks than that are not looked for one by one.
const RANKS_MAX: u64 = 10_000;

pub(super) fn is(name: &str, folder: &Folder) -> bool {
    let ranks = folder.folders.iter().any(|inner| inner.starts_with("mp_rank_"));
    let distributed = folder.has("metadata.json") && folder.has(dcp::METADATA);
    number_behind(name, "iter_").is_some() || (name == "release" && (ranks || distributed))
}

pub(super) fn audit(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let name = checkpoint.path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    checkpoint.step = number_behind(name, "iter_");
    let has_ranks = folder.folders.iter().any(|inner| inner.starts_with("mp_rank_"));
    if has_ranks {
        return ranks(audit, folder, checkpoint);
    }
    let Checkpoint { path, findings, coverage, .. } = &mut *checkpoint;
    if !folder.has("metadata.json") {
        findings.add(
            Finding::damage("missing", "metadata.json")
                .expected("what kind of distributed checkpoint it is")
                .found("it is not there: the save was not finished")
                .remedy("take an older iteration"),
        );
    } else {
        files::json(path, "metadata.json", findings);
    }
    dcp::audit_folder(audit, path, "", folder, findings, coverage);
    match folder.has("common.pt") {
        true => drop(files::torch(audit, checkpoint, "common.pt")),
        false => checkpoint.findings.add(
            Finding::damage("missing", "common.pt")
                .expected("what all ranks have in common: arguments, iteration, schedule")
                .found("it is not there")
                .remedy("take an older iteration"),
        ),
    }
}

/// A folder `mp_rank_TT` or `mp_rank_TT_PPP` for each rank of the model.
fn ranks(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let mut expected = None;
    let is_rank = |inner: &&String| inner.starts_with("mp_rank_");
    for inner in folder.folders.iter().filter(is_rank) {
        let Ok(below) = Folder::read(&checkpoint.path.join(inner)) else { continue };
        let main = match below.has(MODEL) || !below.has("model_rng.pt") {
            true => MODEL,
            false => "model_rng.pt",
        };
        let file = files::torch(audit, checkpoint, &format!("{inner}/{main}"));
        if let Some(file) = &file {
            expected = expected.or_else(|| world(file));
            check_step(file, &format!("{inner}/{main}"), checkpoint);
        }
        for extra in below.files.iter().filter(|file| file.ends_with(".pt") && *file != main) {
            files::torch(audit, checkpoint, &format!("{inner}/{extra}"));
        }
    }
    let Some((tensor, pipeline)) = expected else { return };
    for t in 0..tensor.min(RANKS_MAX) {
        for p in 0..pipeline.min(RANKS_MAX) {
            let name = match pipeline {
                1 => format!("mp_rank_{t:02}"),
                _ => format!("mp_rank_{t:02}_{p:03}"),
            };
            // With expert parallelism, another number follows.
            let with_experts = folder.folders.iter().any(|f| f.starts_with(&format!("{name}_")));
            if !folder.has_folder(&name) && !with_experts {
                checkpoint.findings.add(
                    Finding::damage("missing-shard", &name)
                        .expected(format!("{tensor} × {pipeline} ranks, as the arguments say"))
                        .found("it is not there")
                        .remedy("take an older iteration"),
                );
            }
        }
    }
}

/// The sizes of tensor and pipeline parallelism, in the arguments that are saved with it.
fn world(file: &TorchFile) -> Option<(u64, u64)> {
    let pickle = &file.pickle;
    let args = pickle.get(pickle.root()?, "args")?;
    let size = |name: &str| pickle.size(argument(file, args, name)?);
    Some((size("tensor_model_parallel_size")?, size("pipeline_model_parallel_size")?))
}

/// An argument: `argparse.Namespace` with more attributes than other objects have.
fn argument(file: &TorchFile, args: Id, name: &str) -> Option<Id> {
    match file.pickle.node(args) {
        crate::doctor::pickle::Node::Call(call) => file.pickle.get(call.state?, name),
        _ => file.pickle.get(args, name),
    }
}

fn check_step(file: &TorchFile, name: &str, checkpoint: &mut Checkpoint) {
    let pickle = &file.pickle;
    let said = pickle.root().and_then(|root| pickle.size(pickle.get(root, "iteration")?));
    if let (Some(said), Some(named)) = (said, checkpoint.step)
        && said != named
    {
        checkpoint.findings.add(
            Finding::doubt("torn", name)
                .expected(format!("iteration {named}, as the folder's name says"))
                .found(format!("{said}"))
                .remedy("the file is of another save; take an older iteration"),
        );
    }
}
