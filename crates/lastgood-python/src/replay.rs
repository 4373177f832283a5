//! Replays within this process: what they are told, and what they come to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use lastgood::journal::Value;
use lastgood::journal::audit::audit;
use lastgood::ledger::Ledger;
use lastgood::replay::compare::Divergence;
use lastgood::replay::judge::{Judged, judge};
use lastgood::replay::resume::{self, Resumed};
use lastgood::replay::window::Window;
use lastgood::replay::{Place, Plan, Prepared, Span, prepare};
use lastgood::restore::Selector;
use lastgood::{Error, Hash, Repository, Result, RunName};
use pyo3::prelude::*;

use crate::errors::Raise;
use crate::event::to_python;
use crate::options::repository;

/// What is replayed, from where to where.
struct Prepares {
    source: Repository,
    ledger: Ledger,
    span: Span,
    target: Repository,
    run: RunName,
    plan: Plan,
    recorded: Window,
}

/// A replay that this process is to do.
#[pyclass(frozen, module = "lastgood._lastgood")]
pub(crate) struct Replay(Mutex<Prepares>);

#[pymethods]
impl Replay {
    /// Prepares a replay of run `run` of the store `url`: of the steps between two checkpoints, or with `seen` of a window
    /// chosen by chance whose end is none of these. It records into run `into_run` of the store `into`, and with `save` saves
    /// the state at the end there.
    #[new]
    #[pyo3(signature = (url, options, run, begin, end, into, into_run, save, seen=None))]
    #[expect(clippy::too_many_arguments, reason = "named by the one caller")]
    fn new(
        py: Python<'_>,
        url: &str,
        options: BTreeMap<String, String>,
        run: &str,
        begin: Option<&str>,
        end: &str,
        into: String,
        into_run: &str,
        save: bool,
        seen: Option<Vec<String>>,
    ) -> PyResult<Self> {
        let name: RunName = run.parse().or_raise()?;
        let place = Place { store: into, run: into_run.parse().or_raise()? };
        let to: Selector = end.parse().or_raise()?;
        let seen = seen.map(|ids| ids.iter().map(|id| id.parse::<Hash>()).collect::<Result<_>>());
        let seen: Option<BTreeSet<Hash>> = seen.transpose().or_raise()?;
        py.detach(|| {
            let source = repository(url, &options, false)?;
            let ledger = source.existing(&name)?;
            let span = match &seen {
                None => Span::find(&source, &ledger, (begin, &to), Some(1))?,
                Some(seen) => {
                    let chance = source.env().random();
                    let found = Span::sample(&source, &ledger, seen, chance)?.ok_or_else(|| {
                        Error::not_found("there is no window of the run that was not seen")
                            .with_remedy("wait for the next checkpoint")
                    })?;
                    Span { ranks: 1, ..found }
                }
            };
            let target = repository(&place.store, &options, true)?;
            let from = (&source, &ledger, url);
            let Prepared { plan, recorded } = prepare(from, &span, (&target, &place), save)?;
            let run = place.run;
            Ok(Self(Mutex::new(Prepares { source, ledger, span, target, run, plan, recorded })))
        })
        .or_raise()
    }

    /// What the run is told.
    #[getter]
    fn plan(&self) -> PyResult<String> {
        self.with(|this| this.plan.encode()).or_raise()
    }

    /// The step that it begins after, and the last one.
    #[getter]
    fn steps(&self) -> PyResult<(u64, u64)> {
        self.with(|this| Ok((this.span.from_step, this.span.to))).or_raise()
    }

    /// Compares what was recorded with what the replay has recorded.
    fn judge(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let said = py.detach(|| {
            self.with(|this| {
                let there = this.target.existing(&this.run)?;
                let steps = this.span.from_step + 1..=this.span.to;
                let replayed = Window::read(&this.target, &there, steps, None)?;
                let recorded = (&this.recorded, &replayed);
                let judged = judge((&this.source, &this.ledger), &this.span, recorded)?;
                let saved = there.history().checkpoints().last().map(|checkpoint| checkpoint.id);
                Ok(as_value(&this.span, &judged, saved))
            })
        });
        to_python(py, &said.or_raise()?)
    }
}

impl Replay {
    fn with<T>(&self, work: impl FnOnce(&Prepares) -> Result<T>) -> Result<T> {
        work(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn as_value(span: &Span, judged: &Judged, saved: Option<Hash>) -> Value {
    let id = |id: Option<Hash>| id.map_or(Value::Null, |id| id.to_string().into());
    let comparison = &judged.comparison;
    let environment = judged.environment.iter().map(|(key, recorded, found)| {
        Value::Array(vec![key.as_str().into(), recorded.as_str().into(), found.as_str().into()])
    });
    Value::map([
        ("from", id(span.from)),
        ("from_step", span.from_step.into()),
        ("to", span.to.into()),
        ("end", id(span.end)),
        ("equal", judged.is_equal().into()),
        ("diverged", judged.has_diverged().into()),
        ("claimed", judged.claimed.into()),
        ("steps", comparison.steps.into()),
        ("states", Value::Array(comparison.states.iter().map(|step| (*step).into()).collect())),
        ("divergences", Value::Array(comparison.divergences.iter().map(divergence).collect())),
        ("environment", Value::Array(environment.collect())),
        ("digest", id(judged.root)),
        ("saved", id(saved)),
    ])
}

fn divergence(found: &Divergence) -> Value {
    Value::map([
        ("code", found.difference.code().into()),
        ("step", found.step.into()),
        ("rank", found.rank.map_or(Value::Null, Value::from)),
        ("what", found.what.as_str().into()),
        ("expected", found.expected.as_str().into()),
        ("actual", found.actual.as_str().into()),
        ("text", found.to_string().into()),
    ])
}

/// What came of the steps that `attempt` did again: `from_step`, `to`, `states`, `divergences`; None if it did none again.
#[pyfunction]
pub(crate) fn resumed(
    py: Python<'_>,
    url: &str,
    options: BTreeMap<String, String>,
    run: &str,
    attempt: u64,
) -> PyResult<Option<Py<PyAny>>> {
    let name: RunName = run.parse().or_raise()?;
    let found = py.detach(|| {
        let source = repository(url, &options, false)?;
        let ledger = source.existing(&name)?;
        Ok(resume::resumed(&source, &ledger, attempt..=attempt)?.pop())
    });
    found.or_raise()?.map(|found| to_python(py, &resumed_value(&found))).transpose()
}

fn resumed_value(found: &Resumed) -> Value {
    Value::map([
        ("from_step", found.from_step.into()),
        ("to", found.to.into()),
        ("states", Value::Array(found.states.iter().map(|step| (*step).into()).collect())),
        ("divergences", Value::Array(found.divergences.iter().map(divergence).collect())),
    ])
}

/// Reads every event of a run's journal: how many there are, how many cuts of checkpoints they agree with, and what is
/// wrong.
#[pyfunction]
pub(crate) fn audit_journal(
    py: Python<'_>,
    url: &str,
    options: BTreeMap<String, String>,
    run: &str,
) -> PyResult<(u64, u64, Vec<String>)> {
    let name: RunName = run.parse().or_raise()?;
    py.detach(|| {
        let source = repository(url, &options, false)?;
        let ledger = source.existing(&name)?;
        let reader = source.journal(&name)?;
        let found = source.block_on(audit(&ledger, &reader))?;
        let findings = found.findings.iter().map(ToString::to_string).collect();
        Ok((found.frames, found.cuts, findings))
    })
    .or_raise()
}
