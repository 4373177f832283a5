//! Running a part of a job again, beside what was recorded of it.
//!
//! | module | what it does |
//! |---|---|
//! | [`execute`] | the job under the supervisor, told what to do |
//! | [`element`] | the one element that differs |
//! | [`search`] | how far each execution of a bisection goes |

pub(crate) mod element;
pub(crate) mod execute;
pub(crate) mod search;

use std::ffi::OsString;

use anyhow::Result;
use lastgood::Repository;
use lastgood::journal::audit::{Audit, audit};
use lastgood::ledger::Ledger;
use lastgood::replay::compare::Divergence;
use lastgood::replay::judge::{Judged, judge};
use lastgood::replay::window::Window;
use lastgood::replay::{Place, Prepared, Span, prepare};
use lastgood_serve::Control;
use serde_json::json;
use tempfile::TempDir;

use crate::output;

/// The run that is replayed, and the command of its job.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) ledger: &'a Ledger,
    /// The URL of its store.
    pub(crate) store: &'a str,
    pub(crate) command: &'a [OsString],
    pub(crate) control: &'a Control,
}

/// What running it again came to.
#[derive(Debug)]
pub(crate) struct Rerun {
    /// Where the replay recorded.
    pub(crate) target: Repository,
    pub(crate) ledger: Ledger,
    pub(crate) recorded: Window,
    pub(crate) judged: Judged,
    /// Removed with it, if the replay recorded into a folder of its own.
    _folder: Option<TempDir>,
}

/// Reads every event of the journal, and tells what is wrong with them.
pub(crate) fn read_record(repository: &Repository, ledger: &Ledger, quiet: bool) -> Result<Audit> {
    let reader = repository.journal(ledger.run())?;
    let bar = output::spinner("journal", quiet);
    let audited = repository.block_on(audit(ledger, &reader));
    bar.finish_and_clear();
    Ok(audited?)
}

impl Source<'_> {
    /// As [`Source::rerun`], into a folder that goes with the answer.
    pub(crate) fn rerun_aside(&self, span: &Span, save: bool) -> Result<Option<Rerun>> {
        let folder = tempfile::Builder::new().prefix("lastgood-replay.").tempdir()?;
        let store = folder.path().display().to_string();
        let into = Place { store, run: self.ledger.run().clone() };
        let rerun = self.rerun(span, &into, save)?;
        Ok(rerun.map(|rerun| Rerun { _folder: Some(folder), ..rerun }))
    }

    /// Runs `span` again and compares it with what is recorded. The replay records `into` another repository or run,
    /// and saves its last state there if it is to. `None` if it was told to stop.
    pub(crate) fn rerun(&self, span: &Span, into: &Place, save: bool) -> Result<Option<Rerun>> {
        let target = crate::session::create_repository(&into.store)?;
        let source = (self.repository, self.ledger, self.store);
        let Prepared { plan, recorded } = prepare(source, span, (&target, into), save)?;
        if !execute::execute(&target, self, span, &plan)? {
            return Ok(None);
        }
        let ledger = target.existing(&into.run)?;
        let replayed = Window::read(&target, &ledger, span.from_step + 1..=span.to, None)?;
        let judged = judge((self.repository, self.ledger), span, (&recorded, &replayed))?;
        Ok(Some(Rerun { target, ledger, recorded, judged, _folder: None }))
    }
}

/// A divergence as the pages describe it.
pub(crate) fn divergence_json(d: &Divergence) -> serde_json::Value {
    json!({"code": d.difference.code(), "step": d.step, "rank": d.rank, "what": d.what,
        "expected": d.expected, "actual": d.actual,
        "word": d.change.map(|c| c.word), "delta": d.change.map(|c| c.delta.to_string())})
}
