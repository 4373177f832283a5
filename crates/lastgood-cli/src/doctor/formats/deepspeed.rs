//! DeepSpeed: `latest`, `global_stepN`, one file for each rank of the model and of the optimizer's shards.

use std::collections::BTreeSet;
use std::path::Path;

use super::files;
use crate::doctor::Audit;
use crate::doctor::discover::{Folder, number_behind};
use crate::doctor::report::{Checkpoint, Coverage, Finding, Findings};
use crate::doctor::torch::TorchFile;

const MODEL: &str = "_model_states.pt";
const OPTIMIZER: &str = "_optim_states.pt";
/// More ranks than that are not looked for one by one.
const RANKS_MAX: u64 = 100_000;

pub(super) fn is(name: &str, folder: &Folder) -> bool {
    let states = |file: &str| {
        file.ends_with(OPTIMIZER) || (file.starts_with("mp_rank_") && file.ends_with(MODEL))
    };
    folder.any(states) || number_behind(name, "global_step").is_some()
}

pub(super) fn audit(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let name = checkpoint.path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    checkpoint.step = number_behind(name, "global_step");
    let path = checkpoint.path.clone();
    audit_folder(audit, &path, "", folder, checkpoint);
}

/// Checks one `global_stepN`; `prefix` is where it is below its checkpoint.
pub(super) fn audit_folder(
    audit: &Audit<'_>,
    path: &Path,
    prefix: &str,
    folder: &Folder,
    checkpoint: &mut Checkpoint,
) {
    let mut ranks = Ranks::default();
    let Checkpoint { findings, coverage, step, .. } = checkpoint;
    for name in folder.files.iter().filter(|name| name.ends_with(".pt")) {
        let Some(file) = part(audit, path, prefix, name, findings, coverage) else {
            ranks.count(name);
            continue;
        };
        ranks.count(name);
        ranks.read(&file, name);
        if let (Some(said), Some(named)) = (number(&file, "global_steps"), *step)
            && said != named
        {
            findings.add(
                Finding::doubt("torn", format!("{prefix}{name}"))
                    .expected(format!("global_steps {named}, as the folder's name says"))
                    .found(format!("{said}"))
                    .remedy("the file is of another save; take an older checkpoint"),
            );
        }
        *step = step.or_else(|| number(&file, "global_steps"));
    }
    ranks.report(prefix, findings);
}

fn part(
    audit: &Audit<'_>,
    path: &Path,
    prefix: &str,
    name: &str,
    findings: &mut Findings,
    coverage: &mut Coverage,
) -> Option<TorchFile> {
    let span = files::open(path, name, findings)?;
    crate::doctor::torch::audit(audit, &format!("{prefix}{name}"), &span, findings, coverage)
}

fn number(file: &TorchFile, key: &str) -> Option<u64> {
    let root = file.pickle.root()?;
    file.pickle.size(file.pickle.get(root, key)?)
}

/// Which ranks have left a file, and how many there were.
#[derive(Debug, Default)]
struct Ranks {
    /// Ranks of the model.
    models: BTreeSet<u64>,
    /// Ranks of the data, and of the model, of the optimizer's shards.
    shards: BTreeSet<(u64, u64)>,
    model_world: Option<u64>,
    data_world: Option<u64>,
    /// Stage 3 has a file of the model for each rank of the data.
    weights: BTreeSet<(u64, u64)>,
}

impl Ranks {
    fn count(&mut self, name: &str) {
        let after = |mark: &str| {
            let (_, rest) = name.split_once(mark)?;
            let end = rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end].parse::<u64>().ok()
        };
        let model = after("mp_rank_");
        match after("zero_pp_rank_") {
            Some(data) if name.ends_with(OPTIMIZER) => {
                self.shards.insert((data, model.unwrap_or(0)));
            }
            Some(data) if name.ends_with(MODEL) => {
                self.weights.insert((data, model.unwrap_or(0)));
            }
            None if name.starts_with("mp_rank_") && name.ends_with(MODEL) => {
                self.models.extend(model);
            }
            _ => {}
        }
    }

    fn read(&mut self, file: &TorchFile, name: &str) {
        if name.ends_with(MODEL) {
            self.data_world = self.data_world.or_else(|| number(file, "dp_world_size"));
            self.model_world = self.model_world.or_else(|| number(file, "mp_world_size"));
        }
    }

    fn report(&self, prefix: &str, findings: &mut Findings) {
        let most = |ranks: &BTreeSet<u64>| ranks.last().map_or(0, |most| most + 1);
        let models = self.model_world.unwrap_or(0).max(most(&self.models)).min(RANKS_MAX);
        let missing = |name: String, expected: String| {
            Finding::damage("missing-shard", name)
                .expected(expected)
                .found("it is not there")
                .remedy("the checkpoint is not whole; take an older one")
        };
        if self.models.is_empty() && self.weights.is_empty() {
            findings.add(missing(
                format!("{prefix}mp_rank_00{MODEL}"),
                "the state of the model".to_owned(),
            ));
        }
        for rank in
            (0..models).filter(|rank| !self.models.contains(rank) && !self.models.is_empty())
        {
            findings.add(missing(
                format!("{prefix}mp_rank_{rank:02}{MODEL}"),
                format!("the model's state of {models} ranks"),
            ));
        }
        if self.shards.is_empty() {
            return findings.add(
                Finding::doubt("state-missing", format!("{prefix}*{OPTIMIZER}"))
                    .expected("the optimizer's state")
                    .found("it is not there (without ZeRO it is in the model's files)")
                    .remedy("if ZeRO was on, a resume needs load_optimizer_states=False"),
            );
        }
        for (what, shards) in [(OPTIMIZER, &self.shards), (MODEL, &self.weights)] {
            if shards.is_empty() {
                continue;
            }
            let data: BTreeSet<u64> = shards.iter().map(|(data, _)| *data).collect();
            let data = self.data_world.unwrap_or(0).max(most(&data)).min(RANKS_MAX);
            let models: BTreeSet<u64> = shards.iter().map(|(_, model)| *model).collect();
            for model in models {
                for rank in (0..data).filter(|rank| !shards.contains(&(*rank, model))) {
                    findings.add(missing(
                        format!("{prefix}*zero_pp_rank_{rank}_mp_rank_{model:02}{what}"),
                        format!("the shards of {data} ranks"),
                    ));
                }
            }
        }
    }
}
