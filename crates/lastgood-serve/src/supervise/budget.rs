//! Whether another attempt is worth it.

use std::fmt;
use std::time::Duration;

use rustix::process::Signal;

use super::{Cause, Failure};

/// Why a job is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same failure at the same step twice: a restart comes to it again.
    SameFailure(Failure),
    /// So many restarts brought no new checkpoint.
    NoProgress {
        /// The restarts.
        restarts: u32,
        /// The last failure.
        last: Failure,
    },
}

impl Verdict {
    /// The failure that decided.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        match self {
            Self::SameFailure(failure) | Self::NoProgress { last: failure, .. } => failure,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameFailure(failure) => {
                write!(f, "the same failure twice: {failure}; a restart would come to it again")?;
            }
            Self::NoProgress { restarts, last } => {
                write!(
                    f,
                    "{restarts} restarts brought no new checkpoint; the last failure: {last}"
                )?;
            }
        }
        if let Some(words) = &self.failure().last_words {
            write!(f, "\n  its last words: {words}")?;
        }
        match self.failure().cause.hint() {
            Some(hint) => write!(f, "\n  look at: {hint}"),
            None => Ok(()),
        }
    }
}

impl Cause {
    /// What a person looks at first, beside what the rank has printed.
    fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::Signal(9) => {
                "the kernel's log (`dmesg`) and the memory: its out-of-memory killer ends processes so"
            }
            Self::Signal(4 | 6 | 7 | 8 | 11) => {
                "native code of the job: it has crashed, which leaves no words (a core file, dmesg)"
            }
            Self::Signal(15) => "who sent it SIGTERM: a scheduler, a container's limit, a person",
            Self::Exit(126 | 127) => "the command after `--`: it runs something that is not there",
            Self::Exit(_) => "what the rank printed before it ended",
            Self::Stalled(_) => {
                "a rank that waits for another, a data loader that hangs, a stall timeout shorter \
                 than a step"
            }
            Self::Signal(_) | Self::Injected => return None,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} {}", self.rank, self.cause)?;
        match self.step {
            Some(step) => write!(f, " after step {step}"),
            None => f.write_str(" before it told of a step"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "ended with code {code}"),
            Self::Signal(signal) => match Signal::from_named_raw(*signal) {
                Some(name) => write!(f, "was ended by signal {signal} ({})", signal_name(name)),
                None => write!(f, "was ended by signal {signal}"),
            },
            Self::Injected => f.write_str("was killed on purpose"),
            Self::Stalled(waited) => write!(f, "made no progress for {} s", waited.as_secs()),
        }
    }
}

/// As `kill -l` spells it.
fn signal_name(signal: Signal) -> String {
    let name = format!("{signal:?}");
    format!("SIG{}", name.trim_matches('"').trim_start_matches("Signal::"))
}

/// What follows a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another attempt.
    Restart { after: Duration, left: u32 },
    /// None.
    GiveUp(Verdict),
}

const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Counts restarts since the last progress.
#[derive(Debug)]
pub(super) struct Budget {
    max: u32,
    used: u32,
    furthest: Option<u64>,
    last: Option<Failure>,
}

impl Budget {
    pub(super) fn new(max: u32) -> Self {
        Self { max, used: 0, furthest: None, last: None }
    }

    /// Tells that there is a checkpoint of `step`. One that goes further than all before is progress.
    pub(super) fn saw_checkpoint(&mut self, step: Option<u64>) {
        if step > self.furthest {
            self.furthest = step;
            self.used = 0;
        }
    }

    /// What follows `failure`, after which the furthest checkpoint is that of `step`.
    pub(super) fn judge(&mut self, failure: Failure, step: Option<u64>) -> Next {
        self.saw_checkpoint(step);
        if failure.cause == Cause::Injected {
            return Next::Restart { after: Duration::ZERO, left: self.max - self.used };
        }
        if self.last.as_ref().is_some_and(|last| is_same(last, &failure)) {
            return Next::GiveUp(Verdict::SameFailure(failure));
        }
        if self.used >= self.max {
            return Next::GiveUp(Verdict::NoProgress { restarts: self.used, last: failure });
        }
        self.used += 1;
        self.last = Some(failure);
        let after = match self.used {
            1 => Duration::ZERO,
            used => PAUSE.saturating_mul(1 << (used - 2).min(16)).min(PAUSE_MAX),
        };
        Next::Restart { after, left: self.max - self.used }
    }
}

/// True if two failures one after the other are the same one. Before the first step nothing tells how
/// far a rank came but its last words: without any, two failures are not known to be the same.
fn is_same(last: &Failure, failure: &Failure) -> bool {
    let cause = match (last.cause, failure.cause) {
        (Cause::Stalled(_), Cause::Stalled(_)) => true,
        (last, cause) => last == cause,
    };
    let place = match (last.step, failure.step) {
        (Some(last), Some(step)) => last == step,
        (None, None) => failure.last_words.is_some() && last.last_words == failure.last_words,
        _ => false,
    };
    // When all ranks end with the same code after the same step, chance decides who is noticed first.
    let all_alike = matches!(failure.cause, Cause::Exit(_)) && failure.step.is_some();
    // Another number of ranks gives the same rank other work, and another place.
    let rank = (last.rank, last.ranks) == (failure.rank, failure.ranks);
    cause && place && (rank || all_alike)
}

#[cfg(test)]
mod tests;
