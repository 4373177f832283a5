//! What led to a tensor: the save that holds its bytes, the attempts, ranks and hosts, and the steps since the checkpoint
//! before, with what they read.
//!
//! | module | what it tells |
//! |---|---|
//! | [`bytes`] | which shard indexes and packs hold the tensor, and which saves wrote them |
//! | [`attempts`] | when attempts began, and which processes they had |
//! | [`steps`] | the steps, those that were overtaken among them, and what went into them |
//! | [`digests`] | when the tensor changed |
//!
//! All of it is read from the ledger, the checkpoints and the journal. What is not recorded is `None` or empty, and
//! never guessed.

pub mod attempts;
pub mod bytes;
pub mod digests;
pub mod steps;

use std::collections::{BTreeMap, BTreeSet};

use lastgood_format::{Dtype, Error, Result};

use crate::journal::Lane;
use crate::ledger::{Checkpoint, Ledger};
use crate::replay::span::led_by;
use crate::replay::window::history_to;
use crate::repository::Repository;
use crate::restore::Contents;
use attempts::Attempt;
use bytes::Part;
use digests::Digests;
use steps::Steps;

/// So many names are told if one is unknown.
const NEAREST: usize = 5;

/// What led to one tensor of the state after one step.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// The component.
    pub component: String,
    /// The tensor's name in it.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The global shape.
    pub shape: Vec<u64>,
    /// The tensor of the same component whose bytes these are, if they are tied.
    pub tied_to: Option<String>,
    /// The newest checkpoint at or before the step that led to it and holds the tensor.
    pub saved: Option<Checkpoint>,
    /// Where that checkpoint has the tensor's bytes.
    pub parts: Vec<Part>,
    /// The newest checkpoint before the step that led to it; `None` if the run began after it.
    pub since: Option<Checkpoint>,
    /// The attempts that did the steps, and the one that saved.
    pub attempts: BTreeMap<u64, Attempt>,
    /// The steps since then.
    pub steps: Steps,
    /// What the journal says of the tensor's bytes; `None` if it says nothing.
    pub digests: Option<Digests>,
}

impl Lineage {
    /// What led to the tensor `name`, or `component/name`, after `step`: of all ranks, or of one logical rank.
    ///
    /// # Errors
    /// `NotFound` if no checkpoint has the tensor, naming the nearest, or if nothing is recorded of the step, naming
    /// what is; `Invalid` if several components have a tensor of that name; those of [`Contents::load`] and of
    /// [`history_to`].
    pub fn read(
        repository: &Repository,
        ledger: &Ledger,
        name: &str,
        step: u64,
        rank: Option<u32>,
    ) -> Result<Self> {
        repository.block_on(Self::find(repository, ledger, name, step, rank))
    }

    async fn find(
        repository: &Repository,
        ledger: &Ledger,
        name: &str,
        step: u64,
        rank: Option<u32>,
    ) -> Result<Self> {
        let (reader, parts) = history_to(repository, ledger, step).await?;
        let history = ledger.history();
        let mut led: Vec<&Checkpoint> = led_by(history, &parts).collect();
        led.sort_by_key(|c| (c.step, c.entry));
        let found = holder(ledger, &led, name, step).await?;
        let (component, tensor) = found.tensor.clone();
        let info = found.contents.tensors().get(&found.tensor).cloned();
        let info = info.ok_or_else(|| Error::internal("a tensor that was found is gone"))?;
        let since = led.iter().rev().find(|c| c.step < step).map(|c| (*c).clone());
        let first = since.as_ref().map_or(1, |c| c.step + 1);
        let lanes = rank.map(|rank| {
            Lane::of_rank(rank).ok_or_else(|| Error::invalid(format!("{rank} is no logical rank")))
        });
        let lanes: Vec<Lane> = lanes.transpose()?.into_iter().collect();
        let begun = attempts::all(ledger).await?;
        let steps = Steps::read(&reader, &parts, first..=step, (lanes, &begun)).await?;
        let data = info.tied_to.clone().unwrap_or_else(|| tensor.clone());
        let (digests, recorded) =
            digests::read(&reader, (&parts, &led), (component.clone(), data), step).await?;
        let is_saved = led.iter().any(|c| c.step == step);
        if !is_saved && !steps.has(step) {
            return Err(unrecorded(ledger, &led, recorded, step));
        }
        let mut numbers: BTreeSet<u64> = steps.executed.iter().map(|e| e.attempt).collect();
        numbers.extend(found.saved.iter().map(|c| c.attempt));
        let attempts = attempts::read(&reader, &begun, &numbers).await?;
        let mut bytes = match &found.saved {
            Some(_) => bytes::parts(&found.contents, history, &found.tensor)?,
            None => Vec::new(),
        };
        if let (Some(rank), Some(saved)) = (rank, &found.saved) {
            let process = attempts.get(&saved.attempt).and_then(|a| a.process_of(rank));
            let process = process.map_or(rank, |process| process.rank);
            bytes.retain(|part| part.rank == process);
        }
        Ok(Self {
            component,
            name: tensor,
            dtype: info.dtype,
            shape: info.shape,
            tied_to: info.tied_to,
            saved: found.saved,
            parts: bytes,
            since,
            attempts,
            steps,
            digests,
        })
    }
}

