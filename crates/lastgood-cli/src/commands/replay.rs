//! `lastgood replay`: a part of a run again, beside what was recorded of it.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use lastgood::ledger::{Checkpoint, Ledger, Standing};
use lastgood::replay::compare::{Comparison, Divergence, compare, compare_states};
use lastgood::replay::state::State;
use lastgood::replay::window::{Window, parts_to};
use lastgood::replay::{Place, Plan};
use lastgood::restore::Selector;
use lastgood::{Error, Hash, Repository, RunName};
use lastgood_serve::supervise::RankEnvironment;
use lastgood_serve::{Event, Job, Outcome, rank, supervise};
use serde_json::json;

use super::{supervise as run_command, verify};
use crate::args::{Replay, ReplayMode};
use crate::exit::Exit;
use crate::{output, session};

/// A replay may take as long between two steps as the run did; a rank that says nothing for so long hangs.
const STALL: std::time::Duration = std::time::Duration::from_secs(30 * 60);

/// How many last lines of ranks are kept for the case that the job fails: what it says otherwise, it has said before.
const LINES_MAX: usize = 30;

pub(super) fn run(args: &Replay, as_json: bool) -> Result<Exit> {
    if args.mode == ReplayMode::Audit {
        return verify::run(&args.run, None, false, as_json);
    }
    if args.command.is_empty() {
        bail!(Error::invalid("no command is given to run again").with_remedy(
            "give that of the job after `--`, as in `-- python train.py`; --mode audit needs none"
        ));
    }
    let (repository, ledger) = session::ledger(&args.run)?;
    let span = Span::find(&repository, &ledger, args)?;
    let recorded = Window::read(&repository, &ledger, span.from_step + 1..=span.to)?;
    check_recorded(&recorded, &span)?;
    let temporary = tempfile::Builder::new().prefix("lastgood-replay.").tempdir()?;
    let into = span.target(args, temporary.path())?;
    let plan = span.plan(args, &into, &recorded);
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
    let target = session::create_repository(&into.store)?;
    check_vacant(&target, &into)?;
    if !execute(&target, args, &span, &plan)? {
        output::note("stopped");
        return Ok(Exit::Failed);
    }
    let own = target.existing(&into.run)?;
    let replayed = Window::read(&target, &own, span.from_step + 1..=span.to)?;
    let outcome = judge(&repository, &ledger, &span, (&recorded, &replayed))?;
    let travelled = match args.mode {
        ReplayMode::Travel => own.history().checkpoints().last().map(|c| (into.run.clone(), c.id)),
        _ => None,
    };
    show(&span, &outcome, travelled.as_ref(), as_json)
}

/// What is run again.
#[derive(Debug)]
struct Span {
    from: Option<Hash>,
    from_step: u64,
    to: u64,
    /// The checkpoint of the last step, if there is one.
    end: Option<Hash>,
    ranks: u32,
    /// The ranks that the run had.
    recorded_ranks: u32,
}

impl Span {
    fn find(repository: &Repository, ledger: &Ledger, args: &Replay) -> Result<Self> {
        let history = ledger.history();
        let end = match (session::checkpoint(history, &args.to), &args.to) {
            (Ok(checkpoint), _) => Some(checkpoint),
            (Err(_), Selector::Step(_)) => None,
            (Err(error), _) => return Err(error.into()),
        };
        let to = match (end, &args.to) {
            (Some(checkpoint), _) => checkpoint.step,
            (None, Selector::Step(step)) => *step,
            _ => bail!("no step to end with"),
        };
        let from = match args.from.as_deref() {
            Some("start") => None,
            Some(text) => Some(session::checkpoint(history, &text.parse::<Selector>()?)?),
            None => before(repository, ledger, to)?,
        };
        if let Some(from) = from
            && from.step >= to
        {
            bail!(
                Error::invalid(format!("step {} is not before step {to}", from.step))
                    .with_remedy("give an earlier --from, or a later --to")
            );
        }
        let newest = history.attempt().map(|attempt| attempt.world_size);
        let recorded_ranks = end.or(from).map(|c| c.world_size).or(newest).unwrap_or(1);
        Ok(Self {
            from: from.map(|checkpoint| checkpoint.id),
            from_step: from.map_or(0, |checkpoint| checkpoint.step),
            to,
            end: end.map(|checkpoint| checkpoint.id),
            ranks: args.ranks.unwrap_or(recorded_ranks),
            recorded_ranks,
        })
    }

