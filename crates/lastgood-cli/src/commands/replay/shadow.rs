//! `lastgood replay --mode shadow`: windows of a run that goes on, chosen by chance, run again beside it.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use lastgood::attempt::tell_incident;
use lastgood::ledger::Ledger;
use lastgood::replay::Span;
use lastgood::{Error, Repository};
use serde_json::json;

use crate::args::Replay;
use crate::commands::supervise;
use crate::exit::Exit;
use crate::replay::{Rerun, Source, divergence_json};
use crate::{output, session};

/// How much the job lets others go first.
const NICER: i32 = 10;

/// How often a wait looks whether it is told to stop.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn run(args: &Replay, as_json: bool) -> Result<Exit> {
    let (repository, mut ledger) = session::ledger(&args.run)?;
    let control = supervise::stop_on_signals()?;
    // What runs beside a training must not slow it.
    if let Ok(nice) = rustix::process::getpriority_process(None) {
        let _ = rustix::process::setpriority_process(None, (nice + NICER).min(19));
    }
    let mut seen = BTreeSet::new();
    let mut windows = 0_u64;
    while args.windows.is_none_or(|wanted| windows < wanted) {
        repository.block_on(ledger.refresh())?;
        let choice = repository.env().random();
        let Some(span) = Span::sample(&repository, &ledger, &seen, choice)? else {
            if args.windows.is_some() {
                break;
            }
            let until = Instant::now() + args.every;
            while Instant::now() < until && control.stops() == 0 {
                thread::sleep(LOOK);
            }
            if control.stops() > 0 {
                return Ok(stopped(windows));
            }
            continue;
        };
        seen.extend(span.end);
        let span = Span { ranks: args.ranks.unwrap_or(span.ranks), ..span };
        let source = Source {
            repository: &repository,
            ledger: &ledger,
            store: &args.run.store.store,
            command: &args.command,
            control: &control,
        };
        let Some(rerun) = source.rerun_aside(&span, false)? else { return Ok(stopped(windows)) };
        windows += 1;
        if !rerun.judged.has_diverged() {
            show(&span, &rerun, None, as_json)?;
            continue;
        }
        let Some(again) = source.rerun_aside(&span, false)? else { return Ok(stopped(windows)) };
        let verdict = verdict(&rerun, &again);
        show(&span, &rerun, Some(verdict), as_json)?;
        tell(&repository, &mut ledger, &span, &rerun, verdict)?;
        return Ok(Exit::Diverged);
    }
    if windows == 0 {
        return Err(Error::not_found("there are no steps between checkpoints to run again")
            .with_remedy("the run must have saved a checkpoint, and have a journal")
            .into());
    }
    if !as_json {
        output::line(format_args!("equal       {}", output::count(windows as usize, "window")));
    }
    Ok(Exit::Done)
}

fn stopped(windows: u64) -> Exit {
    output::note(format_args!("stopped after {}", output::count(windows as usize, "window")));
    Exit::Failed
}

/// Which of the executions is the odd one.
fn verdict(one: &Rerun, other: &Rerun) -> &'static str {
    let of = |rerun: &Rerun| (rerun.judged.root, rerun.judged.comparison.divergences.clone());
    if !other.judged.has_diverged() {
        "the second replay is equal to the record: the first one was disturbed, by this machine"
    } else if of(one) == of(other) {
        "two replays agree, and the record is another: the run was disturbed, or something outside of it has changed"
    } else {
        "the replays do not agree with each other either: the job is not deterministic"
    }
}

fn show(span: &Span, rerun: &Rerun, verdict: Option<&str>, as_json: bool) -> Result<()> {
    let judged = &rerun.judged;
    let first = judged.comparison.first();
    if as_json {
        return output::json(
            &json!({"from": span.from, "from_step": span.from_step, "to": span.to,
            "ranks": span.ranks, "equal": judged.is_equal(), "diverged": judged.has_diverged(),
            "steps": judged.comparison.steps, "first": first.map(divergence_json), "verdict": verdict}),
        );
    }
    let steps = format!("steps {} to {}", span.from_step + 1, span.to);
    match (first, verdict) {
        (Some(first), verdict) => {
            output::line(format_args!("DIVERGED    {steps}: {first}"));
            if let Some(verdict) = verdict {
                output::line(format_args!("            {verdict}"));
            }
        }
        (None, _) if judged.is_equal() => output::line(format_args!("equal       {steps}")),
        (None, _) => output::line(format_args!(
            "unproven    {steps}: the records agree, and no state was recorded to compare with"
        )),
    }
    Ok(())
}

/// Says in the run's ledger what was found.
fn tell(
    repository: &Repository,
    ledger: &mut Ledger,
    span: &Span,
    rerun: &Rerun,
    verdict: &str,
) -> Result<()> {
    let first = rerun.judged.comparison.first().map(ToString::to_string).unwrap_or_default();
    let reason = format!(
        "a shadow of steps {} to {} differs from the record: {first}; {verdict}",
        span.from_step + 1,
        span.to
    );
    Ok(repository.block_on(tell_incident(ledger, "lastgood replay", &reason, None))?)
}