/// A checkpoint that has the tensor.
struct Holder {
    contents: Contents,
    tensor: (String, String),
    /// The checkpoint, if it is at or before the step.
    saved: Option<Checkpoint>,
}

/// The newest of `led` at or before `step` that has the tensor, or else the oldest one after it.
async fn holder(ledger: &Ledger, led: &[&Checkpoint], name: &str, step: u64) -> Result<Holder> {
    let (before, after): (Vec<&Checkpoint>, Vec<&Checkpoint>) =
        led.iter().partition(|c| c.step <= step);
    let mut names: BTreeSet<(String, String)> = BTreeSet::new();
    for checkpoint in before.iter().rev().chain(&after) {
        let contents = Contents::load(ledger, &checkpoint.id).await?;
        if let Some(tensor) = named(&contents, name)? {
            let saved = (checkpoint.step <= step).then(|| (*checkpoint).clone());
            return Ok(Holder { contents, tensor, saved });
        }
        names.extend(contents.tensors().keys().cloned());
    }
    if names.is_empty() {
        return Err(Error::not_found(format!(
            "no checkpoint led to step {step} of run {}, so no tensor is known",
            ledger.run()
        ))
        .with_remedy("`lastgood ls` lists the checkpoints, `lastgood log --journal` the events"));
    }
    let nearest = nearest(&names, name);
    Err(Error::not_found(format!("no checkpoint of run {} has a tensor {name:?}", ledger.run()))
        .with_remedy(format!(
            "the nearest names are {}; `lastgood show --tensors` lists all {}",
            nearest.join(", "),
            names.len()
        )))
}

/// The tensor that `name` names alone, or with its component before it.
fn named(contents: &Contents, name: &str) -> Result<Option<(String, String)>> {
    let whole = |key: &&(String, String)| format!("{}/{}", key.0, key.1) == name;
    if let Some(found) = contents.tensors().keys().find(whole) {
        return Ok(Some(found.clone()));
    }
    let mut found = contents.tensors().keys().filter(|(_, tensor)| tensor == name);
    let Some(first) = found.next() else { return Ok(None) };
    let others: Vec<String> = found.map(|(component, _)| format!("{component}/{name}")).collect();
    if others.is_empty() {
        return Ok(Some(first.clone()));
    }
    Err(Error::invalid(format!("several components have a tensor {name:?}")).with_remedy(format!(
        "name one: {}/{name}, {}",
        first.0,
        others.join(", ")
    )))
}

/// The names that are most like `name`, the nearest first.
fn nearest(names: &BTreeSet<(String, String)>, name: &str) -> Vec<String> {
    let likeness = |(component, tensor): &(String, String)| {
        let whole = format!("{component}/{tensor}");
        let like = strsim::jaro_winkler(tensor, name).max(strsim::jaro_winkler(&whole, name));
        // The greatest comes first; likeness is never NaN.
        (std::cmp::Reverse((like * 1e9) as u64), whole)
    };
    let mut all: Vec<_> = names.iter().map(likeness).collect();
    all.sort();
    all.into_iter().take(NEAREST).map(|(_, whole)| whole).collect()
}

/// What is said of a step of which nothing is recorded.
fn unrecorded(
    ledger: &Ledger,
    led: &[&Checkpoint],
    recorded: Option<(u64, u64)>,
    step: u64,
) -> Error {
    let journal = match recorded {
        Some((first, last)) => format!("the journal has steps {first} to {last}"),
        None => "the journal has no steps".to_owned(),
    };
    let before = led.iter().map(|c| c.step).filter(|s| *s < step).max();
    let after = led.iter().map(|c| c.step).filter(|s| *s > step).min();
    let checkpoints = match (before, after) {
        (None, None) => "there is no checkpoint".to_owned(),
        (Some(one), None) | (None, Some(one)) => format!("the nearest checkpoint is of step {one}"),
        (Some(before), Some(after)) => {
            format!("the nearest checkpoints are of steps {before} and {after}")
        }
    };
    Error::not_found(format!("nothing is recorded of step {step} of run {}", ledger.run()))
        .with_remedy(format!("{journal}; {checkpoints}"))
}
