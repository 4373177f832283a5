//! What came of a run that went on by a replay.

use anyhow::Result;
use lastgood::attempt::tell_incident;
use lastgood::replay::compare::Divergence;
use lastgood::replay::resume::{Resumed, resumed};
use lastgood::{Repository, RunName};
use serde_json::json;

use crate::exit::Exit;
use crate::output;
use crate::replay::divergence_json;

/// True if `attempt` is known to have come to something else than what it did again.
pub(super) fn has_diverged(repository: &Repository, run: &RunName, attempt: u64) -> bool {
    let found = || resumed(repository, &repository.existing(run)?, attempt..=attempt);
    found().is_ok_and(|found| found.iter().any(|one| !one.divergences.is_empty()))
}

/// Says what came of the attempts since `first`, and whether they diverged.
pub(super) fn show(
    repository: &Repository,
    run: &RunName,
    first: u64,
    as_json: bool,
) -> Result<Exit> {
    let mut ledger = repository.existing(run)?;
    let last = ledger.history().attempt().map_or(0, |attempt| attempt.number);
    let found = resumed(repository, &ledger, first..=last)?;
    for one in &found {
        if as_json {
            output::json(&as_object(one))?;
        } else {
            lines(one);
        }
    }
    if found.is_empty() && !as_json {
        output::line("live        nothing was recorded behind the checkpoint");
    }
    for one in &found {
        if let Some(first) = one.divergences.first() {
            let reason = format!("{}; {}", apart(one, first), first.told("done again"));
            repository.block_on(tell_incident(&mut ledger, "lastgood run", &reason, None))?;
        }
    }
    let has_diverged = found.iter().any(|one| !one.divergences.is_empty());
    Ok(if has_diverged { Exit::Diverged } else { Exit::Done })
}

fn as_object(one: &Resumed) -> serde_json::Value {
    let Resumed { attempt, recorded_by, from_step, to, states, divergences } = one;
    json!({"event": "resumed", "attempt": attempt, "recorded_by": recorded_by,
        "from_step": from_step, "to": to, "equal": divergences.is_empty(), "states": states,
        "divergences": divergences.iter().map(divergence_json).collect::<Vec<_>>()})
}

fn lines(one: &Resumed) {
    let Resumed { attempt, recorded_by, from_step, to, states, divergences } = one;
    for divergence in divergences.iter().take(5) {
        output::line(format_args!("differs     {}", divergence.told("done again")));
    }
    match divergences.first() {
        Some(first) => output::line(format_args!("DIVERGED    {}", apart(one, first))),
        None => {
            let states = match states.len() {
                0 => "no state to compare".to_owned(),
                count => output::count(count, "state"),
            };
            output::line(format_args!(
                "resumed     attempt {attempt} did steps {} to {to} again as attempt {recorded_by} recorded them \
                 ({states}), and is live since",
                from_step + 1
            ));
        }
    }
}

fn apart(one: &Resumed, first: &Divergence) -> String {
    let Resumed { attempt, recorded_by, .. } = one;
    format!(
        "attempt {attempt} comes to something else than attempt {recorded_by} at step {}: {}",
        first.step, first.what
    )
}
