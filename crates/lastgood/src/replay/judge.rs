//! What was recorded beside what came out.

use std::collections::BTreeSet;

use lastgood_format::journal::Value;
use lastgood_format::{Hash, Result};

use super::compare::{Comparison, compare, compare_states, roots};
use super::span::Span;
use super::state::State;
use super::window::Window;
use crate::ledger::Ledger;
use crate::repository::Repository;

/// What a replay came to.
#[derive(Debug)]
pub struct Judged {
    /// Step by step, and state by state.
    pub comparison: Comparison,
    /// True if the state at the end was compared with the bytes of a checkpoint.
    pub is_proven: bool,
    /// Every number of ranks that the run had in these steps.
    pub world_sizes: BTreeSet<u32>,
    /// The level that equality is: D2 on as many ranks, D3 if not all of these steps were done on as many.
    pub claimed: &'static str,
    /// What differs between the environments: name, recorded, re-executed.
    pub environment: Vec<(String, String, String)>,
    /// The digest of the state at the end of the replay, if it was digested.
    pub root: Option<Hash>,
    /// The states that were compared: step, where the recorded one is from, and the digests of both.
    pub states: Vec<(u64, &'static str, Hash, Hash)>,
}

/// Compares what is recorded of `span` with what a replay of it recorded.
///
/// # Errors
/// `Corrupt` if the checkpoint at the end is damaged; `Unavailable`, `Denied`.
pub fn judge(
    (repository, ledger): (&Repository, &Ledger),
    span: &Span,
    (recorded, replayed): (&Window, &Window),
) -> Result<Judged> {
    let mut comparison = compare(recorded, replayed);
    let end = replayed.states.get(&span.to);
    let mut states: Vec<(u64, &'static str, Hash, Hash)> = comparison
        .states
        .iter()
        .filter_map(|step| {
            let (a, b) = (recorded.states.get(step)?, replayed.states.get(step)?);
            let (a, b) = roots(a, b);
            Some((*step, "journal", a, b))
        })
        .collect();
    if let (Some(id), Some(end)) = (&span.end, end) {
        // Its bytes, and not only what the journal says of them.
        let contents = repository.contents(ledger, id)?;
        let saved = State::of_checkpoint(repository, &contents)?;
        comparison.divergences.extend(compare_states(span.to, &saved, end));
        let (a, b) = roots(&saved, end);
        states.push((span.to, "checkpoint", a, b));
        comparison.divergences.sort_by_key(|divergence| divergence.step);
        comparison.divergences.dedup();
    }
    let world_sizes = recorded.world_sizes(ledger.history());
    let is_same = world_sizes.iter().all(|ranks| *ranks == span.ranks);
    Ok(Judged {
        comparison,
        claimed: if is_same { "D2" } else { "D3" },
        world_sizes,
        is_proven: span.end.is_some() && end.is_some(),
        environment: environment(recorded, replayed),
        root: end.map(State::root),
        states,
    })
}

impl Judged {
    /// True if they part somewhere.
    #[must_use]
    pub fn has_diverged(&self) -> bool {
        !self.comparison.divergences.is_empty()
    }

    /// True if they agree, and a state is among what agrees.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        !self.has_diverged() && (self.is_proven || !self.comparison.states.is_empty())
    }
}

/// What differs between the environment of the attempt that did the last step, and that of the replay.
#[must_use]
pub fn environment(recorded: &Window, replayed: &Window) -> Vec<(String, String, String)> {
    let last = recorded.attempts.values().next_back();
    let of = recorded.environments.iter().find(|((attempt, _), _)| Some(attempt) == last);
    let (Some((_, a)), Some(b)) = (of, replayed.environments.values().next()) else {
        return Vec::new();
    };
    let (Some(a), Some(b)) = (a.as_map(), b.as_map()) else { return Vec::new() };
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let show = |value: Option<&Value>| {
        value.and_then(|value| value.as_str()).unwrap_or("nothing").to_owned()
    };
    let differing = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    differing.map(|name| (name.clone(), show(a.get(name)), show(b.get(name)))).collect()
}
