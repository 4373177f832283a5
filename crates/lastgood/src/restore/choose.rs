//! Which checkpoint to restore.

use std::str::FromStr;

use lastgood_format::{Error, Hash, Result};

use crate::ledger::{Checkpoint, History, Standing};

/// Names a checkpoint of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The one that recovery would take: see [`choose`].
    LastGood,
    /// The newest committed one, whatever its standing, unless it is bad.
    Latest,
    /// The newest one of a step.
    Step(u64),
    /// The one whose id begins with these digits.
    Id(String),
}

impl FromStr for Selector {
    type Err = Error;

    /// Reads `last-good`, `latest`, a step in decimal, or at least 8 digits of an id. Digits alone are a
    /// step; `id:1234…` is an id in any case.
    fn from_str(text: &str) -> Result<Self> {
        let hex = |text: &str| {
            (8..=64).contains(&text.len())
                && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        match text {
            "last-good" => return Ok(Self::LastGood),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Some(id) = text.strip_prefix("id:").filter(|id| hex(id)) {
            return Ok(Self::Id(id.to_owned()));
        }
        if let Ok(step) = text.parse() {
            return Ok(Self::Step(step));
        }
        if hex(text) {
            return Ok(Self::Id(text.to_owned()));
        }
        Err(Error::invalid(format!("{text:?} selects no checkpoint"))
            .with_remedy("use last-good, latest, a step, or at least 8 digits of an id"))
    }
}

/// The checkpoint that recovery takes: the newest good one, else the newest verified one, else the
/// newest committed one. Never a bad one, never one that expired.
#[must_use]
pub fn choose(history: &History) -> Option<&Checkpoint> {
    [Standing::Good, Standing::Verified, Standing::Committed].into_iter().find_map(|standing| {
        usable(history).rev().find(|checkpoint| checkpoint.standing == standing)
    })
}

/// The checkpoint that `selector` names.
///
/// # Errors
/// `NotFound` if there is none; `Invalid` if the digits begin several ids.
pub fn resolve<'h>(history: &'h History, selector: &Selector) -> Result<&'h Checkpoint> {
    let run = history.run();
    let all = history.checkpoints();
    let none = |what: String| {
        Error::not_found(format!("run {run} has no checkpoint {what}"))
            .with_remedy(format!("`lastgood ls` lists the {} checkpoints of the run", all.len()))
    };
    match selector {
        Selector::LastGood => choose(history).ok_or_else(|| none("to return to".into())),
        Selector::Latest => usable(history).next_back().ok_or_else(|| none("at all".into())),
        Selector::Step(step) => all
            .iter()
            .rev()
            .filter(|checkpoint| checkpoint.step == *step && !checkpoint.expired)
            .max_by_key(|checkpoint| (checkpoint.standing != Standing::Bad, checkpoint.entry))
            .ok_or_else(|| {
                let Some(near) = near(history, *step) else {
                    return none(format!("of step {step}"));
                };
                Error::not_found(format!("run {run} has no checkpoint of step {step}"))
                    .with_remedy(near)
            }),
        Selector::Id(prefix) => {
            let mut found = all.iter().filter(|c| c.id.to_string().starts_with(prefix.as_str()));
            match (found.next(), found.next()) {
                (Some(one), None) => Ok(one),
                (None, _) => Err(none(format!("whose id begins with {prefix}"))),
                (Some(_), Some(_)) => Err(Error::invalid(format!(
                    "several checkpoints of run {run} begin with {prefix}"
                ))
                .with_remedy("give more digits")),
            }
        }
    }
}

/// Which steps near `wanted` have a checkpoint.
fn near(history: &History, wanted: u64) -> Option<String> {
    let steps = history.checkpoints().iter().filter(|c| !c.expired).map(|c| c.step);
    let before = steps.clone().filter(|step| *step < wanted).max();
    let after = steps.filter(|step| *step > wanted).min();
    match (before, after) {
        (Some(before), Some(after)) => {
            Some(format!("the nearest are of steps {before} and {after}"))
        }
        (Some(only), None) | (None, Some(only)) => Some(format!("the nearest is of step {only}")),
        (None, None) => None,
    }
}

fn usable(history: &History) -> impl DoubleEndedIterator<Item = &Checkpoint> {
    history
        .checkpoints()
        .iter()
        .filter(|checkpoint| checkpoint.standing != Standing::Bad && !checkpoint.expired)
}

/// The id alone, for [`NewAttempt::from`](crate::attempt::NewAttempt::from).
#[must_use]
pub(crate) fn choose_id(history: &History) -> Option<Hash> {
    choose(history).map(|checkpoint| checkpoint.id)
}
