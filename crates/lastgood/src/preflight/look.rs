//! What one process finds when it asks whether a checkpoint can be restored there.

use lastgood_format::Result;

use super::recorded::{self, Recorded};
use super::{
    Acceptance, Compared, Effect, Environment, Finding, Mode, Needs, PreflightOptions, Report,
    environment, lets_go, machine, record, refusal,
};
use crate::ledger::{Ledger, Writer};
use crate::repository::Repository;
use crate::restore::Contents;
use crate::state::World;

/// Who asks: a rank of a job, with what it computes with.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Which rank it is: it is compared with the one of the same number.
    pub world: World,
    /// What it computes with; an empty one is not compared.
    pub environment: &'a Environment,
    /// What it does with what it finds.
    pub options: &'a PreflightOptions,
}

impl Repository {
    /// As [`Run::look`](crate::Run::look), for a process that is no rank of an attempt. `ledger` is that of the run
    /// which has `contents`.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub fn look(
        &self,
        ledger: &Ledger,
        contents: &Contents,
        asker: &Asker<'_>,
        needs: &Needs,
    ) -> Result<Report> {
        let memory_available = machine::memory_available();
        let mut report = Report {
            checkpoint: contents.id(),
            step: contents.manifest().step,
            saved_by: contents.manifest().world_size,
            restored_by: asker.world.size,
            environment: Compared::NotGiven,
            findings: Vec::new(),
            problems: needs.problems.clone(),
            bytes: needs.bytes,
            memory_needed: needs.memory,
            memory_available,
        };
        compare(self, contents, asker, &mut report)?;
        if memory_available.is_some_and(|available| needs.memory > available) {
            report.findings.push(Finding {
                key: "memory".into(),
                effect: Effect::Safety,
                recorded: Some(format!("{} bytes to restore", needs.memory)),
                found: memory_available.map(|bytes| format!("{bytes} bytes left")),
                accepted: None,
            });
        }
        note_accepted(ledger, &asker.options.accept, &mut report);
        Ok(report)
    }

    /// As [`Run::preflight`](crate::Run::preflight), for a process that is no rank of an attempt and goes on from
    /// `contents`: nothing is recorded but what is accepted, in the ledger, and the objects are not asked for.
    ///
    /// # Errors
    /// `Incompatible` if something stands against it that nobody accepted, and [`Mode::Refuse`] is set; `Conflict`;
    /// `Unavailable`, `Denied`.
    pub fn preflight(
        &self,
        ledger: &mut Ledger,
        contents: &Contents,
        asker: &Asker<'_>,
        needs: &Needs,
    ) -> Result<Report> {
        let report = self.look(ledger, contents, asker, needs)?;
        if asker.options.mode == Mode::Off {
            return Ok(report);
        }
        let writer = Writer { attempt: 0, actor: format!("rank {} that reads", asker.world.rank) };
        self.block_on(record_accepted(ledger, &writer, &asker.options.accept, &report))?;
        let refused = refusal(&report, &self.store().location(), ledger.run());
        match refused.filter(|_| asker.options.mode == Mode::Refuse) {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }
}

/// Compares the environment of this process with that of the one that saved.
fn compare(
    source: &Repository,
    contents: &Contents,
    asker: &Asker<'_>,
    report: &mut Report,
) -> Result<()> {
    let here = asker.environment;
    if here.is_empty() || asker.options.mode == Mode::Off {
        return Ok(());
    }
    let recorded = recorded::recorded(source, contents, asker.world.rank, here);
    report.environment = match source.io().block_on(recorded)? {
        Recorded::Alike => Compared::Alike,
        Recorded::Nothing => Compared::NotRecorded,
        Recorded::Other(recorded) => {
            report.findings = environment::differences(&recorded, here);
            Compared::Differs
        }
        Recorded::Lost(why) => {
            report.findings.push(Finding {
                key: "environment".into(),
                effect: Effect::Numerics,
                recorded: Some(format!("another one, and it cannot be read: {why}")),
                found: Some("this one".into()),
                accepted: None,
            });
            Compared::Differs
        }
    };
    Ok(())
}

/// Notes what of the findings is accepted, by the ledger or by what this process was given.
fn note_accepted(ledger: &Ledger, accept: &Acceptance, report: &mut Report) {
    let recorded = ledger.history().accepted();
    for finding in report.findings.iter_mut().filter(|finding| finding.is_refused()) {
        if recorded.iter().any(|accepted| lets_go(accepted, finding)) {
            finding.accepted = Some("as the ledger says".into());
        }
    }
    accept.note(&mut report.findings);
}

/// Tells the ledger what this process was given to accept, and had to.
///
/// # Errors
/// `Fenced`; `Unavailable`, `Denied`.
pub(crate) async fn record_accepted(
    ledger: &mut Ledger,
    writer: &Writer,
    accept: &Acceptance,
    report: &Report,
) -> Result<()> {
    let known = ledger.history().accepted();
    // Two values that the ledger lets go need no second entry; any two values are more than it may say.
    let is_new = |finding: &&Finding| {
        accept.always || !known.iter().any(|accepted| lets_go(accepted, finding))
    };
    let new: Vec<Finding> = report.findings.iter().filter(is_new).cloned().collect();
    let given = accept.of(&new);
    if given.is_empty() {
        return Ok(());
    }
    record(ledger, writer, given, accept.reason.clone()).await
}
