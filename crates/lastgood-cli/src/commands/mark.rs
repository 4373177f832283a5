//! `lastgood mark`: gives a checkpoint a standing.

use lastgood::ledger::{Standing, Writer};
use lastgood::restore::{Selector, resolve};
use serde_json::json;

use crate::args::{Mark, RunArgs};
use crate::exit::Exit;
use crate::{output, session};

pub(super) fn run(
    args: &RunArgs,
    at: &Selector,
    standing: Mark,
    reason: &str,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let (repository, mut ledger) = session::ledger(args)?;
    let (id, step) = {
        let checkpoint = resolve(ledger.history(), at)?;
        (checkpoint.id, checkpoint.step)
    };
    let standing = match standing {
        Mark::Good => Standing::Good,
        Mark::Bad => Standing::Bad,
        Mark::Verified => Standing::Verified,
    };
    let writer = Writer { attempt: 0, actor: "lastgood mark".into() };
    repository.block_on(lastgood::mark(&mut ledger, &writer, &id, standing, reason))?;
    if as_json {
        output::json(&json!({"checkpoint": id, "step": step, "standing": standing}))?;
    } else {
        output::line(format!("step {step} ({}) is {standing}: {reason}", id.short()));
    }
    Ok(Exit::Done)
}