    /// Where the replay records.
    fn target(&self, args: &Replay, temporary: &std::path::Path) -> Result<Place> {
        if args.mode == ReplayMode::Travel {
            let name = format!("{}-at-{}", args.run.run, self.to);
            let run = args.branch.clone().map_or_else(|| name.parse(), Ok)?;
            return Ok(Place { store: args.run.store.store.clone(), run });
        }
        let folder = match &args.keep {
            Some(folder) => std::path::absolute(folder)?,
            None => PathBuf::from(temporary),
        };
        Ok(Place { store: folder.display().to_string(), run: args.run.run.clone() })
    }

    fn plan(&self, args: &Replay, into: &Place, recorded: &Window) -> Plan {
        let source = Place { store: args.run.store.store.clone(), run: args.run.run.clone() };
        let from = self.from.map(|id| (id, self.from_step));
        let mut plan = Plan::new(source, into.clone(), from, self.to);
        plan.digests = recorded.states.keys().copied().collect::<BTreeSet<_>>();
        plan.save = args.mode == ReplayMode::Travel;
        plan
    }
}

/// The newest checkpoint before step `to` that led to it.
fn before<'l>(
    repository: &Repository,
    ledger: &'l Ledger,
    to: u64,
) -> Result<Option<&'l Checkpoint>> {
    let parts = repository.block_on(parts_to(repository, ledger, to))?;
    let history = ledger.history();
    let led = |checkpoint: &&Checkpoint| {
        let usable = checkpoint.standing != Standing::Bad && !checkpoint.expired;
        usable && checkpoint.step < to && parts.iter().any(|p| p.attempt == checkpoint.attempt)
    };
    Ok(history.checkpoints().iter().filter(led).max_by_key(|c| (c.step, c.entry)))
}

fn check_recorded(recorded: &Window, span: &Span) -> Result<()> {
    let last = recorded.steps.keys().map(|(step, _)| *step).max();
    if last == Some(span.to) {
        return Ok(());
    }
    let what = match last {
        Some(last) => format!("the journal of these steps ends with step {last}"),
        None => "nothing is recorded of these steps".to_owned(),
    };
    Err(Error::not_found(format!("steps {} to {}: {what}", span.from_step + 1, span.to))
        .with_remedy(
            "`lastgood log --journal --count` says what is recorded; the job must open the run with \
             a journal and call step",
        )
        .into())
}

fn check_vacant(target: &Repository, into: &Place) -> Result<()> {
    if target.ledger(&into.run)?.history().entries() == 0 {
        return Ok(());
    }
    let message = format!("{} holds a run {} already", into.store, into.run);
    bail!(
        Error::new(lastgood::ErrorKind::Conflict, message)
            .with_remedy("name another --branch, or another folder to --keep")
    )
}

/// Runs the job as the plan says; false if it was told to stop.
fn execute(target: &Repository, args: &Replay, span: &Span, plan: &Plan) -> Result<bool> {
    run_command::check_program(args.command.first().map_or("".as_ref(), |name| name.as_os_str()))?;
    let plan_text = plan.encode()?;
    let variables = move |_: u32, _: u32| vec![(rank::REPLAY.to_owned(), plan_text.clone())];
    let job = Job {
        command: args.command.clone(),
        launcher: run_command::launcher()?,
        guard: run_command::guard()?,
        ranks: span.ranks,
        store: plan.source.store.clone(),
        run: plan.into.run.clone(),
        environment: RankEnvironment(Arc::new(variables)),
        restarts_max: 0,
        stall_timeout: Some(STALL),
        grace: std::time::Duration::from_secs(30),
        master_port: None,
    };
    let control = run_command::stop_on_signals()?;
    let bar = output::step_bar("replay", span.to - span.from_step);
    let mut lines: VecDeque<String> = VecDeque::new();
    let outcome = supervise(target, &job, &control, &mut |event| match event {
        Event::Step(step) => bar.set_position(step.saturating_sub(span.from_step)),
        Event::Line { rank, text, .. } => {
            lines.push_back(format!("[rank {rank}] {}", String::from_utf8_lossy(text)));
            lines.drain(..lines.len().saturating_sub(LINES_MAX));
        }
        _ => {}
    })?;
    bar.finish_and_clear();
    match outcome {
        Outcome::Finished { .. } => Ok(true),
        Outcome::Stopped => Ok(false),
        Outcome::GaveUp(verdict) => {
            lines.iter().for_each(output::note);
            bail!("the job did not come to its end: {verdict}")
        }
    }
}

