//! The supervisor: keeps a job of several rank processes going until it is done.
//!
//! It starts all ranks as one attempt of the run, which fences whatever is left of the attempt before;
//! watches for a rank that ends or makes no progress; then ends the others and starts the next
//! attempt, whose ranks restore the last good checkpoint. It stops when restarts do not help: the same
//! failure at the same step twice, or a budget of restarts without a new checkpoint between them.
//!
//! | part | does |
//! |---|---|
//! | `attempt` | one attempt from its start to its last rank's end |
//! | `process` | one rank process and what it prints |
//! | `guard` | ends what ranks have started when the supervisor is killed |
//! | `watch` | heartbeats, and what counts as a stall |
//! | `budget` | whether another attempt is worth it |
//! | `places` | who is not replaced |
//! | `memories` | what ranks have captured, which outlives them |

mod attempt;
mod budget;
mod guard;
mod memories;
mod places;
mod process;
mod watch;

use std::ffi::OsString;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, thread};

pub use budget::Verdict;
use budget::{Budget, Next};
use guard::Guard;
pub use guard::guard;
use lastgood::attempt::{NewAttempt, tell_incident};
use lastgood::ledger::{Attempt, Ledger, Standing};
use lastgood::policy::failures;
use lastgood::save::Completed;
use lastgood::{Error, Hash, Repository, Result, RunName, restore};
use memories::Memories;
use places::Places;

/// Who writes the supervisor's entries of the ledger.
const ACTOR: &str = "supervisor";

/// A job to keep going.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program of every rank and its arguments.
    pub command: Vec<OsString>,
    /// What is put before the command: a program that ties a rank's life to this process's
    /// ([`tie_to_parent`]) and becomes the command. Default nothing: ranks outlive a supervisor that
    /// is killed.
    pub launcher: Vec<OsString>,
    /// A program that calls [`guard`] on its input, to end what the ranks have started when this process
    /// is killed. Default nothing: only what the launcher ties to this process ends with it.
    pub guard: Vec<OsString>,
    /// The number of ranks.
    pub ranks: u32,
    /// A rank that is lost is not replaced, down to so many ranks: the job goes on with fewer, numbered
    /// anew. `None`: every attempt has all ranks.
    ///
    /// Lost is who was ended by a signal, or ended with a code that is not 0 before the others. After a stall,
    /// and after the codes 2, 126 and 127, which say that the command cannot be run, nobody is.
    pub ranks_min: Option<u32>,
    /// The URL of the store, for the ranks.
    pub store: String,
    /// The run.
    pub run: RunName,
    /// More variables for single ranks.
    pub environment: RankEnvironment,
    /// Each rank captures in memory that this process holds: after a crash it is there, and need not be read from the
    /// store; and a save that was in memory alone is completed.
    pub memory: bool,
    /// How many restarts are made without a new checkpoint between them.
    pub restarts_max: u32,
    /// An attempt without progress for so long has stalled. `None`: never.
    pub stall_timeout: Option<Duration>,
    /// How long ranks may take to end after SIGTERM, before SIGKILL.
    pub grace: Duration,
    /// The port of `MASTER_PORT`; a free one for each attempt if `None`.
    pub master_port: Option<u16>,
}

/// Gives variables by name, from the number of restarts before an attempt and the number of a rank.
pub type Variables = dyn Fn(u32, u32) -> Vec<(String, String)> + Send + Sync;

/// The variables that a rank gets beside those of [`rank`](crate::rank). Default none.
#[derive(Clone)]
pub struct RankEnvironment(pub Arc<Variables>);

impl Default for RankEnvironment {
    fn default() -> Self {
        Self(Arc::new(|_, _| Vec::new()))
    }
}

impl fmt::Debug for RankEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RankEnvironment")
    }
}

