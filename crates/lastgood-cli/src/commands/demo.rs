//! `lastgood demo`: a job that nothing disturbs, the same job with ranks killed, and the comparison.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use lastgood::{Hash, Repository, RunName};
use lastgood_serve::supervise::{Cause, RankEnvironment, not_replaced};
use lastgood_serve::{Control, Event, Job, Outcome, supervise};
use serde_json::{Value, json};

use super::supervise as run_command;
use crate::args::Demo;
use crate::demo::compare;
use crate::demo::message::{Message, Report};
use crate::demo::plan::{self, Kill, Moment};
use crate::demo::rank::PAUSE;
use crate::exit::Exit;
use crate::{output, program, session};

const RUN: &str = "demo";

/// How many last lines of ranks are kept for the case that the job fails.
const LINES_MAX: usize = 30;

pub(super) fn run(args: &Demo, as_json: bool) -> Result<Exit> {
    check(args)?;
    let show = Show { as_json, start: Instant::now() };
    let control = run_command::stop_on_signals()?;
    let folder = tempfile::Builder::new().prefix("lastgood-demo.").tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let Demo { ranks, steps, every, kills, seed, .. } = args;
    let parameters = "handwritten digits";
    show.text(format_args!(
        "{ranks} rank processes learn {parameters} for {steps} steps; a save every {every} steps"
    ));

    show.text("\n1. Undisturbed");
    let first = Training::new(args, &path("undisturbed"), Vec::new(), show.restart())?;
    let Some(undisturbed) = first.train(&control)? else { return Ok(stopped()) };

    let fate = if args.shrink { " and not replaced" } else { "" };
    show.text(format_args!(
        "\n2. The same job; {kills} times a rank is killed by kill -9{fate} (seed {seed})"
    ));
    let left = |killed| if args.shrink { plan::left(*ranks, killed) } else { *ranks };
    let plan = plan::plan(*seed, *kills, left, *steps, *every);
    let url = args.store.clone().unwrap_or_else(|| path("killed"));
    let second = Training::new(args, &url, plan, show.restart())?;
    let Some(killed) = second.train(&control)? else { return Ok(stopped()) };

    show.text("\n3. Compared");
    let name: RunName = RUN.parse()?;
    let one = compare::read(&first.repository, &name, *steps)?;
    let other = compare::read(&second.repository, &name, *steps)?;
    let bytes: usize = one.values().map(|tensor| tensor.bytes.len()).sum();
    show.text(format_args!(
        "   the last checkpoints of both, read back: {} tensors and values, {}",
        one.len(),
        output::size(bytes as u64)
    ));
    if let Some(compare::Difference { tensor, what }) = compare::first_difference(&one, &other) {
        return show.diverged(&tensor, &what);
    }
    if undisturbed.digest != killed.digest {
        let what = format!("{} and {}", undisturbed.digest, killed.digest);
        return show.diverged("the digest of the state in memory", &what);
    }
    if as_json {
        output::json(&json!({"event": "equal", "digest": killed.digest, "store": args.store,
            "seconds": show.start.elapsed().as_secs_f64()}))?;
    } else {
        if let Some(store) = &args.store {
            output::line(format_args!("   kept: lastgood ls --store {store} --run {RUN}"));
        }
        output::line(format_args!("digest equal: {}", killed.digest));
    }
    Ok(Exit::Done)
}

fn check(args: &Demo) -> Result<()> {
    let Demo { kills, ranks, steps, every, .. } = args;
    let invalid =
        |what: String, remedy: &str| Err(lastgood::Error::invalid(what).with_remedy(remedy));
    if *every == 0 || *steps == 0 {
        invalid("--steps and --every are at least 1".into(), "leave them out for the defaults")?;
    }
    if !(1..=4).contains(ranks) {
        invalid(format!("--ranks is {ranks}"), "the batch has parts for 1 to 4 ranks")?;
    }
    let room = plan::kills_max(*steps, *every);
    if u64::from(*kills) > room {
        invalid(
            format!(
                "{kills} kills do not fit into {steps} steps with a save every {every}: {room} do"
            ),
            "fewer kills, more steps or more frequent saves",
        )?;
    }
    Ok(())
}

fn stopped() -> Exit {
    output::note("stopped");
    Exit::Failed
}

/// What is printed.
#[derive(Clone, Copy, Debug)]
struct Show {
    as_json: bool,
    start: Instant,
}

