//! Going on after a crash by a replay: the steps that an earlier attempt did after the checkpoint are done again
//! beside what it recorded of them, and only behind the last of them is the run live.
//!
//! What was read from outside is given as it was recorded, so that it counts once, also of the step that the crash
//! interrupted. The first step that differs from its record ends it: nothing is saved from there on, and whoever
//! looks after the run decides. [`resumed`] says what came of it, states included.

mod check;
mod record;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use check::{Resumed, resumed};
use lastgood_format::journal::{Kind, Lane, Value};
use lastgood_format::{Error, ErrorKind, Hash, Result};

use super::compare::{Comparison, Divergence, compare_step};
use super::window::Window;
use crate::journal::StepRecord;
use crate::ledger::Ledger;
use crate::repository::Repository;
use record::Record;

/// How a run goes on from its checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Live: what was done after the checkpoint is done again, and may come to something else.
    #[default]
    Live,
    /// What was done after the checkpoint is done again, and must come to what is recorded of it.
    Replay,
}

impl FromStr for Resume {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "live" => Ok(Self::Live),
            "replay" => Ok(Self::Replay),
            _ => Err(Error::invalid(format!("{text:?} is no way to resume"))
                .with_remedy("it is `live` or `replay`")),
        }
    }
}

impl fmt::Display for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if *self == Self::Live { "live" } else { "replay" })
    }
}

/// What came of a step.
#[derive(Debug)]
pub(crate) enum Came {
    /// It is as it was recorded, or not recorded.
    Alike,
    /// It is the last one that is recorded, and all of them are as they were: what the event says.
    ToItsEnd(Value),
    /// It differs: what the event says, and what whoever did the step is told.
    Apart(Value, Error),
}

/// The process of a run that goes on by a replay.
#[derive(Debug)]
pub(crate) struct Resuming {
    attempt: u64,
    lanes: Vec<Lane>,
    /// The lane of the first logical rank, in which the events of the process stand.
    own: Lane,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The checkpoint that the record begins with.
    from: Option<Hash>,
    /// What is left to do again; `None` once the run is live.
    record: Option<Record>,
    /// What happened since the last step.
    events: Vec<(Kind, Value)>,
    /// The last step, if one was done.
    step: Option<u64>,
    /// Why it goes on no more.
    apart: Option<Error>,
}

