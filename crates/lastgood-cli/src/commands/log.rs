//! `lastgood log`: the ledger, readable.

use lastgood::branch::Origin;
use lastgood_format::ledger::{Entry, Kind, SaveOrder};
use serde_json::json;

use crate::args::RunArgs;
use crate::exit::Exit;
use crate::{output, session};

pub(super) fn run(args: &RunArgs, last: Option<u64>, as_json: bool) -> anyhow::Result<Exit> {
    let (repository, ledger) = session::ledger(args)?;
    let tail = ledger.history().entries();
    let first = last.map_or(1, |count| tail.saturating_sub(count) + 1);
    let mut rows = Vec::new();
    for n in first..=tail {
        let Some((entry, hash)) = repository.block_on(ledger.read_entry(n))? else { break };
        if as_json {
            let mut value = serde_json::to_value(&entry.kind).unwrap_or_else(|_| json!({}));
            value["n"] = json!(n);
            value["kind"] = json!(entry.kind.name());
            value["at"] = json!(entry.at_text());
            value["attempt"] = json!(entry.attempt);
            value["actor"] = json!(entry.actor);
            value["blake3"] = json!(hash);
            output::json(&value)?;
        }
        rows.push(vec![
            n.to_string(),
            entry.at_text(),
            entry.actor.clone(),
            entry.kind.name().to_owned(),
            detail(&entry),
        ]);
    }
    if !as_json {
        output::table(&["N", "AT", "ACTOR", "KIND", "WHAT"], &rows);
    }
    Ok(Exit::Done)
}

/// What an entry says whose kind nobody here knows.
fn unknown(body: &serde_json::Value) -> String {
    let fields = body.as_object().into_iter().flatten().filter(|(name, _)| *name != "kind");
    let all: Vec<String> = fields.map(|(name, value)| format!("{name}={value}")).collect();
    all.join(" ")
}

fn requested(step: Option<u64>, order: SaveOrder, reason: &str) -> String {
    let step = step.map_or_else(|| "the next step".to_owned(), |step| format!("step {step}"));
    match order {
        SaveOrder::Save => format!("{step}: {reason}"),
        SaveOrder::SaveAndEnd => format!("{step}, and end: {reason}"),
        SaveOrder::End => format!("end at {step} without a save: {reason}"),
    }
}

fn detail(entry: &Entry) -> String {
    match &entry.kind {
        Kind::BranchCreated { repository, source, from, from_step, step } => {
            let origin = Origin {
                repository: repository.clone(),
                run: source.clone(),
                from: *from,
                from_step: *from_step,
                step: *step,
            };
            output::origin(&origin)
        }
        Kind::AttemptStarted { number, world_size, from, .. } => {
            let from = from.map_or_else(|| "fresh".into(), |id| format!("from {}", id.short()));
            let ranks = output::count(*world_size as usize, "rank");
            format!("attempt {number} of {ranks}, {from}")
        }
        Kind::CheckpointCommitted { checkpoint, step, bytes, new_bytes, .. } => format!(
            "{} at step {step}, {} ({} written)",
            checkpoint.short(),
            output::size(*bytes),
            output::size(*new_bytes)
        ),
        Kind::CheckpointVerified { checkpoint, reason }
        | Kind::CheckpointGood { checkpoint, reason }
        | Kind::CheckpointBad { checkpoint, reason }
        | Kind::CheckpointExpired { checkpoint, reason } => {
            format!("{}: {reason}", checkpoint.short())
        }
        Kind::SaveAbandoned { saved_by, step, reason, .. } => {
            format!("step {step} of attempt {saved_by}: {reason}")
        }
        Kind::IncidentOpened { reason, .. } => reason.clone(),
        Kind::AttemptEnded { how, reason } => format!("{how}: {reason}"),
        Kind::SaveRequested { step, order, reason } => requested(*step, *order, reason),
        Kind::PolicyChosen { from_step, every, .. } => {
            format!("every {} from step {from_step} on", output::count(*every as usize, "step"))
        }
        Kind::PreflightAccepted { differences, reason } => {
            let keys: Vec<&str> = differences.iter().map(|d| d.key.as_str()).collect();
            format!("{}: {reason}", keys.join(", "))
        }
        Kind::RunCreated {} => "the run exists".into(),
        Kind::Unknown { body, .. } => unknown(body),
        // A kind that is newer than this command: what it says is better than nothing.
        kind => serde_json::to_value(kind).map(|body| unknown(&body)).unwrap_or_default(),
    }
}