/// What a replay came to.
#[derive(Debug)]
struct Judged {
    comparison: Comparison,
    /// True if the state at the end was compared with the bytes of a checkpoint.
    is_proven: bool,
    /// What differs between the environments: name, recorded, re-executed.
    environment: Vec<(String, String, String)>,
    root: Option<Hash>,
}

fn judge(
    repository: &Repository,
    ledger: &Ledger,
    span: &Span,
    (recorded, replayed): (&Window, &Window),
) -> Result<Judged> {
    let mut comparison = compare(recorded, replayed);
    let end = replayed.states.get(&span.to);
    if let (Some(id), Some(end)) = (&span.end, end) {
        // Its bytes, and not only what the journal says of them.
        let contents = repository.contents(ledger, id)?;
        let saved = State::of_checkpoint(repository, &contents)?;
        comparison.divergences.extend(compare_states(span.to, &saved, end));
        comparison.divergences.sort_by_key(|divergence| divergence.step);
        comparison.divergences.dedup();
    }
    Ok(Judged {
        comparison,
        is_proven: span.end.is_some() && end.is_some(),
        environment: environment(recorded, replayed),
        root: end.map(State::root),
    })
}

/// What differs between the environment of the attempt that did the last step, and that of the replay.
fn environment(recorded: &Window, replayed: &Window) -> Vec<(String, String, String)> {
    let last = recorded.attempts.values().next_back();
    let of = recorded.environments.iter().find(|((attempt, _), _)| Some(attempt) == last);
    let (Some((_, a)), Some(b)) = (of, replayed.environments.values().next()) else {
        return Vec::new();
    };
    let (Some(a), Some(b)) = (a.as_map(), b.as_map()) else { return Vec::new() };
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let show = |value: Option<&lastgood::journal::Value>| {
        value.and_then(|value| value.as_str()).unwrap_or("nothing").to_owned()
    };
    let differing = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    differing.map(|name| (name.clone(), show(a.get(name)), show(b.get(name)))).collect()
}

fn show(
    span: &Span,
    outcome: &Judged,
    travelled: Option<&(RunName, Hash)>,
    as_json: bool,
) -> Result<Exit> {
    let Judged { comparison, is_proven, environment, root } = outcome;
    let is_compared = *is_proven || !comparison.states.is_empty();
    let has_diverged = !comparison.divergences.is_empty();
    let is_equal = !has_diverged && is_compared;
    let level = match (is_equal, span.ranks == span.recorded_ranks) {
        (true, true) => Some("D2"),
        (true, false) => Some("D3"),
        (false, _) => has_diverged.then_some("D0"),
    };
    let exit = if has_diverged { Exit::Diverged } else { Exit::Done };
    if as_json {
        let divergence = |d: &Divergence| {
            json!({"code": d.difference.code(), "step": d.step, "rank": d.rank, "what": d.what,
                "expected": d.expected, "actual": d.actual,
                "word": d.change.map(|c| c.word), "delta": d.change.map(|c| c.delta.to_string())})
        };
        let differs = |(name, a, b): &(String, String, String)| json!({"name": name, "recorded": a, "replayed": b});
        output::json(&json!({"from": span.from, "from_step": span.from_step, "to": span.to,
            "ranks": span.ranks, "recorded_ranks": span.recorded_ranks, "equal": is_equal,
            "diverged": has_diverged, "level": level, "steps": comparison.steps, "states": comparison.states,
            "checkpoint": span.end.filter(|_| *is_proven), "digest": root,
            "divergences": comparison.divergences.iter().map(divergence).collect::<Vec<_>>(),
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
