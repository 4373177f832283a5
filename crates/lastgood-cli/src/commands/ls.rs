//! `lastgood ls`: runs, or the checkpoints of one.

use lastgood::branch;
use lastgood::ledger::Checkpoint;
use lastgood::restore::choose;
use serde_json::json;

use crate::args::{RunArgs, StoreArgs};
use crate::exit::Exit;
use crate::{output, session};

pub(super) fn runs(store: &StoreArgs, last: Option<usize>, as_json: bool) -> anyhow::Result<Exit> {
    let repository = session::repository(store)?;
    let mut rows = Vec::new();
    let runs = repository.runs()?;
    for run in tail(&runs, last) {
        let run = run.clone();
        let ledger = repository.ledger(&run)?;
        let history = ledger.history();
        let good = choose(history);
        let created = repository.block_on(branch::created(&ledger))?;
        if as_json {
            output::json(&json!({"run": run, "attempts": history.newest_attempt(),
                "checkpoints": history.checkpoints().len(),
                "last_good_step": good.map(|c| c.step), "last_good": good.map(|c| c.id),
                "origin": created}))?;
        }
        rows.push(vec![
            run.to_string(),
            history.newest_attempt().to_string(),
            history.checkpoints().len().to_string(),
            good.map_or_else(|| "-".into(), |c| format!("step {} ({})", c.step, c.id.short())),
            created.map_or_else(|| "-".into(), |created| output::origin(&created.origin)),
        ]);
    }
    if !as_json {
        output::table(&["RUN", "ATTEMPTS", "CHECKPOINTS", "LAST GOOD", "ORIGIN"], &rows);
    }
    Ok(Exit::Done)
}

/// The last `count` of `all`, or all of them.
fn tail<T>(all: &[T], count: Option<usize>) -> &[T] {
    &all[all.len().saturating_sub(count.unwrap_or(all.len()))..]
}

pub(super) fn checkpoints(
    args: &RunArgs,
    last: Option<usize>,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let (_, ledger) = session::ledger(args)?;
    let last_good = choose(ledger.history()).map(|checkpoint| checkpoint.id);
    let mut rows = Vec::new();
    for checkpoint in tail(ledger.history().checkpoints(), last) {
        let is_last_good = last_good == Some(checkpoint.id);
        if as_json {
            output::json(&as_value(checkpoint, is_last_good))?;
        }
        rows.push(vec![
            checkpoint.step.to_string(),
            checkpoint.id.short(),
            standing(checkpoint, is_last_good),
            checkpoint.attempt.to_string(),
            checkpoint.world_size.to_string(),
            output::size(checkpoint.bytes),
            output::size(checkpoint.new_bytes),
            checkpoint.at.clone(),
        ]);
    }
    if !as_json {
        let head = ["STEP", "ID", "STANDING", "ATTEMPT", "RANKS", "SIZE", "WRITTEN", "COMMITTED"];
        output::table(&head, &rows);
    }
    Ok(Exit::Done)
}

fn standing(checkpoint: &Checkpoint, is_last_good: bool) -> String {
    let expired = if checkpoint.expired { ", expired" } else { "" };
    let mark = if is_last_good { " <- last good" } else { "" };
    format!("{}{expired}{mark}", checkpoint.standing)
}

pub(super) fn as_value(checkpoint: &Checkpoint, is_last_good: bool) -> serde_json::Value {
    json!({"step": checkpoint.step, "id": checkpoint.id, "standing": checkpoint.standing,
        "reason": checkpoint.reason, "attempt": checkpoint.attempt,
        "generation": checkpoint.generation, "world_size": checkpoint.world_size,
        "parent": checkpoint.parent, "bytes": checkpoint.bytes,
        "new_bytes": checkpoint.new_bytes, "at": checkpoint.at, "expired": checkpoint.expired,
        "last_good": is_last_good})
}
