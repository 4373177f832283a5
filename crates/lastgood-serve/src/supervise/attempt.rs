//! One attempt of a job: from the start of its ranks to the end of the last one.

use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use lastgood::ledger::Attempt;
use lastgood::{Hash, Result};
use rustix::process::Signal;

use super::guard::Guard;
use super::memories::Memories;
use super::places::Places;
use super::process::{Message, RankProcess};
use super::watch::Watch;
use super::{Cause, Control, Event, Failure, Job, Stream};
use crate::rank;

/// How often heartbeats and orders are looked at.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// How long lines of ranks that have ended are waited for. They end by themselves unless a process
/// that left its group holds the output open.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Codes by which parsers of arguments and shells say that a command cannot be run.
const CANNOT_RUN: [i32; 3] = [2, 126, 127];

/// Lines that wait to be printed; more of them make the ranks wait.
const LINES_MAX: usize = 1024;

/// What an attempt starts with.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) attempt: &'a Attempt,
    pub(super) places: &'a Places,
    pub(super) from: Option<(u64, Hash)>,
    pub(super) restarts: u32,
    pub(super) port: u16,
    pub(super) memories: &'a Memories,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum End {
    Finished,
    Stopped,
    Failed {
        failure: Failure,
        /// The ranks that the others would have to go on without.
        lost: Vec<u32>,
    },
}

/// Why the ranks are being ended, and until when they may end by themselves.
#[derive(Debug)]
struct Ending {
    failure: Option<Failure>,
    deadline: Instant,
    killed: bool,
}

struct Running<'a> {
    job: &'a Job,
    control: &'a Control,
    guard: &'a mut Guard,
    on_event: &'a mut dyn FnMut(Event<'_>),
    ranks: Vec<RankProcess>,
    /// Those that were killed, and not by this process.
    killed: Vec<u32>,
    last_words: Vec<Option<String>>,
    watch: Watch,
    ending: Option<Ending>,
}

