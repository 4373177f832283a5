//! `lastgood run`: a job under supervision.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use lastgood::Repository;
use lastgood::replay::Resume;
use lastgood::restore::choose;
use lastgood::save::Completed;
use lastgood_serve::supervise::{
    Cause, PREEMPTED, RankEnvironment, Stream, not_replaced, tie_to_parent,
};
use lastgood_serve::{Control, Event, Job, Outcome, rank, supervise};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::resumed;
use crate::args::{OnOff, Supervise};
use crate::exit::Exit;
use crate::{output, program, session};

pub(super) fn run(args: &Supervise, as_json: bool) -> Result<Exit> {
    check_program(args.command.first().map_or(OsStr::new(""), OsString::as_os_str))?;
    let repository = session::create_repository(&args.run.store.store)?;
    let job = Job {
        command: args.command.clone(),
        launcher: launcher()?,
        guard: guard()?,
        ranks: args.ranks,
        ranks_min: args.shrink.then_some(args.min_ranks),
        store: args.run.store.store.clone(),
        run: args.run.run.clone(),
        environment: told(args)?,
        memory: args.memory == OnOff::On,
        restarts_max: args.restarts,
        stall_timeout: (!args.stall_timeout.is_zero()).then_some(args.stall_timeout),
        grace: args.grace,
        master_port: args.master_port,
    };
    let control = stop_on_signals()?;
    let by_replay = args.resume == Resume::Replay;
    // The first attempt and the newest.
    let mut attempts: Option<(u64, u64)> = None;
    let mut gave_way = false;
    let outcome = supervise(&repository, &job, &control, &mut |event| {
        match as_json {
            true => show_json(&event),
            false => show(&event),
        }
        match (&event, attempts) {
            (Event::Ended { cause: Cause::Exit(PREEMPTED), .. }, _) => gave_way = true,
            (Event::Started { attempt, .. }, before) => {
                gave_way = false;
                attempts = Some((before.map_or(*attempt, |(first, _)| first), *attempt));
            }
            // The next attempt would come to the same.
            (Event::Failed(_), Some((_, newest)))
                if by_replay && resumed::has_diverged(&repository, &args.run.run, newest) =>
            {
                control.stop();
            }
            _ => {}
        }
    })?;
    let (exit, text) = match &outcome {
        Outcome::Finished { attempts: 1 } => (Exit::Done, "done".to_owned()),
        Outcome::Finished { attempts } => (Exit::Done, format!("done in {attempts} attempts")),
        Outcome::Stopped if gave_way => {
            (Exit::Preempted, "stopped before the job was done, which gave way".into())
        }
        Outcome::Stopped => (Exit::Failed, "stopped before the job was done".into()),
        Outcome::GaveUp(verdict) => (Exit::Failed, format!("given up: {verdict}")),
    };
    if as_json {
        let event = match outcome {
            Outcome::Finished { .. } => "finished",
            Outcome::Stopped => "stopped",
            Outcome::GaveUp(_) => "gave_up",
        };
        output::json(&json!({"event": event, "message": text}))?;
    } else {
        output::note(format_args!("lastgood: {text}"));
        if matches!(outcome, Outcome::GaveUp(_)) {
            show_way_back(&repository, args)?;
        }
    }
    match attempts.filter(|_| by_replay) {
        Some((first, _)) => match resumed::show(&repository, &args.run.run, first, as_json)? {
            Exit::Done => Ok(exit),
            diverged => Ok(diverged),
        },
        None => Ok(exit),
    }
}

/// What ranks are told of how to go on.
fn told(args: &Supervise) -> Result<RankEnvironment> {
    let mut variables = Vec::new();
    if args.resume != Resume::Live {
        variables.push((rank::RESUME.to_owned(), args.resume.to_string()));
    }
    if let Some(mode) = &args.preflight {
        variables.push((rank::PREFLIGHT.to_owned(), mode.clone()));
    }
    if let Some(acceptance) = args.accept.acceptance() {
        variables.push((rank::ACCEPT.to_owned(), acceptance.encode()?));
    }
    Ok(RankEnvironment(Arc::new(move |_, _| variables.clone())))
}

/// Says from where the next start would go on, and how to go back further.
fn show_way_back(repository: &Repository, args: &Supervise) -> Result<()> {
    let run = &args.run.run;
    let ledger = repository.ledger(run)?;
    let Some(next) = choose(ledger.history()) else { return Ok(()) };
    output::note(format_args!(
        "  the next start goes on from step {} ({}); to go back further:\n  \
         lastgood mark bad --store {} --run {run} --at id:{}",
        next.step,
        next.id.short(),
        args.run.store.store,
        next.id.short()
    ));
    Ok(())
}