impl Resuming {
    /// The process of `attempt` that has these `lanes`, which goes on from the checkpoint `from`.
    pub(crate) fn open(
        (repository, ledger): (&Repository, &Ledger),
        (lanes, own): (&[Lane], Lane),
        attempt: u64,
        from: Option<Hash>,
    ) -> Result<Self> {
        let lanes = lanes.to_vec();
        let this = Self { attempt, lanes, own, state: Mutex::new(State::default()) };
        this.begin(repository, ledger, from)?;
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state is that of the checkpoint `from` now.
    ///
    /// # Errors
    /// `Corrupt` if the journal of an earlier attempt is damaged; `Unavailable`, `Denied`.
    pub(crate) fn begin(
        &self,
        repository: &Repository,
        ledger: &Ledger,
        from: Option<Hash>,
    ) -> Result<()> {
        let finding = Record::find(repository, ledger, (&self.lanes, self.own), from, self.attempt);
        let record = repository.block_on(finding).map_err(|error| {
            error.context("what is to be done again is not read").with_remedy(
                "`lastgood replay --mode audit` says what is damaged; `lastgood run` goes on without it",
            )
        })?;
        *self.lock() = State { from, record, ..State::default() };
        Ok(())
    }

    /// As [`Resuming::begin`], unless it has begun there and no step is done since.
    pub(crate) fn restored(
        &self,
        repository: &Repository,
        ledger: &Ledger,
        checkpoint: Hash,
    ) -> Result<()> {
        let state = self.lock();
        let has_begun = state.from == Some(checkpoint) && state.step.is_none();
        drop(state);
        if has_begun { Ok(()) } else { self.begin(repository, ledger, Some(checkpoint)) }
    }

    /// The steps that are to be done again: the attempt that recorded them, the step before the first, and the last
    /// one. `None` if there are none, or no more.
    pub(crate) fn todo(&self) -> Option<(u64, u64, u64)> {
        let state = self.lock();
        let record = state.record.as_ref()?;
        let done = state.step.unwrap_or(record.from_step);
        (done < record.to).then_some((record.attempt, record.from_step, record.to))
    }

    /// Nothing is to be done again.
    pub(crate) fn go_live(&self) {
        let mut state = self.lock();
        state.record = None;
        state.events.clear();
    }

    /// Fails if the run has come apart from what was recorded.
    pub(crate) fn check(&self) -> Result<()> {
        self.lock().apart.clone().map_or(Ok(()), Err)
    }

    /// What a program goes on with that has read `value` under `key`.
    pub(crate) fn external(&self, key: &str, value: Value) -> Result<Value> {
        let mut state = self.lock();
        let is_first = state.step.is_none();
        let done = state.step.unwrap_or_default();
        let Some(record) = &mut state.record else { return Ok(value) };
        if !record.window.environments.contains_key(&(record.attempt, self.own)) {
            // A process of other ranks stood here, and read for itself.
            return Ok(value);
        }
        let reads = record.reads.get_mut(key);
        let before = reads.as_ref().and_then(|reads| reads.before.clone()).filter(|_| is_first);
        if let Some(recorded) = reads.and_then(|reads| reads.next.pop_front()).or(before) {
            return Ok(recorded);
        }
        if is_first || done >= record.to {
            return Ok(value);
        }
        let found = Error::new(
            ErrorKind::Diverged,
            format!(
                "{key:?} is read from outside after step {done}, and attempt {} read no such thing there",
                record.attempt
            ),
        );
        let error = found.with_remedy(WAY_OUT);
        state.apart = Some(error.clone());
        Err(error)
    }

    /// Something happened between two steps.
    pub(crate) fn happened(&self, kind: Kind, value: Value) {
        let mut state = self.lock();
        if state.record.is_some() {
            state.events.push((kind, value));
        }
    }

    /// A step is done.
    pub(crate) fn done(&self, told: &StepRecord) -> Came {
        let mut state = self.lock();
        let (step, events) = (told.step(), std::mem::take(&mut state.events));
        let before = state.step.replace(step);
        let Some(record) = state.record.as_ref().filter(|_| state.apart.is_none()) else {
            return Came::Alike;
        };
        let begin = before.unwrap_or(record.from_step);
        if begin >= record.to {
            state.record = None;
            return Came::Alike;
        }
        let found = self.compare(record, (begin, step), events, told);
        if let Some(first) = found.divergences.first() {
            let (event, error) = apart(record, first);
            state.apart = Some(error.clone());
            return Came::Apart(event, error);
        }
        match step >= record.to {
            true => Came::ToItsEnd(to_its_end(record)),
            false => Came::Alike,
        }
    }

    /// Compares what is recorded of the steps after `begin` up to `step` with what was done.
    fn compare(
        &self,
        record: &Record,
        (begin, step): (u64, u64),
        events: Vec<(Kind, Value)>,
        told: &StepRecord,
    ) -> Comparison {
        let mut here = Window::default();
        here.attempts.insert(step, self.attempt);
        here.environments.insert((self.attempt, self.own), Value::Null);
        here.events.insert((step, self.own), events);
        // Where a lane of the record has ended, nothing is known.
        let recorded = |lane: &&Lane| record.ends.get(lane).is_some_and(|end| step <= *end);
        for lane in self.lanes.iter().filter(recorded) {
            here.steps.insert((step, *lane), told.value(lane.rank().unwrap_or_default()));
        }
        let mut found = Comparison::default();
        let left_out = record.window.steps.range((begin + 1, Lane::CONTROL)..);
        let left_out = left_out.map(|((step, _), _)| *step).take_while(|at| *at < step);
        let steps: BTreeSet<u64> = left_out.chain([step]).collect();
        for at in steps {
            compare_step(&record.window, &here, (at, begin == record.from_step), &mut found);
        }
        found
    }
}

const WAY_OUT: &str =
    "`lastgood replay` and `lastgood bisect` find why; `lastgood run` goes on without the record";

fn apart(record: &Record, first: &Divergence) -> (Value, Error) {
    let Divergence { difference, step, rank, what, expected, actual, .. } = first;
    let attempt = record.attempt;
    let event = Value::map([
        ("attempt", attempt.into()),
        ("at", (*step).into()),
        ("code", difference.code().into()),
        ("rank", rank.map_or(Value::Null, Value::from)),
        ("what", what.as_str().into()),
        ("recorded", expected.as_str().into()),
        ("found", actual.as_str().into()),
    ]);
    let text = first.told("done again");
    let error = Error::new(
        ErrorKind::Diverged,
        format!(
            "the steps that attempt {attempt} did after the checkpoint come to something else: {text}"
        ),
    );
    (event, error.with_remedy(WAY_OUT))
}

fn to_its_end(record: &Record) -> Value {
    let from = record.from.map_or(Value::Null, |id| Value::Bytes(id.as_bytes().to_vec()));
    Value::map([
        ("attempt", record.attempt.into()),
        ("from", from),
        ("from_step", record.from_step.into()),
        ("to", record.to.into()),
    ])
}