/// Runs one attempt to its end.
pub(super) fn run(
    job: &Job,
    launch: &Launch<'_>,
    control: &Control,
    guard: &mut Guard,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<End> {
    let (sender, messages) = sync_channel(LINES_MAX);
    let watch = Watch::new(launch.places.ranks(), job.stall_timeout)?;
    let mut ranks = Vec::new();
    for rank in 0..launch.places.ranks() {
        let process = RankProcess::start(command(job, launch, &watch, rank), rank, &sender)?;
        guard.add(process.pid());
        ranks.push(process);
    }
    drop(sender);
    on_event(Event::Started {
        attempt: launch.attempt.number,
        restarts: launch.restarts,
        from: launch.from,
        pids: ranks.iter().map(RankProcess::pid).collect(),
    });
    let last_words = vec![None; ranks.len()];
    let mut running = Running {
        job,
        control,
        guard,
        on_event,
        ranks,
        killed: Vec::new(),
        last_words,
        watch,
        ending: None,
    };
    running.watch_all(&messages)?;
    running.last_lines(&messages);
    Ok(match running.ending {
        None => End::Finished,
        Some(Ending { failure: None, .. }) => End::Stopped,
        Some(Ending { failure: Some(mut failure), .. }) => {
            failure.last_words = running.last_words[failure.rank as usize].take();
            End::Failed { lost: lost(&failure, &running.killed), failure }
        }
    })
}

fn command(job: &Job, launch: &Launch<'_>, watch: &Watch, rank: u32) -> Command {
    let mut words = job.launcher.iter().chain(&job.command);
    let mut command = Command::new(words.next().cloned().unwrap_or_default());
    let number = rank.to_string();
    let size = launch.places.ranks().to_string();
    command
        .args(words)
        .env(rank::RANK, &number)
        .env("LOCAL_RANK", &number)
        .env(rank::WORLD_SIZE, &size)
        .env("LOCAL_WORLD_SIZE", &size)
        .env("GROUP_RANK", "0")
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", launch.port.to_string())
        .env("TORCHELASTIC_RESTART_COUNT", launch.restarts.to_string())
        .env("TORCHELASTIC_MAX_RESTARTS", job.restarts_max.to_string())
        .env("TORCHELASTIC_RUN_ID", job.run.as_str())
        .env(rank::STORE, &job.store)
        .env(rank::RUN, job.run.as_str())
        .env(rank::ATTEMPT, launch.attempt.number.to_string())
        .env(rank::INCARNATION, &launch.attempt.incarnation)
        .env(rank::PLACE, launch.places.of(rank).to_string())
        .env(rank::HEARTBEAT, watch.path(rank))
        .envs(launch.memories.path(launch.places.of(rank)).map(|path| (rank::MEMORY, path)))
        .envs((job.environment.0)(launch.restarts, rank));
    command
}

/// True if nothing that the supervisor or the rank itself does ends it so.
fn is_blow(cause: Cause) -> bool {
    match cause {
        Cause::Injected => true,
        Cause::Signal(signal) => signal != Signal::TERM.as_raw(),
        Cause::Exit(_) | Cause::Stalled(_) => false,
    }
}

/// True if nothing but somebody else's hand ends a rank so, also when it was told to end.
fn is_kill(cause: Cause) -> bool {
    matches!(cause, Cause::Injected) || cause == Cause::Signal(Signal::KILL.as_raw())
}

/// The ranks that are lost: the one that failed first, and those that were killed beside it. After a failure of the
/// command itself there are none.
fn lost(failure: &Failure, killed: &[u32]) -> Vec<u32> {
    match failure.cause {
        Cause::Stalled(_) => Vec::new(),
        Cause::Exit(code) if CANNOT_RUN.contains(&code) => Vec::new(),
        Cause::Exit(_) | Cause::Signal(_) | Cause::Injected => {
            let others = killed.iter().copied().filter(|rank| *rank != failure.rank);
            [failure.rank].into_iter().chain(others).collect()
        }
    }
}

impl Running<'_> {
    /// Watches until every rank has ended.
    fn watch_all(&mut self, messages: &Receiver<Message>) -> Result<()> {
        while self.ranks.iter().any(RankProcess::is_running) {
            match messages.recv_timeout(POLL) {
                Ok(message) => self.hear(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.watch.poll()
                && let Some(step) = self.watch.step()
            {
                (self.on_event)(Event::Step(step));
            }
            for rank in self.control.take_kills() {
                if let Some(process) = self.ranks.get_mut(rank as usize) {
                    process.inject_kill();
                }
            }
            self.look_for_stall();
            self.obey();
        }
        Ok(())
    }

    fn hear(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Line { rank, stream, text } => self.line(rank, stream, &text),
            Message::Ended { rank, clean } => {
                let process = &mut self.ranks[rank as usize];
                if !clean {
                    // Its children have lost their parent's work; those of a rank that is done may
                    // still be at theirs.
                    process.kill();
                }
                self.guard.remove(process.pid());
                let cause = process.reap()?;
                self.watch.saw_end(rank);
                (self.on_event)(Event::Ended { rank, cause });
                if cause != Cause::Exit(0) {
                    self.fail(rank, cause);
                }
            }
        }
        Ok(())
    }

    fn line(&mut self, rank: u32, stream: Stream, text: &[u8]) {
        self.watch.saw_output();
        if stream == Stream::Err && !text.trim_ascii().is_empty() {
            let words = String::from_utf8_lossy(text).trim().chars().take(500).collect();
            self.last_words[rank as usize] = Some(words);
        }
        (self.on_event)(Event::Line { rank, stream, text });
    }

    /// Passes on what ranks printed before they ended.
    fn last_lines(&mut self, messages: &Receiver<Message>) {
        let until = Instant::now() + LAST_LINES;
        while let Ok(message) =
            messages.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            if let Message::Line { rank, stream, text } = message {
                self.line(rank, stream, &text);
            }
        }
    }

    /// The first failure decides; what follows while ranks are being ended is its consequence. But for
    /// one: the others can notice that a rank was killed, and end, before its own end is seen here.
    fn fail(&mut self, rank: u32, cause: Cause) {
        let ranks = self.ranks.len() as u32;
        let failure = Failure { rank, ranks, cause, step: self.watch.step(), last_words: None };
        if is_kill(cause) && !self.ending.as_ref().is_some_and(|ending| ending.killed) {
            self.killed.push(rank);
        }
        if let Some(ending) = &mut self.ending {
            if let Some(first) = &mut ending.failure
                && matches!(first.cause, Cause::Exit(_))
                && is_blow(cause)
                && !ending.killed
            {
                *first = failure;
            }
            return;
        }
        (self.on_event)(Event::Failed(&failure));
        self.end(Some(failure));
    }

    fn end(&mut self, failure: Option<Failure>) {
        self.ranks.iter().for_each(RankProcess::terminate);
        let deadline = Instant::now() + self.job.grace;
        self.ending = Some(Ending { failure, deadline, killed: false });
    }

    fn look_for_stall(&mut self) {
        if self.ending.is_none()
            && let Some((rank, waited)) = self.watch.stalled()
        {
            self.fail(rank, Cause::Stalled(waited));
        }
    }

    /// Does what was ordered from outside, and kills ranks that do not end in time.
    fn obey(&mut self) {
        let stops = self.control.stops();
        if stops > 0 && self.ending.as_ref().is_none_or(|ending| ending.failure.is_some()) {
            (self.on_event)(Event::Stopping);
            self.end(None);
        }
        if let Some(ending) = &mut self.ending
            && !ending.killed
            && (stops > 1 || Instant::now() >= ending.deadline)
        {
            self.ranks.iter().for_each(RankProcess::kill);
            ending.killed = true;
        }
    }
}
