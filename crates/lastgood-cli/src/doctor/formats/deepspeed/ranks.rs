//! Which ranks have left a file, and which should have, by what the files themselves say.

use std::collections::{BTreeMap, BTreeSet};

use super::{MODEL, OPTIMIZER, missing};
use crate::doctor::flaw::Flaw;
use crate::doctor::formats::optimizer;
use crate::doctor::pickle::{Id, Node, Pickle};
use crate::doctor::report::{Finding, Findings};
use crate::doctor::torch::TorchFile;

/// More ranks, and more files, than that are not looked for one by one.
const RANKS_MAX: u64 = 100_000;
const FILES_MAX: u64 = 1_000_000;

/// Which files there are, and what they say of those that wrote them.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    /// Ranks of the model.
    models: BTreeSet<u64>,
    /// Ranks of the data, and of the model, of the optimizer's shards.
    shards: BTreeSet<(u64, u64)>,
    /// Stage 3 has a file of the model for each rank of the data.
    weights: BTreeSet<(u64, u64)>,
    /// Ranks of the model of each layer of a pipeline.
    layers: BTreeMap<u64, BTreeSet<u64>>,
    /// Layer, expert and rank of the model.
    experts: BTreeSet<(u64, u64, u64)>,
    /// Files of the model with `global_steps`.
    steps: Vec<(String, u64)>,
    skipped_steps: u64,
    /// Files with an optimizer that counts its steps.
    optimizer_steps: Vec<(String, u64)>,
    model_world: u64,
    tensor_world: u64,
    data_world: u64,
    /// The stage of ZeRO that the configuration says.
    stage: u64,
    /// The optimizer's state is in a file of the model, or of a group of experts.
    has_optimizer: bool,
    /// The layers of a pipeline are in files of their own.
    is_pipeline: bool,
    /// The number of experts of each layer that has some.
    expert_counts: Vec<u64>,
    /// Names of what the optimizer keeps shards of.
    pub(super) parameters: BTreeSet<String>,
}

impl Ranks {
    /// Takes note of a file, and of what it says if it could be read.
    pub(super) fn add(&mut self, name: &str, file: Option<&TorchFile>) {
        self.count(name);
        let Some(file) = file else { return };
        let pickle = &file.pickle;
        let Some(root) = pickle.root() else { return };
        let is_part = name.starts_with("layer_") || name.starts_with("expert_");
        if name.ends_with(MODEL) && !is_part {
            self.read_model(pickle, root, name);
        }
        // Of ZeRO's stages 1 and 2, of stage 3, of none, and of none with numbers of half precision.
        let ways: [&[&str]; 4] = [
            &["optimizer_state_dict", "base_optimizer_state"],
            &["optimizer_state_dict", "optimizer_state_dict"],
            &["optimizer"],
            &["optimizer", "optimizer_state_dict"],
        ];
        let follow = |way: &[&str]| way.iter().try_fold(root, |id, key| pickle.get(id, key));
        let done = ways.iter().find_map(|way| optimizer::steps(file, follow(way)?));
        self.optimizer_steps.extend(done.map(|done| (name.to_owned(), done)));
        let own = pickle.get(root, "optimizer");
        self.has_optimizer |= own.is_some_and(|id| pickle.pairs(id).is_some());
    }

    fn count(&mut self, name: &str) {
        let after = |mark: &str| {
            let (_, rest) = name.split_once(mark)?;
            let end = rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end].parse::<u64>().ok()
        };
        let model = after("mp_rank_");
        if let Some(layer) = after("layer_").filter(|_| name.starts_with("layer_")) {
            match after("_expert_") {
                Some(expert) => {
                    self.experts.insert((layer, expert, model.unwrap_or(0)));
                }
                None if name.ends_with("-model_states.pt") => {
                    self.layers.entry(layer).or_default().insert(after("-model_").unwrap_or(0));
                }
                None => {}
            }
            return;
        }
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

