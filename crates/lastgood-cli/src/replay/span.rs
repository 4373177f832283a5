//! Which steps are run again.

use anyhow::{Result, bail};
use lastgood::ledger::{Checkpoint, Ledger, Standing};
use lastgood::replay::window::history_to;
use lastgood::restore::Selector;
use lastgood::{Error, Hash, Repository};

use crate::session;

/// What is run again.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// The checkpoint that it begins with; `None` for a fresh start.
    pub(crate) from: Option<Hash>,
    /// The step of that checkpoint; 0 without one.
    pub(crate) from_step: u64,
    /// The last step.
    pub(crate) to: u64,
    /// The checkpoint of the last step, if there is one.
    pub(crate) end: Option<Hash>,
    /// The ranks that run it.
    pub(crate) ranks: u32,
    /// The ranks that the run had.
    pub(crate) recorded_ranks: u32,
}

impl Span {
    /// The steps from the checkpoint `from`, `start`, or the last one before the end, to the step or checkpoint `to`.
    pub(crate) fn find(
        repository: &Repository,
        ledger: &Ledger,
        (from, to): (Option<&str>, &Selector),
        ranks: Option<u32>,
    ) -> Result<Self> {
        let history = ledger.history();
        let end = match (session::checkpoint(history, to), to) {
            (Ok(checkpoint), _) => Some(checkpoint),
            (Err(_), Selector::Step(_)) => None,
            (Err(error), _) => return Err(error.into()),
        };
        let last = match (end, to) {
            (Some(checkpoint), _) => checkpoint.step,
            (None, Selector::Step(step)) => *step,
            _ => bail!("no step to end with"),
        };
        let from = match from {
            Some("start") => None,
            Some(text) => Some(session::checkpoint(history, &text.parse::<Selector>()?)?),
            None => before(repository, ledger, last)?,
        };
        if let Some(from) = from
            && from.step >= last
        {
            bail!(
                Error::invalid(format!("step {} is not before step {last}", from.step))
                    .with_remedy("give an earlier --from, or a later --to")
            );
        }
        let newest = history.attempt().map(|attempt| attempt.world_size);
        let recorded_ranks = end.or(from).map(|c| c.world_size).or(newest).unwrap_or(1);
        Ok(Self {
            from: from.map(|checkpoint| checkpoint.id),
            from_step: from.map_or(0, |checkpoint| checkpoint.step),
            to: last,
            end: end.map(|checkpoint| checkpoint.id),
            ranks: ranks.unwrap_or(recorded_ranks),
            recorded_ranks,
        })
    }
}

/// The newest checkpoint before step `to` that led to it.
fn before<'l>(
    repository: &Repository,
    ledger: &'l Ledger,
    to: u64,
) -> Result<Option<&'l Checkpoint>> {
    let led = led_to(repository, ledger, to)?;
    Ok(led.into_iter().rev().find(|checkpoint| checkpoint.step < to))
}

/// The checkpoints that led to step `to`, that of the step itself among them, by step; of one step the newest.
pub(crate) fn led_to<'l>(
    repository: &Repository,
    ledger: &'l Ledger,
    to: u64,
) -> Result<Vec<&'l Checkpoint>> {
    let (_, parts) = repository.block_on(history_to(repository, ledger, to))?;
    let history = ledger.history();
    let led = |checkpoint: &&Checkpoint| {
        let usable = checkpoint.standing != Standing::Bad && !checkpoint.expired;
        usable && checkpoint.step <= to && parts.iter().any(|part| part.holds(history, checkpoint))
    };
    let mut led: Vec<&Checkpoint> = history.checkpoints().iter().filter(led).collect();
    led.sort_by_key(|checkpoint| (checkpoint.step, std::cmp::Reverse(checkpoint.entry)));
    led.dedup_by_key(|checkpoint| checkpoint.step);
    Ok(led)
}

#[cfg(test)]
mod tests;
