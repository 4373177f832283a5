//! What was recorded beside what came out.

use std::collections::BTreeSet;

use anyhow::Result;
use lastgood::Hash;
use lastgood::journal::Value;
use lastgood::replay::compare::{Comparison, Divergence, compare, compare_states, roots};
use lastgood::replay::state::State;
use lastgood::replay::window::Window;
use serde_json::json;

use super::{Source, Span};

/// What a replay came to.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) comparison: Comparison,
    /// True if the state at the end was compared with the bytes of a checkpoint.
    pub(crate) is_proven: bool,
    /// Every number of ranks that the run had in these steps.
    pub(crate) world_sizes: BTreeSet<u32>,
    /// The level that equality is: D2 on as many ranks, D3 if not all of these steps were done on as many.
    pub(crate) claimed: &'static str,
    /// What differs between the environments: name, recorded, re-executed.
    pub(crate) environment: Vec<(String, String, String)>,
    pub(crate) root: Option<Hash>,
    /// The states that were compared: step, where the recorded one is from, and the digests of both.
    pub(crate) states: Vec<(u64, &'static str, Hash, Hash)>,
}

pub(super) fn judge(
    source: &Source<'_>,
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
        let contents = source.repository.contents(source.ledger, id)?;
        let saved = State::of_checkpoint(source.repository, &contents)?;
        comparison.divergences.extend(compare_states(span.to, &saved, end));
        let (a, b) = roots(&saved, end);
        states.push((span.to, "checkpoint", a, b));
        comparison.divergences.sort_by_key(|divergence| divergence.step);
        comparison.divergences.dedup();
    }
    let world_sizes = recorded.world_sizes(source.ledger.history());
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

/// What differs between the environment of the attempt that did the last step, and that of the replay.
pub(crate) fn environment(recorded: &Window, replayed: &Window) -> Vec<(String, String, String)> {
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

/// A divergence as the pages describe it.
pub(crate) fn divergence_json(d: &Divergence) -> serde_json::Value {
    json!({"code": d.difference.code(), "step": d.step, "rank": d.rank, "what": d.what,
        "expected": d.expected, "actual": d.actual,
        "word": d.change.map(|c| c.word), "delta": d.change.map(|c| c.delta.to_string())})
}