    fn read_model(&mut self, pickle: &Pickle, root: Id, name: &str) {
        let value = |way: &[&str]| way.iter().try_fold(root, |id, key| pickle.get(id, key));
        let number = |way: &[&str]| value(way).and_then(|id| pickle.size(id));
        let steps = number(&["global_steps"]);
        self.steps.extend(steps.map(|steps| (name.to_owned(), steps)));
        self.skipped_steps = number(&["skipped_steps"]).unwrap_or(0);
        let degree = |name| number(&["checkpoint_parallel_dimensions", name]);
        let tensor = degree("tp_degree").unwrap_or(1);
        let grid = degree("pp_degree").unwrap_or(1).saturating_mul(tensor);
        let model = number(&["mp_world_size"]).unwrap_or(1).max(grid);
        self.tensor_world = self.tensor_world.max(tensor).min(RANKS_MAX);
        self.model_world = self.model_world.max(model).min(RANKS_MAX);
        let data = number(&["dp_world_size"]).unwrap_or(0);
        self.data_world = self.data_world.max(data).min(RANKS_MAX);
        let stage = number(&["ds_config", "zero_optimization", "stage"]);
        self.stage = self.stage.max(stage.unwrap_or(0));
        self.is_pipeline |=
            value(&["module"]).is_some_and(|id| matches!(pickle.node(id), Node::None));
        let is_native =
            value(&["ds_autoep_layers"]).is_none_or(|id| matches!(pickle.node(id), Node::None));
        let counts = value(&["num_experts"]).and_then(|id| pickle.sizes(id));
        if let Some(counts) = counts.filter(|_| is_native) {
            self.expert_counts = counts;
        }
        let groups = value(&["param_shapes"]).and_then(|id| pickle.items(id));
        for group in groups.unwrap_or_default() {
            for (name, _) in pickle.pairs(*group).unwrap_or_default() {
                self.parameters.extend(pickle.text(*name).map(str::to_owned));
            }
        }
    }

    /// The step that a file of the model tells of.
    pub(super) fn steps(&self) -> Option<u64> {
        self.steps.first().map(|(_, steps)| *steps)
    }

    /// All files are of one step: the one in the folder's name, if there is one.
    pub(super) fn check_steps(&self, prefix: &str, named: Option<u64>, findings: &mut Findings) {
        let newest = self.steps.iter().map(|(_, steps)| *steps).max();
        let (expected, why) = match named {
            Some(named) => (Some(named), "as the folder's name says"),
            None => (newest, "as another file of the model says"),
        };
        for (name, steps) in self.steps.iter().filter(|(_, steps)| Some(*steps) != expected) {
            findings.add(
                Finding::doubt("torn", format!("{prefix}{name}"))
                    .expected(format!("global_steps {}, {why}", expected.unwrap_or(0)))
                    .found(format!("{steps}"))
                    .remedy("the file is of another save; take an older checkpoint"),
            );
        }
        self.check_optimizer_steps(prefix, newest, findings);
    }

    /// The optimizers' files are of one step, and of the one that the files of the model are of.
    fn check_optimizer_steps(&self, prefix: &str, steps: Option<u64>, findings: &mut Findings) {
        let Some(most) = self.optimizer_steps.iter().map(|(_, steps)| *steps).max() else { return };
        // An optimizer does nothing in a step that the loss scaler skips. One of half precision does one more
        // when it is made.
        let done = steps.map(|steps| steps.saturating_sub(self.skipped_steps));
        let fits = done.is_none_or(|done| most == done || most == done + 1);
        let expected = if fits { most } else { done.unwrap_or(most) };
        for (name, steps) in self.optimizer_steps.iter().filter(|(_, s)| *s != expected) {
            findings.add(
                Finding::doubt("optimizer-step", format!("{prefix}{name}"))
                    .expected(format!("an optimizer that has done {expected} steps, as other files say"))
                    .found(format!("{steps}"))
                    .remedy(
                        "the files are of different saves, or the run was resumed without the optimizer's \
                         state; take an older checkpoint",
                    ),
            );
        }
    }

    /// The number of ranks of the model.
    fn model_ranks(&self) -> u64 {
        let shards = self.shards.iter().chain(&self.weights).map(|(_, model)| model);
        let seen = self.models.iter().chain(shards).max();
        seen.map_or(1, |model| model.saturating_add(1)).max(self.model_world).min(RANKS_MAX)
    }

