//! `lastgood replay`: a part of a run again, beside what was recorded of it.

mod shadow;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use lastgood::replay::judge::Judged;
use lastgood::replay::{Place, Span};
use lastgood::{Error, Hash, RunName};
use serde_json::json;

use super::{supervise, verify};
use crate::args::{Replay, ReplayMode, Supervise};
use crate::exit::Exit;
use crate::replay::{Source, divergence_json};
use crate::{output, session};

pub(super) fn run(args: &Replay, as_json: bool) -> Result<Exit> {
    if args.mode == ReplayMode::Audit {
        return verify::run(&args.run, None, false, as_json);
    }
    if args.command.is_empty() {
        bail!(Error::invalid("no command is given to run again").with_remedy(
            "give that of the job after `--`, as in `-- python train.py`; --mode audit needs none"
        ));
    }
    if args.mode == ReplayMode::Shadow {
        return shadow::run(args, as_json);
    }
    let (repository, ledger) = session::ledger(&args.run)?;
    if args.mode == ReplayMode::Resume {
        let before = ledger.history().attempt().map_or(1, |attempt| attempt.world_size);
        let ranks = args.ranks.unwrap_or(before);
        let job = Supervise::by_replay(args.run.clone(), ranks, args.command.clone())?;
        return supervise::run(&job, as_json);
    }
    let ends = (args.from.as_deref(), &args.to);
    let span = Span::find(&repository, &ledger, ends, args.ranks)?;
    let temporary = tempfile::Builder::new().prefix("lastgood-replay.").tempdir()?;
    let into = target(args, &span, temporary.path())?;
    if !as_json {
        let from = match span.from {
            Some(id) => format!("step {} ({})", span.from_step, id.short()),
            None => "the beginning".to_owned(),
        };
        output::note(format_args!(
            "lastgood: from {from} to step {} on {}",
            span.to,
            output::count(span.ranks as usize, "rank")
        ));
    }
    let source = Source {
        repository: &repository,
        ledger: &ledger,
        store: &args.run.store.store,
        command: &args.command,
        control: &*supervise::stop_on_signals()?,
    };
    let is_travel = args.mode == ReplayMode::Travel;
    let Some(rerun) = source.rerun(&span, &into, is_travel)? else {
        output::note("stopped");
        return Ok(Exit::Failed);
    };
    let saved = rerun.ledger.history().checkpoints().last().filter(|_| is_travel);
    let travelled = saved.map(|checkpoint| (into.run.clone(), checkpoint.id));
    show(&span, &rerun.judged, travelled.as_ref(), as_json)
}

/// Where the replay records.
fn target(args: &Replay, span: &Span, temporary: &Path) -> Result<Place> {
    if args.mode == ReplayMode::Travel {
        let name = format!("{}-at-{}", args.run.run, span.to);
        let run = args.branch.clone().map_or_else(|| name.parse(), Ok)?;
        return Ok(Place { store: args.run.store.store.clone(), run });
    }
    let folder = match &args.keep {
        Some(folder) => std::path::absolute(folder)?,
        None => PathBuf::from(temporary),
    };
    Ok(Place { store: folder.display().to_string(), run: args.run.run.clone() })
}

fn show(
    span: &Span,
    outcome: &Judged,
    travelled: Option<&(RunName, Hash)>,
    as_json: bool,
) -> Result<Exit> {
    let Judged { comparison, is_proven, world_sizes, claimed, environment, root, .. } = outcome;
    let is_compared = *is_proven || !comparison.states.is_empty();
    let has_diverged = !comparison.divergences.is_empty();
    let is_equal = !has_diverged && is_compared;
    let level = if is_equal { Some(*claimed) } else { has_diverged.then_some("D0") };
    let exit = if has_diverged { Exit::Diverged } else { Exit::Done };
    if as_json {
        let differs = |(name, a, b): &(String, String, String)| json!({"name": name, "recorded": a, "replayed": b});
        output::json(&json!({"from": span.from, "from_step": span.from_step, "to": span.to,
            "ranks": span.ranks, "recorded_ranks": span.recorded_ranks, "world_sizes": world_sizes,
            "equal": is_equal, "diverged": has_diverged, "level": level,
            "steps": comparison.steps, "states": comparison.states,
            "checkpoint": span.end.filter(|_| *is_proven), "digest": root,
            "divergences": comparison.divergences.iter().map(divergence_json).collect::<Vec<_>>(),
            "environment": environment.iter().map(differs).collect::<Vec<_>>(),
            "branch": travelled.map(|(run, _)| run.to_string()),
            "saved": travelled.map(|(_, id)| id)}))?;
        return Ok(exit);
    }
    if let Some((run, id)) = travelled {
        output::line(format_args!(
            "saved       step {} as checkpoint {} of run {run}",
            span.to,
            id.short()
        ));
    }
    for (name, a, b) in environment {
        output::line(format_args!("environment {name}: recorded {a}, here {b}"));
    }
    for divergence in comparison.divergences.iter().take(5) {
        output::line(format_args!("differs     {divergence}"));
    }
    let more = comparison.divergences.len().saturating_sub(5);
    if more > 0 {
        output::line(format_args!("            and {more} more after it"));
    }
    let states = output::count(comparison.states.len(), "state");
    let end = if *is_proven { ", the last one with the checkpoint's bytes" } else { "" };
    let compared = format!("{} step records, {states}{end}", comparison.steps);
    match (is_equal, root, comparison.first()) {
        (true, Some(root), _) => output::line(format_args!(
            "equal       steps {} to {} at level {}: {compared}; digest {}",
            span.from_step + 1,
            span.to,
            level.unwrap_or_default(),
            root.short()
        )),
        (_, _, Some(first)) => output::line(format_args!(
            "DIVERGED    first at step {}: {} ({compared})",
            first.step, first.what
        )),
        _ => output::line(format_args!(
            "unproven    the steps agree, and no state was recorded to compare with ({compared})"
        )),
    }
    Ok(exit)
}
