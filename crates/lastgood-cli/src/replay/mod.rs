//! Running a part of a job again, beside what was recorded of it.
//!
//! | module | what it does |
//! |---|---|
//! | [`span`] | which steps, from which checkpoint |
//! | [`execute`] | the job under the supervisor, told what to do |
//! | [`judge`] | what was recorded beside what came out |
//! | [`element`] | the one element that differs |

pub(crate) mod element;
mod execute;
mod judge;
mod span;

use std::ffi::OsString;

use anyhow::{Result, bail};
pub(crate) use judge::{Judged, divergence_json, environment};
use lastgood::journal::audit::{Audit, audit};
use lastgood::ledger::Ledger;
use lastgood::replay::window::Window;
use lastgood::replay::{Place, Plan};
use lastgood::{Error, Repository};
use lastgood_serve::Control;
pub(crate) use span::{Span, led_to};
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
        let steps = span.from_step + 1..=span.to;
        let recorded =
            Window::read(self.repository, self.ledger, steps.clone(), span.from.as_ref())?;
        check_recorded(&recorded, span)?;
        let run = self.ledger.run().clone();
        let source = Place { store: self.store.to_owned(), run };
        let from = span.from.map(|id| (id, span.from_step));
        let mut plan = Plan::new(source, into.clone(), from, span.to);
        plan.digests = recorded.states.keys().copied().collect();
        plan.save = save;
        let target = crate::session::create_repository(&into.store)?;
        check_vacant(&target, into)?;
        if !execute::execute(&target, self, span, &plan)? {
            return Ok(None);
        }
        let ledger = target.existing(&into.run)?;
        let replayed = Window::read(&target, &ledger, steps, None)?;
        let judged = judge::judge(self, span, (&recorded, &replayed))?;
        Ok(Some(Rerun { target, ledger, recorded, judged, _folder: None }))
    }
}

fn check_recorded(recorded: &Window, span: &Span) -> Result<()> {
    let last = recorded.steps.keys().map(|(step, _)| *step).max();
    if last == Some(span.to) {
        return Ok(());
    }
    let what = match last {
        Some(last) => format!("the journal of these steps ends with step {last}"),
        None => match span.from {
            Some(_) => format!("the journal ends with step {} or before", span.from_step),
            None => "nothing is recorded of them".to_owned(),
        },
    };
    Err(Error::not_found(format!("steps {} to {}: {what}", span.from_step + 1, span.to))
        .with_remedy(
            "`lastgood log --journal --count` says what is recorded; the job must open the run with \
             a journal and call step",
        )
        .into())
}

fn check_vacant(target: &Repository, into: &Place) -> Result<()> {
    if target.ledger(&into.run)?.history().entries() == 0 {
        return Ok(());
    }
    let message = format!("{} holds a run {} already", into.store, into.run);
    bail!(
        Error::new(lastgood::ErrorKind::Conflict, message)
            .with_remedy("name another --branch, or another folder to --keep")
    )
}
