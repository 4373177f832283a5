//! `lastgood save`: asks the ranks of a run for a checkpoint.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::bail;
use lastgood::ledger::{Appended, Decision, History, Writer};
use lastgood::{Error, ErrorKind};
use lastgood_format::ledger::{Kind, SaveOrder};
use serde_json::json;

use crate::args::Save;
use crate::exit::Exit;
use crate::{output, session};

/// How often the ledger is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(super) fn run(args: &Save, as_json: bool) -> anyhow::Result<Exit> {
    let (repository, mut ledger) = session::ledger(&args.run)?;
    let attempt = ledger.history().newest_attempt();
    let writer = Writer { attempt: 0, actor: "lastgood save".into() };
    let request =
        Kind::SaveRequested { step: None, order: SaveOrder::Save, reason: args.reason.clone() };
    // One that is not answered yet is as good as another.
    let appended = repository.block_on(ledger.append(&writer, |history| {
        Ok(match history.orders().asked() {
            Some(_) => Decision::Nothing,
            None => Decision::Append(request.clone()),
        })
    }))?;
    if let Appended::Unknown(unknown) = appended {
        return Err(unknown.error.into());
    }
    let asked = ledger.history().orders().asked().unwrap_or(ledger.history().entries());
    let until = Instant::now() + args.wait;
    let spinner = output::spinner("waiting for the checkpoint", as_json);
    let (step, checkpoint) = loop {
        repository.block_on(ledger.refresh())?;
        let history = ledger.history();
        if let Some(found) = answer(history, asked, attempt) {
            break found;
        }
        if history.newest_attempt() != attempt {
            bail!(
                Error::new(ErrorKind::Conflict, format!("attempt {attempt} ended before it saved"))
                    .with_remedy("ask again: the next attempt has begun")
            );
        }
        if Instant::now() >= until {
            bail!(unanswered(history, asked, args.wait));
        }
        sleep(LOOK);
    };
    spinner.finish_and_clear();
    match as_json {
        true => output::json(&json!({"step": step, "checkpoint": checkpoint}))?,
        false => output::line(format!("step {step} is saved: {}", checkpoint.short())),
    }
    Ok(Exit::Done)
}

/// The checkpoint of a step that ranks were asked for after entry `asked`.
fn answer(history: &History, asked: u64, attempt: u64) -> Option<(u64, lastgood::Hash)> {
    let requests = history.orders().requests().iter();
    let steps: Vec<u64> =
        requests.filter(|request| request.entry > asked).map(|request| request.step).collect();
    let mut checkpoints = history.checkpoints().iter().rev();
    let found = checkpoints.find(|saved| saved.attempt == attempt && steps.contains(&saved.step));
    found.map(|saved| (saved.step, saved.id))
}

fn unanswered(history: &History, asked: u64, waited: Duration) -> Error {
    let waited = humantime::format_duration(waited);
    if history.orders().requests().iter().any(|request| request.entry > asked) {
        return Error::unavailable(format!(
            "the ranks save a step, which is no checkpoint after {waited}"
        ))
        .with_remedy("`lastgood log` shows which step; `lastgood ls` whether it came");
    }
    Error::unavailable(format!("no rank has answered within {waited}")).with_remedy(
        "a run answers at the end of a step, if it is running and its policy hears requests (`demand`)",
    )
}