impl Show {
    fn restart(self) -> Self {
        Self { start: Instant::now(), ..self }
    }

    fn text(self, text: impl std::fmt::Display) {
        if !self.as_json {
            output::line(text);
        }
    }

    /// A line of the timeline.
    fn event(self, step: Option<u64>, text: impl std::fmt::Display, mut body: Value) {
        let seconds = self.start.elapsed().as_secs_f64();
        if self.as_json {
            body["at_s"] = json!(seconds);
            body["step"] = json!(step);
            return output::line(body);
        }
        let step = step.map_or_else(String::new, |step| step.to_string());
        output::line(format_args!("   {seconds:6.2} s  {step:>5}  {text}"));
    }

    fn diverged(self, tensor: &str, what: &str) -> Result<Exit> {
        if self.as_json {
            output::json(&json!({"event": "diverged", "tensor": tensor, "what": what}))?;
        } else {
            output::line(format_args!("first difference: {tensor}: {what}"));
        }
        Ok(Exit::Diverged)
    }
}

/// One training under supervision.
struct Training {
    show: Show,
    repository: Repository,
    job: Job,
    plan: Vec<Kill>,
}

impl Training {
    fn new(args: &Demo, url: &str, plan: Vec<Kill>, show: Show) -> Result<Self> {
        let repository = session::create_repository(url)?;
        let run: RunName = RUN.parse()?;
        if repository.ledger(&run)?.history().entries() > 0 {
            bail!(
                lastgood::Error::new(
                    lastgood::ErrorKind::Conflict,
                    format!("{url} holds a run {RUN:?} already")
                )
                .with_remedy("give a store, or a folder or prefix of one, without such a run")
            );
        }
        let mut command = program::with(&["__demo-rank"])?;
        for (name, value) in [("--steps", args.steps), ("--every", args.every)] {
            command.extend([name.into(), value.to_string().into()]);
        }
        if let Some(name) = args.forget.and_then(|component| component.to_possible_value()) {
            command.extend(["--forget".into(), name.get_name().into()]);
        }
        let pauses = plan.clone();
        // The attempt after n restarts is the one that kill number n ends.
        let environment = move |restarts: u32, rank: u32| match pauses.get(restarts as usize) {
            Some(Kill { rank: r, at: Moment::Save(pause) }) if *r == rank => {
                vec![(PAUSE.to_owned(), pause.to_string())]
            }
            _ => Vec::new(),
        };
        let job = Job {
            command,
            launcher: run_command::launcher()?,
            guard: run_command::guard()?,
            ranks: args.ranks,
            ranks_min: args.shrink.then_some(1),
            store: url.to_owned(),
            run,
            environment: RankEnvironment(Arc::new(environment)),
            // It shows what the store alone gives back.
            memory: false,
            restarts_max: 3,
            stall_timeout: Some(std::time::Duration::from_secs(60)),
            grace: std::time::Duration::from_secs(5),
            master_port: None,
        };
        Ok(Self { show, repository, job, plan })
    }

    /// Trains to the end; `None` if it was told to stop.
    fn train(&self, control: &Control) -> Result<Option<Report>> {
        let mut timeline = Timeline::new(self, control);
        let outcome = supervise(&self.repository, &self.job, control, &mut |e| timeline.see(&e))?;
        match outcome {
            Outcome::Finished { .. } => {}
            Outcome::Stopped => return Ok(None),
            Outcome::GaveUp(verdict) => {
                timeline.lines.iter().for_each(output::note);
                bail!("the job was given up: {verdict}");
            }
        }
        let Timeline { report, saved, attempts, lost, .. } = timeline;
        let report = report.context("rank 0 ended without a report")?;
        let killed = attempts as usize - 1;
        let planned = self.plan.len();
        if killed < planned {
            bail!("only {killed} of {planned} kills came: the training was over before");
        }
        let accuracy = report.accuracy * 100.0;
        let body = json!({"event": "done", "digest": report.digest, "accuracy": report.accuracy,
            "loss": report.loss, "attempts": attempts, "saved": saved, "lost_steps": lost});
        let text = format!(
            "done in {attempts} attempt{}, {lost} steps done twice: accuracy {accuracy:.1} %",
            if attempts == 1 { "" } else { "s" }
        );
        self.show.event(Some(report.step), text, body);
        Ok(Some(report))
    }
}