    pub(super) fn check_models(&self, prefix: &str, findings: &mut Findings) {
        let models = self.model_ranks();
        if !self.weights.is_empty() {
            return self.check_shards(prefix, MODEL, &self.weights, findings);
        }
        for rank in (0..models).filter(|rank| !self.models.contains(rank)) {
            findings.add(missing(
                format!("{prefix}mp_rank_{rank:02}{MODEL}"),
                match models {
                    1 => "the state of the model".to_owned(),
                    _ => format!("the state of the model, of each of its {models} ranks"),
                },
            ));
        }
    }

    fn check_shards(
        &self,
        prefix: &str,
        what: &str,
        shards: &BTreeSet<(u64, u64)>,
        findings: &mut Findings,
    ) {
        let seen = shards.last().map_or(0, |(data, _)| data.saturating_add(1));
        let data = seen.max(self.data_world).min(RANKS_MAX);
        if too_many(prefix, data * self.model_ranks(), findings) {
            return;
        }
        for model in 0..self.model_ranks() {
            for rank in (0..data).filter(|rank| !shards.contains(&(*rank, model))) {
                findings.add(missing(
                    format!("{prefix}*zero_pp_rank_{rank}_mp_rank_{model:02}{what}"),
                    format!("the shards of {data} ranks"),
                ));
            }
        }
    }

    /// The layers of a pipeline. With ZeRO the files of the model name them; without it nothing does.
    pub(super) fn check_layers(&self, prefix: &str, findings: &mut Findings) {
        if !self.is_pipeline && self.layers.is_empty() {
            return;
        }
        let number = |name: &String| name.split_once('.')?.0.parse::<u64>().ok();
        let mut expected: BTreeSet<u64> = self.parameters.iter().filter_map(number).collect();
        if self.layers.is_empty() && expected.is_empty() {
            expected.insert(0);
        }
        for layer in expected.iter().filter(|layer| !self.layers.contains_key(layer)) {
            findings.add(missing(
                format!("{prefix}layer_{layer:02}-*model_states.pt"),
                "a file of each layer of the pipeline".to_owned(),
            ));
        }
        if too_many(prefix, self.layers.len() as u64 * self.tensor_world, findings) {
            return;
        }
        for (layer, ranks) in &self.layers {
            for rank in (0..self.tensor_world).filter(|rank| !ranks.contains(rank)) {
                findings.add(missing(
                    format!("{prefix}layer_{layer:02}-model_{rank:02}-model_states.pt"),
                    format!("this layer of {} ranks", self.tensor_world),
                ));
            }
        }
    }

    pub(super) fn check_experts(&self, prefix: &str, findings: &mut Findings) {
        // In stage 3 they may be in the shards.
        if self.stage == 3 {
            return;
        }
        let experts = self.expert_counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
        if too_many(prefix, experts.saturating_mul(self.model_ranks()), findings) {
            return;
        }
        for (layer, count) in (0..).zip(&self.expert_counts) {
            for expert in 0..*count {
                for rank in 0..self.model_ranks() {
                    if self.experts.contains(&(layer, expert, rank)) {
                        continue;
                    }
                    findings.add(missing(
                        format!("{prefix}layer_{layer}_expert_{expert}_mp_rank_{rank:02}{MODEL}"),
                        format!("{count} experts of this layer"),
                    ));
                }
            }
        }
    }

    pub(super) fn check_optimizer(&self, prefix: &str, findings: &mut Findings) {
        if !self.shards.is_empty() {
            return self.check_shards(prefix, OPTIMIZER, &self.shards, findings);
        }
        if self.has_optimizer {
            return;
        }
        findings.add(match self.stage {
            0 => Finding::doubt("state-missing", format!("{prefix}*{OPTIMIZER}"))
                .expected("the optimizer's state, in files of its own or in those of the model")
                .found("it is in none")
                .remedy("without it a run is not resumed where it was"),
            stage => missing(
                format!("{prefix}*zero_pp_rank_*{OPTIMIZER}"),
                format!("the optimizer's shards: the model's file tells of ZeRO's stage {stage}"),
            ),
        });
    }
}

/// True if so many files are too many to look for, which is said then. No job has so many ranks.
fn too_many(prefix: &str, files: u64, findings: &mut Findings) -> bool {
    let is = files > FILES_MAX;
    if is {
        let flaw = Flaw::limit(format!("{files} files by the numbers in its files"));
        findings.add(Finding::flaw(format!("{prefix}*.pt"), "files of all ranks", &flaw));
    }
    is
}