/// `lastgood __rank`: becomes the rank, which the kernel ends with its supervisor.
pub(super) fn become_rank(parent: u32, command: &[OsString]) -> Result<Exit> {
    tie_to_parent(parent)?;
    let (program, args) = command.split_first().context("no command is given")?;
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// `lastgood __guard`: waits for the supervisor's end.
pub(super) fn guard_ranks() -> Result<Exit> {
    supervise::guard(std::io::stdin().lock());
    Ok(Exit::Done)
}

/// The command line of `__guard`.
pub(crate) fn guard() -> Result<Vec<OsString>> {
    program::with(&["__guard"])
}

/// The command line of `__rank` in this process.
pub(crate) fn launcher() -> Result<Vec<OsString>> {
    let parent = std::process::id().to_string();
    program::with(&["__rank", "--parent", &parent, "--"])
}

/// SIGTERM, SIGINT and SIGHUP stop the job: the first one with the grace time.
pub(crate) fn stop_on_signals() -> Result<Arc<Control>> {
    let control = Arc::new(Control::default());
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("signal handlers")?;
    let orders = Arc::clone(&control);
    let listen = move || signals.forever().for_each(|_| orders.stop());
    thread::Builder::new().name("signals".into()).spawn(listen).context("no thread")?;
    Ok(control)
}

/// A program that is not there, or may not be run, is told now and not by every rank.
pub(crate) fn check_program(program: &OsStr) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = match program.as_encoded_bytes().contains(&b'/') {
        true => vec![program.into()],
        false => env::split_paths(&path).map(|folder| folder.join(program)).collect(),
    };
    let files = places.iter().filter_map(|place| fs::metadata(place).ok());
    let mut files = files.filter(Metadata::is_file).peekable();
    let name = program.display();
    if files.peek().is_none() {
        bail!(lastgood::Error::not_found(format!("there is no program {name}")).with_remedy(
            "give the program and its arguments after `--`, as in `-- python train.py`"
        ));
    }
    if !files.any(|file| file.permissions().mode() & 0o111 != 0) {
        bail!(
            lastgood::Error::new(
                lastgood::ErrorKind::Denied,
                format!("{name} is a file that may not be run")
            )
            .with_remedy(format!("make it executable, or give its interpreter: `-- sh {name}`"))
        );
    }
    Ok(())
}

fn show(event: &Event<'_>) {
    match event {
        Event::Line { rank, stream, text } => {
            let prefix = format!("[rank {rank}] ");
            // A terminal that is gone must not end the job.
            let line = [prefix.as_bytes(), text, b"\n"].concat();
            match stream {
                Stream::Out => std::io::stdout().write_all(&line).ok(),
                Stream::Err => std::io::stderr().write_all(&line).ok(),
            };
        }
        Event::Started { attempt, from, pids, .. } => {
            let ranks = output::count(pids.len(), "rank");
            let from = match from {
                Some((step, id)) => format!("from step {step} ({})", id.short()),
                None => "from the beginning".into(),
            };
            output::note(format_args!("lastgood: attempt {attempt}: {ranks}, {from}"));
        }
        Event::Failed(failure) => {
            output::note(format_args!("lastgood: {failure}; ending the other ranks"));
        }
        Event::Restarting { after, left, ranks, gone } => {
            if !gone.is_empty() {
                output::note(format_args!("lastgood: {}", not_replaced(gone, *ranks)));
            }
            let after = after.as_secs();
            output::note(format_args!(
                "lastgood: starting again in {after} s; {left} more without a new checkpoint"
            ));
        }
        Event::Completed(Completed { checkpoint, step, .. }) => output::note(format_args!(
            "lastgood: step {step} was in memory alone; it is a checkpoint now ({})",
            checkpoint.short()
        )),
        Event::NotCompleted(error) => output::note(format_args!(
            "lastgood: what was in memory alone is no checkpoint: {error}"
        )),
        Event::Stopping => output::note("lastgood: told to stop; ending the ranks"),
        Event::Step(_) | Event::Ended { .. } => {}
    }
}

fn show_json(event: &Event<'_>) {
    let body = match event {
        Event::Line { rank, stream, text } => {
            let stream = if *stream == Stream::Out { "out" } else { "err" };
            json!({"event": "line", "rank": rank, "stream": stream,
                "text": String::from_utf8_lossy(text)})
        }
        Event::Started { attempt, restarts, from, pids } => {
            let from = from.map(|(step, id)| json!({"step": step, "checkpoint": id}));
            json!({"event": "started", "attempt": attempt, "restarts": restarts, "from": from,
                "pids": pids})
        }
        Event::Step(step) => json!({"event": "step", "step": step}),
        Event::Ended { rank, cause } => {
            json!({"event": "ended", "rank": rank, "cause": cause.to_string()})
        }
        Event::Failed(failure) => json!({"event": "failed", "rank": failure.rank,
            "step": failure.step, "cause": failure.cause.to_string()}),
        Event::Restarting { after, left, ranks, gone } => json!({"event": "restarting",
            "after_s": after.as_secs_f64(), "left": left, "ranks": ranks, "gone": gone}),
        Event::Completed(Completed { checkpoint, step, bytes }) => json!({"event": "completed",
            "step": step, "checkpoint": checkpoint, "bytes": bytes}),
        Event::NotCompleted(error) => json!({"event": "not_completed",
            "error": error.to_string()}),
        Event::Stopping => json!({"event": "stopping"}),
    };
    output::line(body);
}