/// What has happened, and the kills that are still to come.
struct Timeline<'a> {
    training: &'a Training,
    control: &'a Control,
    /// The kill of this attempt, until it is given.
    next: Option<Kill>,
    killed: Option<(u32, Instant)>,
    step: Option<u64>,
    saved: u64,
    attempts: u32,
    /// Steps that had to be done again.
    lost: u64,
    report: Option<Report>,
    lines: Vec<String>,
}

impl<'a> Timeline<'a> {
    fn new(training: &'a Training, control: &'a Control) -> Self {
        Self {
            training,
            control,
            next: None,
            killed: None,
            step: None,
            saved: 0,
            attempts: 0,
            lost: 0,
            report: None,
            lines: Vec::new(),
        }
    }

    fn see(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { attempt, restarts, from, pids } => {
                self.started(*attempt, *restarts, *from, pids.len());
            }
            Event::Step(step) => {
                self.step = Some(*step);
                if let Some(Kill { rank, at: Moment::Step(at) }) = self.next
                    && *step >= at
                {
                    self.kill(rank, "in training", json!("training"));
                }
            }
            Event::Line { rank, text, .. } => match Message::parse(text) {
                Some(message) => self.told(*rank, message),
                None => {
                    self.lines.drain(..(self.lines.len() + 1).saturating_sub(LINES_MAX));
                    self.lines.push(format!("[rank {rank}] {}", String::from_utf8_lossy(text)));
                }
            },
            Event::Ended { rank, cause } => self.ended(*rank, *cause),
            Event::Restarting { ranks, gone, .. } if !gone.is_empty() => {
                let body = json!({"event": "shrunk", "gone": gone, "ranks": ranks});
                self.training.show.event(self.step, not_replaced(gone, *ranks), body);
            }
            Event::Failed(_)
            | Event::Restarting { .. }
            | Event::Completed(_)
            | Event::NotCompleted(_)
            | Event::Stopping => {}
        }
    }

    fn started(&mut self, attempt: u64, restarts: u32, from: Option<(u64, Hash)>, ranks: usize) {
        self.attempts += 1;
        self.next = self.training.plan.get(restarts as usize).copied();
        let lost = self.step.unwrap_or(0).saturating_sub(from.map_or(0, |(step, _)| step));
        self.lost += lost;
        let step = from.map(|(step, _)| step);
        let text = match from {
            Some((_, id)) => {
                format!("attempt {attempt} restores checkpoint {}: {lost} steps lost", id.short())
            }
            None if attempt == 1 => "attempt 1 starts from nothing".into(),
            None => format!("attempt {attempt} starts from nothing: {lost} steps lost"),
        };
        let body = json!({"event": "started", "attempt": attempt, "ranks": ranks, "lost_steps": lost,
            "checkpoint": from.map(|(_, id)| id)});
        self.training.show.event(step.or(Some(0)), text, body);
    }

    fn told(&mut self, rank: u32, message: Message) {
        match message {
            Message::Paused { step, object } => {
                let place = format!("inside its save of step {step}, before it puts {object}");
                self.kill(rank, &place, json!({"save": step, "before": object}));
            }
            Message::Saved { .. } => self.saved += 1,
            Message::SaveFailed { step, error } => {
                let text = format!("rank {rank}: the save of step {step} failed: {error}");
                let body = json!({"event": "save_failed", "rank": rank, "error": error});
                self.training.show.event(Some(step), text, body);
            }
            Message::Done(report) => self.report = Some(report),
        }
    }

    fn kill(&mut self, rank: u32, place: &str, machine: Value) {
        if self.next.take().is_none() {
            return;
        }
        self.control.kill(rank);
        self.killed = Some((rank, Instant::now()));
        let body = json!({"event": "kill", "rank": rank, "where": machine});
        self.training.show.event(self.step, format!("kill -9 rank {rank}, {place}"), body);
    }

    fn ended(&mut self, rank: u32, cause: Cause) {
        if let Some((killed, at)) = self.killed
            && killed == rank
            && cause == Cause::Injected
        {
            self.killed = None;
            let ms = at.elapsed().as_secs_f64() * 1000.0;
            let text = format!("its end is noticed after {ms:.0} ms; the other ranks are ended");
            let body = json!({"event": "detected", "rank": rank, "after_ms": ms});
            self.training.show.event(self.step, text, body);
        }
    }
}
