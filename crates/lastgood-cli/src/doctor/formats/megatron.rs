//! Megatron: `iter_N` with a folder for each rank of the model, or with a distributed checkpoint, as
//! `save_checkpoint` of `megatron.training` and `megatron.core.dist_checkpointing` write them.

use std::path::Path;

use super::{dcp, files, integrity};
use crate::doctor::Audit;
use crate::doctor::discover::{Folder, number_behind};
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::pickle::{Id, Node};
use crate::doctor::report::{Checkpoint, Finding, Findings};
use crate::doctor::torch::TorchFile;

/// The file that names the iteration that is loaded.
pub(super) const TRACKER: &str = "latest_checkpointed_iteration.txt";
const RANK: &str = "mp_rank_";
const MODEL: &str = "model_optim_rng.pt";
const DISTRIBUTED: &str = "distrib_optim.pt";
const MARK: &str = "metadata.json";
const COMMON: &str = "common.pt";
/// More ranks than that are not looked for one by one.
const RANKS_MAX: u64 = 1000;
const FOLDERS_MAX: u64 = 1_000_000;

pub(super) fn is(name: &str, folder: &Folder) -> bool {
    let ranks = folder.folders.iter().any(|inner| inner.starts_with(RANK));
    let distributed = folder.has("metadata.json") && folder.has(dcp::METADATA);
    // `save_grads` writes files of these names, which no run is resumed from.
    let gradients = folder.any(|file| file.starts_with(RANK) && file.ends_with(".pth"));
    (number_behind(name, "iter_").is_some() && !gradients)
        || (name == "release" && (ranks || distributed))
}

pub(super) fn audit(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let name = checkpoint.path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    checkpoint.step = number_behind(name, "iter_");
    let has_ranks = folder.folders.iter().any(|inner| inner.starts_with(RANK));
    let data = |file: &str| file == dcp::METADATA || file.ends_with(".distcp");
    match folder.has(MARK) || folder.has(COMMON) || folder.any(data) || !has_ranks {
        true => distributed(audit, folder, checkpoint),
        false => ranks(audit, folder, checkpoint),
    }
}

/// `torch_dist`: DCP's files, and `metadata.json` last. What all ranks have in common is `common.pt`, which
/// is written first, or since 0.20 an object in DCP's table. `torch_dcp` and `fsdp_dtensor` have DCP's files
/// alone, with what is common in them.
fn distributed(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let Checkpoint { path, findings, coverage, .. } = &mut *checkpoint;
    let table = Objects::read(path);
    let is_dcp_alone = !folder.has(MARK) && !folder.has(COMMON) && table.has_arguments;
    dcp::audit_folder(audit, path, "", folder, findings, coverage);
    if !is_dcp_alone {
        match folder.has(MARK) {
            true => drop(files::json(path, MARK, findings)),
            false => findings.add(
                Finding::damage("missing", MARK)
                    .expected("the mark that the save was finished; Megatron writes it last")
                    .found("it is not there: the save was not finished")
                    .remedy("take an older iteration"),
            ),
        }
    }
    if folder.has(integrity::NAME) {
        integrity::audit(audit, path, folder, findings, coverage);
    }
    if folder.has(COMMON) {
        if let Some(file) = files::torch(audit, checkpoint, COMMON) {
            check_step(&file, COMMON, checkpoint);
        }
    } else if !is_dcp_alone && !table.has_common && folder.has(dcp::METADATA) {
        findings.add(
            Finding::damage("missing", COMMON)
                .expected("what all ranks have in common: arguments, iteration, schedule")
                .found("it is not there, and not in DCP's table either")
                .remedy("take an older iteration"),
        );
    }
    // Where the data loaders stand, in folders of the ranks.
    for inner in folder.folders.iter().filter(|inner| inner.starts_with(RANK)) {
        let Ok(below) = Folder::read(&checkpoint.path.join(inner)) else { continue };
        for file in below.files.iter().filter(|file| file.ends_with(".pt")) {
            files::torch(audit, checkpoint, &format!("{inner}/{file}"));
        }
    }
}

/// Which objects DCP's table has that are no tensors.
#[derive(Debug, Default)]
struct Objects {
    /// Those of `torch_dcp`.
    has_arguments: bool,
    /// That of `torch_dist`.
    has_common: bool,
}

impl Objects {
    fn read(path: &Path) -> Self {
        let table =
            Span::open(&path.join(dcp::METADATA)).and_then(|span| dcp::Metadata::read(&span));
        let Ok((_, Ok(table))) = table else { return Self::default() };
        let any = |is: fn(&str) -> bool| table.objects.iter().any(|name| is(name));
        Self {
            has_arguments: any(|name| matches!(name, "args" | "iteration")),
            has_common: any(|name| name.starts_with("common_state/")),
        }
    }
}

