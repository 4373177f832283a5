//! A run that follows a policy.

use std::time::Duration;

use lastgood_format::ledger::Kind;
use lastgood_format::{Error, Result};

use super::Run;
use super::watch::Watch;
use crate::attempt;
use crate::ledger::Decision;
use crate::policy::{Explanation, Policy, Want, failures};
use crate::save::SaveHandle;

/// What became of the last save before the end.
#[derive(Clone, Debug)]
pub enum Last {
    /// It is a checkpoint, or there was none to wait for.
    Done,
    /// The grace time was over before.
    Late,
    /// Another rank had passed the step: all end at a later one, and this rank goes on.
    GoesOn,
}

impl Run {
    /// Follows `policy` from here on, instead of that which the run was opened with.
    ///
    /// # Errors
    /// `Invalid` as [`Policy::check`].
    pub fn follow(&mut self, policy: Policy) -> Result<()> {
        policy.check()?;
        // A replay decides nothing by what it measures.
        if self.replaying.is_none() {
            let reads = (&self.io, &self.ledger, &self.writer);
            self.watch = Some(Watch::new(reads, policy.clone(), self.world));
        }
        self.policy = Some(policy);
        Ok(())
    }

    /// Says that `step` has ended, and what the policy wants then. A run without a policy wants nothing; a replay what
    /// no measurement decides, beside what [`Run::due`] says.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`, `Corrupt` from the ledger, at the first step only; `Overloaded` if there is no thread;
    /// `Closed` in a forked child.
    pub fn wants(&mut self, step: u64) -> Result<Want> {
        match &mut self.watch {
            Some(watch) => watch.step(step),
            None if self.policy.as_ref().is_some_and(|policy| policy.is_fixed(step)) => {
                Ok(Want::Save)
            }
            None => Ok(Want::Nothing),
        }
    }

    /// Tells that this process will be ended soon: all ranks save the same step and end, if that fits the grace time of
    /// the policy. False if there is no policy, or no grace time in it.
    pub fn notice(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::notice)
    }

    /// After [`Want::SaveAndEnd`] or [`Want::End`] at `step`: waits until the save is a checkpoint, at most until the
    /// grace time is over, and says in the ledger that the attempt has ended by preemption.
    ///
    /// # Errors
    /// `Invalid` without a policy; what the save failed with, as [`SaveHandle::wait`] says it.
    pub fn wait_last(&mut self, step: u64, save: Option<&SaveHandle>) -> Result<Last> {
        let Some(watch) = &self.watch else {
            return Err(Error::invalid("the run has no policy"));
        };
        let last = save.map_or(Ok(Last::Done), |save| watch.wait_last(step, save));
        let what = match (&last, save) {
            (Ok(Last::GoesOn), _) => return last,
            (Ok(Last::Done), Some(_)) => "saved".to_owned(),
            (Ok(Last::Done), None) => "not saved: there was no time for it".to_owned(),
            (Ok(Last::Late), _) => "not saved: the grace time was over before".to_owned(),
            (Err(error), _) => format!("not saved: {error}"),
        };
        self.tell(failures::PREEMPTION, &format!("after step {step}, which is {what}"));
        last
    }

    /// What the policy makes of what is measured so far; `None` while nothing is, or without a policy.
    #[must_use]
    pub fn explain_policy(&self) -> Option<Explanation> {
        self.watch.as_ref().and_then(Watch::explain)
    }

    /// Says in the ledger that the attempt has failed, or was closed, if nobody has: for those who estimate how often
    /// it fails. Of an attempt whose policy is not `auto` nothing is said.
    pub fn tell_end(&mut self, how: &str, reason: &str) {
        if self.watch.as_ref().is_some_and(Watch::tells) {
            self.tell(how, reason);
        }
    }

    fn tell(&mut self, how: &str, reason: &str) {
        if self.world.rank != 0 || std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let Self { io, ledger, writer, .. } = self;
        let kind = Kind::AttemptEnded { how: how.to_owned(), reason: reason.to_owned() };
        // It is for estimates: an attempt that could not say it has failed, as far as they know.
        let _ = io.block_on(attempt::settle(ledger, writer, |history| {
            Ok(match history.failures().has_ended() {
                true => Decision::Nothing,
                false => Decision::Append(kind.clone()),
            })
        }));
    }

    /// The call of a save began at `began`.
    pub(super) fn note_saved(
        &mut self,
        began: Duration,
        saved: Result<SaveHandle>,
    ) -> Result<SaveHandle> {
        let handle = saved?;
        if let Some(watch) = &mut self.watch {
            watch.saved(began, &handle);
        }
        Ok(handle)
    }
}