/// What is told of a job, while it runs.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// An attempt has started.
    Started {
        /// Its number in the ledger.
        attempt: u64,
        /// The attempts before it in this call.
        restarts: u32,
        /// The checkpoint that its ranks restore: step and id.
        from: Option<(u64, Hash)>,
        /// The processes, by rank.
        pids: Vec<u32>,
    },
    /// A rank printed a line.
    Line {
        /// The rank.
        rank: u32,
        /// Where to.
        stream: Stream,
        /// The line without its end, at most 64 KiB of it.
        text: &'a [u8],
    },
    /// The ranks reached a step.
    Step(
        /// The highest number of finished steps that a rank has told.
        u64,
    ),
    /// A rank has ended.
    Ended {
        /// The rank.
        rank: u32,
        /// How.
        cause: Cause,
    },
    /// The attempt has failed; the other ranks are ended.
    Failed(&'a Failure),
    /// Another attempt follows.
    Restarting {
        /// After this time.
        after: Duration,
        /// How many more there may be without a new checkpoint.
        left: u32,
        /// How many ranks it has.
        ranks: u32,
        /// The ranks that are lost and not replaced.
        gone: Vec<u32>,
    },
    /// A save was in the memory of its ranks alone when they ended; it is a checkpoint now.
    Completed(Completed),
    /// It could not be made one.
    NotCompleted(&'a Error),
    /// The ranks were told to end, because this process was.
    Stopping,
}

/// An output of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output.
    Out,
    /// Its standard error.
    Err,
}

/// How a rank ended, or why it had to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It ended with this code.
    Exit(i32),
    /// This signal ended it.
    Signal(i32),
    /// It was killed through [`Control::kill`].
    Injected,
    /// No rank made progress for so long.
    Stalled(Duration),
}

impl Cause {
    /// The class of [failure](lastgood::policy::failures).
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            Self::Exit(PREEMPTED) => failures::PREEMPTION,
            Self::Exit(_) | Self::Signal(_) | Self::Injected => failures::PROCESS,
            Self::Stalled(_) => failures::STALL,
        }
    }
}

/// The code with which a rank ends after a notice that it will be ended, its last step saved or not: that of
/// `EX_TEMPFAIL`, "try again".
pub const PREEMPTED: i32 = 75;

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The rank that ended first, or made no progress.
    pub rank: u32,
    /// The number of ranks.
    pub ranks: u32,
    /// How.
    pub cause: Cause,
    /// The finished steps that the ranks had told of.
    pub step: Option<u64>,
    /// The last line that the rank wrote to its standard error.
    pub last_words: Option<String>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every rank ended with 0.
    Finished {
        /// The attempts that it took.
        attempts: u32,
    },
    /// It was told to stop, and did.
    Stopped,
    /// Restarts do not help.
    GaveUp(Verdict),
}

/// Steers a supervisor from other threads and from signal handlers.
#[derive(Debug, Default)]
pub struct Control {
    stops: AtomicU32,
    kills: Mutex<Vec<u32>>,
}

impl Control {
    /// Ends the job: the first call passes SIGTERM on, with the grace time; the second one kills.
    pub fn stop(&self) {
        self.stops.fetch_add(1, Ordering::SeqCst);
    }

    /// Kills a rank by SIGKILL, as a test of the recovery. It does not count against the job.
    pub fn kill(&self, rank: u32) {
        self.kills.lock().unwrap_or_else(PoisonError::into_inner).push(rank);
    }

    /// How often it was told to stop.
    #[must_use]
    pub fn stops(&self) -> u32 {
        self.stops.load(Ordering::SeqCst)
    }

