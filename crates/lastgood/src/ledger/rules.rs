//! The two judgements of the ledger that safety hangs on, in one place.
//!
//! They stand behind a trait so that the simulation can plant a broken judge and show that it
//! catches it; everything else uses [`Strict`].

use std::fmt;

use lastgood_format::ledger::{Entry, Kind};
use lastgood_format::{Error, ErrorKind, Result, RunName};

use super::{Checkpoint, History, Writer};

/// Judges entries before they are written and after they are read.
pub trait Rules: fmt::Debug + Send + Sync + 'static {
    /// Says whether `writer` may append `kind` after `history`.
    ///
    /// # Errors
    /// `Fenced` if a newer attempt exists; `Conflict` if the decision contradicts the history.
    fn admit(&self, history: &History, writer: &Writer, kind: &Kind) -> Result<()> {
        admit_attempt(history, writer, kind)?;
        admit_branch(history, kind)?;
        admit_commit(history, kind)
    }

    /// Reads the stored bytes of entry `n`.
    ///
    /// # Errors
    /// `Corrupt` or `Incompatible` if they are not a whole, sealed entry `n` of `run`.
    fn decode(&self, stored: &[u8], run: &RunName, n: u64) -> Result<Entry> {
        Entry::decode(stored, run, n)
    }
}

/// The rules that hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strict;

impl Rules for Strict {}

/// Refuses a writer whose attempt is not the newest one.
///
/// # Errors
/// `Fenced` naming both attempts; `Conflict` if a new attempt does not take the next number.
pub fn admit_attempt(history: &History, writer: &Writer, kind: &Kind) -> Result<()> {
    let newest = history.newest_attempt();
    if let Kind::AttemptStarted { number, .. } = kind {
        if *number != newest + 1 {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("attempt {number} cannot follow attempt {newest}"),
            ));
        }
        return Ok(());
    }
    if writer.attempt != 0 && writer.attempt != newest {
        return Err(fenced(writer.attempt, newest));
    }
    Ok(())
}

/// The error of a writer whose attempt was superseded.
#[must_use]
pub(crate) fn fenced(attempt: u64, newest: u64) -> Error {
    Error::new(
        ErrorKind::Fenced,
        format!("attempt {attempt} was fenced: attempt {newest} owns the run now"),
    )
    .with_remedy("stop this process; nothing that it writes will be committed")
}

/// Refuses to say of a run that has begun that it begins with the state of another.
///
/// # Errors
/// `Conflict` if the entry would not be the second one.
pub fn admit_branch(history: &History, kind: &Kind) -> Result<()> {
    if !matches!(kind, Kind::BranchCreated { .. }) || history.entries() == 1 {
        return Ok(());
    }
    let (run, entries) = (history.run(), history.entries());
    Err(Error::new(
        ErrorKind::Conflict,
        format!("run {run} has {entries} entries: it does not begin with a state of another run"),
    )
    .with_remedy("give the branch a name that no run has"))
}

/// Refuses a commit of a save that is abandoned or reuses chunks of what is expired, bad or unknown.
///
/// # Errors
/// `Conflict` naming the reason.
pub fn admit_commit(history: &History, kind: &Kind) -> Result<()> {
    let Kind::CheckpointCommitted { step, generation, reuses, .. } = kind else { return Ok(()) };
    let attempt = history.newest_attempt();
    if history.is_abandoned(attempt, *step, *generation) {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("the save of step {step} by attempt {attempt} was abandoned"),
        ));
    }
    for base in reuses {
        if !history.checkpoint(base).is_some_and(Checkpoint::is_reusable) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "the save of step {step} reuses chunks of checkpoint {base}, which expired or was bad"
                ),
            )
            .with_remedy("save again without reuse"));
        }
    }
    Ok(())
}
