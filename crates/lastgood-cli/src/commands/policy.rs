//! `lastgood policy explain`: how often a run saves, and why.

use lastgood::Repository;
use lastgood::ledger::{History, Ledger};
use lastgood::policy::Explanation;
use lastgood::policy::choice::time;
use lastgood_format::ledger::{Entry, Kind};
use serde_json::json;

use crate::args::RunArgs;
use crate::exit::Exit;
use crate::{output, session};

/// A choice as the ledger has it.
struct Chosen {
    entry: Entry,
    from_step: u64,
    every: u64,
    /// `None` if another version wrote it.
    explanation: Option<Explanation>,
}

pub(super) fn explain(args: &RunArgs, as_json: bool) -> anyhow::Result<Exit> {
    let (repository, ledger) = session::ledger(args)?;
    let history = ledger.history();
    let chosen = newest(&repository, &ledger)?;
    let ranks = history.attempt().map_or(1, |attempt| attempt.world_size);
    let failures = history.failures().rates_at_rest(ranks);
    if as_json {
        let explanation = chosen.as_ref().and_then(|chosen| chosen.explanation.as_ref());
        output::json(&json!({
            "every": chosen.as_ref().map(|chosen| chosen.every),
            "from_step": chosen.as_ref().map(|chosen| chosen.from_step),
            "entry": chosen.as_ref().map(|chosen| chosen.entry.n),
            "at": chosen.as_ref().map(|chosen| chosen.entry.at_text()),
            "attempt": chosen.as_ref().map(|chosen| chosen.entry.attempt),
            "explanation": explanation,
            "formula": explanation.map(Explanation::formula),
            "changes": explanation.map(Explanation::changes),
            "failures": failures,
        }))?;
        return Ok(Exit::Done);
    }
    match &chosen {
        Some(chosen) => show(chosen),
        None => {
            output::line(
                "no interval was chosen: the policy of the run is not auto, or nothing was measured yet",
            );
            output::line(usual(history));
        }
    }
    output::line("failures that the ledger knows of by now:");
    for rate in failures {
        let (class, seen, mean) = (&rate.class, rate.seen, time(rate.mean_s));
        output::line(format!("  {class}: {seen} seen, one expected in {mean}"));
    }
    Ok(Exit::Done)
}

fn newest(repository: &Repository, ledger: &Ledger) -> anyhow::Result<Option<Chosen>> {
    let Some(newest) = ledger.history().orders().newest_interval() else { return Ok(None) };
    let read = repository.block_on(ledger.read_entry(newest.entry))?;
    Ok(read.and_then(|(entry, _)| match &entry.kind {
        Kind::PolicyChosen { from_step, every, why } => {
            let explanation = serde_json::from_value(why.clone()).ok();
            Some(Chosen { from_step: *from_step, every: *every, explanation, entry })
        }
        _ => None,
    }))
}

fn show(chosen: &Chosen) {
    let Chosen { entry, from_step, every, explanation } = chosen;
    let steps = output::count(*every as usize, "step");
    output::line(format!(
        "every {steps} from step {from_step} on, chosen by attempt {} at {} (entry {})",
        entry.attempt,
        entry.at_text(),
        entry.n
    ));
    match explanation {
        Some(explanation) => output::line(explanation.to_string().trim_end()),
        None => output::line("what it was made of was written by another version"),
    }
}

/// How far apart the last checkpoints are.
fn usual(history: &History) -> String {
    let steps: Vec<u64> = history.checkpoints().iter().map(|checkpoint| checkpoint.step).collect();
    match steps[..] {
        [.., before, last] if last > before => {
            format!(
                "the last two checkpoints are {} apart",
                output::count((last - before) as usize, "step")
            )
        }
        _ => "it has no two checkpoints to tell how often it saves".to_owned(),
    }
}