    fn take_kills(&self) -> Vec<u32> {
        std::mem::take(&mut self.kills.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes the kernel kill this process when the thread ends that started it, `parent` being its process.
/// For a [`Job::launcher`] to call before it becomes the rank.
///
/// # Errors
/// `Internal` if the kernel refuses, or if the parent has ended already.
pub fn tie_to_parent(parent: u32) -> Result<()> {
    process::tie_to_parent(parent)
}

/// Keeps `job` going until it is done, stopped or given up, and tells `on_event` of it.
///
/// # Errors
/// `Invalid` if the command cannot be started, or if there are no ranks or fewer than are to be kept;
/// `Unavailable`, `Denied`, `Corrupt` from the store.
pub fn supervise(
    repository: &Repository,
    job: &Job,
    control: &Control,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome> {
    let mut places = Places::new(job.ranks, job.ranks_min)?;
    let mut ledger = repository.ledger(&job.run)?;
    let mut budget = Budget::new(job.restarts_max);
    let mut restarts = 0;
    let mut guard = Guard::start(&job.guard)?;
    let memories = Memories::new(job)?;
    loop {
        let attempt = start(repository, &mut ledger, places.ranks())?;
        budget.saw_checkpoint(newest_step(&ledger));
        let from = attempt.from.and_then(|id| Some((ledger.history().checkpoint(&id)?.step, id)));
        let port = port(job)?;
        let launch = attempt::Launch {
            attempt: &attempt,
            places: &places,
            from,
            restarts,
            port,
            memories: &memories,
        };
        let end = attempt::run(job, &launch, control, &mut guard, on_event)?;
        if !matches!(end, attempt::End::Finished) {
            memories.complete(repository, &job.run, on_event);
        }
        let (failure, lost) = match end {
            attempt::End::Finished => return Ok(Outcome::Finished { attempts: restarts + 1 }),
            attempt::End::Stopped => return Ok(Outcome::Stopped),
            attempt::End::Failed { failure, lost } => (failure, lost),
        };
        repository.block_on(ledger.refresh())?;
        let (what, class) = (failure.to_string(), failure.cause.class());
        let (after, left) = match budget.judge(failure, newest_step(&ledger)) {
            Next::Restart { after, left } => (after, left),
            Next::GiveUp(verdict) => {
                repository.block_on(tell_incident(&mut ledger, ACTOR, &what, Some(class)))?;
                return Ok(Outcome::GaveUp(verdict));
            }
        };
        let gone = places.lose(&lost);
        let reason = match gone.is_empty() {
            true => what,
            false => format!("{what}; {}", not_replaced(&gone, places.ranks())),
        };
        repository.block_on(tell_incident(&mut ledger, ACTOR, &reason, Some(class)))?;
        on_event(Event::Restarting { after, left, ranks: places.ranks(), gone });
        let until = Instant::now() + after;
        while Instant::now() < until {
            if control.stops() > 0 {
                return Ok(Outcome::Stopped);
            }
            thread::sleep(attempt::POLL);
        }
        restarts += 1;
    }
}

/// Starts the attempt in the ledger, which fences the ones before it.
fn start(repository: &Repository, ledger: &mut Ledger, ranks: u32) -> Result<Attempt> {
    repository.block_on(ledger.refresh())?;
    let env = repository.env();
    let new = NewAttempt {
        world_size: ranks,
        from: restore::choose(ledger.history()).map(|checkpoint| checkpoint.id),
        incarnation: format!("{:016x}{:016x}", env.random(), env.random()),
    };
    repository.block_on(lastgood::attempt::start(ledger, ACTOR, &new))
}

/// That the ranks `gone` are not replaced, and how many go on.
#[must_use]
pub fn not_replaced(gone: &[u32], ranks: u32) -> String {
    let names = gone.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let (plural, are) = if gone.len() == 1 { ("", "is") } else { ("s", "are") };
    let go = if ranks == 1 { "rank goes" } else { "ranks go" };
    format!("rank{plural} {names} {are} not replaced: {ranks} {go} on")
}

/// The step of the furthest checkpoint that is not bad.
fn newest_step(ledger: &Ledger) -> Option<u64> {
    let usable = |standing| standing != Standing::Bad;
    let checkpoints = ledger.history().checkpoints().iter();
    checkpoints.filter(|c| usable(c.standing) && !c.expired).map(|c| c.step).max()
}

fn port(job: &Job) -> Result<u16> {
    if let Some(port) = job.master_port {
        return Ok(port);
    }
    let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    free.map(|address| address.port())
        .map_err(|error| Error::unavailable(format!("no free port for MASTER_PORT: {error}")))
}