/// A folder `mp_rank_TT` or `mp_rank_TT_PPP`, with `_EEE` behind it if there are ranks of experts, for each
/// rank of the model.
fn ranks(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let mut world = World::default();
    let is_rank = |inner: &&String| inner.starts_with(RANK);
    for inner in folder.folders.iter().filter(is_rank) {
        let Ok(below) = Folder::read(&checkpoint.path.join(inner)) else { continue };
        let main = match below.has(MODEL) || !below.has("model_rng.pt") {
            true => MODEL,
            false => "model_rng.pt",
        };
        let name = format!("{inner}/{main}");
        if let Some(file) = files::torch(audit, checkpoint, &name) {
            world.read(&file);
            check_step(&file, &name, checkpoint);
            let is_missing = !below.has(DISTRIBUTED) && !below.has("optim.pt");
            if is_missing && keeps_optimizer_apart(&file) {
                checkpoint.findings.add(
                    Finding::damage("missing-shard", format!("{inner}/{DISTRIBUTED}"))
                        .expected("the state of the distributed optimizer, as the arguments say")
                        .found("it is not there")
                        .remedy("take an older iteration, or go on with a fresh optimizer"),
                );
            }
        }
        for extra in below.files.iter().filter(|file| file.ends_with(".pt") && *file != main) {
            files::torch(audit, checkpoint, &format!("{inner}/{extra}"));
        }
    }
    world.check(folder, &mut checkpoint.findings);
}

/// The distributed optimizer writes `distrib_optim.pt` beside the weights, if it is saved at all.
fn keeps_optimizer_apart(file: &TorchFile) -> bool {
    let pickle = &file.pickle;
    let Some(args) = pickle.root().and_then(|root| pickle.get(root, "args")) else { return false };
    let is = |name: &str| argument(file, args, name).and_then(|id| pickle.int(id)) == Some(1);
    let optimizer = pickle.root().and_then(|root| pickle.get(root, "optimizer"));
    is("use_distributed_optimizer") && !is("no_save_optim") && optimizer.is_some()
}

/// How many ranks of each kind there are, by the arguments that are saved with them.
#[derive(Debug, Default)]
struct World {
    tensor: u64,
    pipeline: u64,
    experts: u64,
}

impl World {
    fn read(&mut self, file: &TorchFile) {
        let pickle = &file.pickle;
        let args = pickle.root().and_then(|root| pickle.get(root, "args"));
        let size = |name: &str| args.and_then(|args| pickle.size(argument(file, args, name)?));
        let most = |old: u64, name: &str| old.max(size(name).unwrap_or(0)).min(RANKS_MAX);
        self.tensor = most(self.tensor, "tensor_model_parallel_size");
        self.pipeline = most(self.pipeline, "pipeline_model_parallel_size");
        self.experts = most(self.experts, "expert_model_parallel_size");
    }

    fn check(&self, folder: &Folder, findings: &mut Findings) {
        let tail = |expert: u64| match self.experts {
            0 | 1 => String::new(),
            _ => format!("_{expert:03}"),
        };
        if self.tensor * self.pipeline * self.experts.max(1) > FOLDERS_MAX {
            let flaw = Flaw::limit(format!("more than {FOLDERS_MAX} by the arguments"));
            return findings.add(Finding::flaw(format!("{RANK}*"), "folders of all ranks", &flaw));
        }
        for t in 0..self.tensor {
            for p in 0..self.pipeline {
                let name = match self.pipeline {
                    1 => format!("{RANK}{t:02}"),
                    _ => format!("{RANK}{t:02}_{p:03}"),
                };
                let has = |expert: &u64| folder.has_folder(&format!("{name}{}", tail(*expert)));
                let experts = 0..self.experts.max(1);
                // With ranks of tensors too, not each pair of both kinds has a rank of its own.
                let missing: Vec<u64> = match self.tensor > 1 && experts.clone().any(|e| has(&e)) {
                    true => Vec::new(),
                    false => experts.filter(|expert| !has(expert)).collect(),
                };
                for expert in missing {
                    findings.add(
                        Finding::damage("missing-shard", format!("{name}{}", tail(expert)))
                            .expected(self.told())
                            .found("it is not there")
                            .remedy("take an older iteration"),
                    );
                }
            }
        }
    }

    fn told(&self) -> String {
        let Self { tensor, pipeline, experts } = self;
        format!(
            "a folder for each rank: the arguments say {tensor} of tensors, {pipeline} of the pipeline, {} of \
             experts",
            experts.max(&1)
        )
    }
}

/// An argument: `argparse.Namespace` with more attributes than other objects have.
fn argument(file: &TorchFile, args: Id, name: &str) -> Option<Id> {
    match file.pickle.node(args) {
        Node::Call(call) => file.pickle.get(call.state?, name),
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
