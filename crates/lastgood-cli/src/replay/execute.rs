//! The job under the supervisor, told to replay.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use lastgood::Repository;
use lastgood::replay::Plan;
use lastgood_serve::supervise::RankEnvironment;
use lastgood_serve::{Event, Job, Outcome, rank, supervise};

use super::{Source, Span};
use crate::commands::supervise as run_command;
use crate::output;

/// A replay may take as long between two steps as the run did; a rank that says nothing for so long hangs.
const STALL: Duration = Duration::from_secs(30 * 60);

/// How many last lines of ranks are kept for the case that the job fails: what it says otherwise, it has said before.
const LINES_MAX: usize = 30;

/// Runs the job as the plan says; false if it was told to stop.
pub(crate) fn execute(
    target: &Repository,
    source: &Source<'_>,
    span: &Span,
    plan: &Plan,
) -> Result<bool> {
    run_command::check_program(
        source.command.first().map_or("".as_ref(), |name| name.as_os_str()),
    )?;
    let plan_text = plan.encode()?;
    let variables = move |_: u32, _: u32| vec![(rank::REPLAY.to_owned(), plan_text.clone())];
    let job = Job {
        command: source.command.to_vec(),
        launcher: run_command::launcher()?,
        guard: run_command::guard()?,
        ranks: span.ranks,
        ranks_min: None,
        store: plan.source.store.clone(),
        run: plan.into.run.clone(),
        environment: RankEnvironment(Arc::new(variables)),
        memory: false,
        restarts_max: 0,
        stall_timeout: Some(STALL),
        grace: Duration::from_secs(30),
        master_port: None,
    };
    let bar = output::step_bar("replay", span.to - span.from_step);
    let mut lines: VecDeque<String> = VecDeque::new();
    let outcome = supervise(target, &job, source.control, &mut |event| match event {
        Event::Step(step) => bar.set_position(step.saturating_sub(span.from_step)),
        Event::Line { rank, text, .. } => {
            lines.push_back(format!("[rank {rank}] {}", String::from_utf8_lossy(text)));
            lines.drain(..lines.len().saturating_sub(LINES_MAX));
        }
        _ => {}
    })?;
    bar.finish_and_clear();
    match outcome {
        Outcome::Finished { .. } => Ok(true),
        Outcome::Stopped => Ok(false),
        Outcome::GaveUp(verdict) => {
            lines.iter().for_each(output::note);
            bail!("the job did not come to its end: {verdict}")
        }
    }
}
