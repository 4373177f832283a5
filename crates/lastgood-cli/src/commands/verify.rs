//! `lastgood verify`: reads back every byte.

use std::collections::BTreeSet;

use lastgood::ledger::{Ledger, Standing, Writer};
use lastgood::restore::{Selector, VerifiedPacks, resolve};
use lastgood::{Error, ErrorKind, Hash, Repository};
use lastgood_format::key;
use serde_json::json;

use crate::args::RunArgs;
use crate::exit::Exit;
use crate::replay::read_record;
use crate::{output, session};

pub(super) fn run(
    args: &RunArgs,
    at: Option<&Selector>,
    mark: bool,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let (repository, mut ledger) = session::ledger(args)?;
    let mut damage: Vec<Error> = Vec::new();
    let ledger_state = match repository.block_on(ledger.audit()) {
        Ok(heads) => format!("{} entries, {heads} heads", ledger.history().entries()),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            damage.push(error);
            "damaged".to_owned()
        }
        Err(error) => return Err(error.into()),
    };
    let chosen: Vec<(Hash, u64)> = match at {
        Some(selector) => {
            let checkpoint = resolve(ledger.history(), selector)?;
            vec![(checkpoint.id, checkpoint.step)]
        }
        None => ledger
            .history()
            .checkpoints()
            .iter()
            .filter(|checkpoint| !checkpoint.expired)
            .map(|checkpoint| (checkpoint.id, checkpoint.step))
            .collect(),
    };
    if !as_json {
        output::line(format!("ledger      {ledger_state}"));
    }
    let known = VerifiedPacks::default();
    for (id, step) in &chosen {
        let bar = output::bar(&format!("step {step}"), 0, as_json);
        let result = repository.verify_next(&ledger, id, &known, &|done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let result = match result {
            Err(error) if error.kind() == ErrorKind::Corrupt => Err(error),
            other => Ok(other?),
        };
        show(id, *step, result.as_ref(), as_json)?;
        if mark {
            record(&repository, &mut ledger, id, result.as_ref())?;
        }
        damage.extend(result.err());
    }
    if at.is_none() {
        damage.extend(journal(&repository, &ledger, as_json)?);
    }
    let unused = match at {
        None if damage.is_empty() => Some(unused(&repository, &ledger)?),
        _ => None,
    };
    finish(&chosen, &damage, unused, as_json)
}

/// Reads every event of the journal, if there are any, and gives what is wrong with them.
fn journal(repository: &Repository, ledger: &Ledger, as_json: bool) -> anyhow::Result<Vec<Error>> {
    let audit = read_record(repository, ledger, as_json)?;
    if as_json {
        output::json(&json!({"journal": {"events": audit.frames, "bytes": audit.bytes,
            "cuts": audit.cuts, "damaged": audit.findings.len(),
            "damage": audit.findings.iter().map(ToString::to_string).collect::<Vec<_>>()}}))?;
    } else if audit.frames > 0 || !audit.findings.is_empty() {
        let state = if audit.findings.is_empty() { "ok" } else { "DAMAGED" };
        output::line(format!(
            "journal     {state}, {} events, {}; {} as their checkpoints name them",
            audit.frames,
            output::size(audit.bytes),
            output::count(audit.cuts as usize, "cut")
        ));
    }
    Ok(audit.findings)
}

fn show(id: &Hash, step: u64, result: Result<&u64, &Error>, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return output::json(&json!({"checkpoint": id, "step": step, "ok": result.is_ok(),
            "bytes": result.ok(), "damage": result.err().map(ToString::to_string)}));
    }
    match result {
        Ok(bytes) => {
            output::line(format!("step {step:<6} {}  ok, {}", id.short(), output::size(*bytes)));
        }
        Err(error) => output::line(format!("step {step:<6} {}  DAMAGED: {error}", id.short())),
    }
    Ok(())
}

fn record(
    repository: &Repository,
    ledger: &mut Ledger,
    id: &Hash,
    result: Result<&u64, &Error>,
) -> anyhow::Result<()> {
    let writer = Writer { attempt: 0, actor: "lastgood verify".into() };
    let (standing, reason) = match result {
        Ok(bytes) => (Standing::Verified, format!("read back {bytes} bytes")),
        Err(error) => (Standing::Bad, error.to_string()),
    };
    let marked = repository.block_on(lastgood::mark(ledger, &writer, id, standing, &reason));
    match marked {
        // It is marked bad, and reading it back does not overrule that.
        Err(error) if error.kind() == ErrorKind::Conflict => {
            output::note(format!("note: {error}"));
            Ok(())
        }
        marked => Ok(marked?),
    }
}

/// Objects of the run that no committed checkpoint and no ledger entry stands on: parts of saves that
/// were not committed. A flipped bit in them changes nothing that is restored.
fn unused(repository: &Repository, ledger: &Ledger) -> anyhow::Result<Vec<String>> {
    let folder = key::run_folder(ledger.run());
    let mut used: BTreeSet<String> = BTreeSet::new();
    for checkpoint in ledger.history().checkpoints().iter().filter(|c| !c.expired) {
        let contents = repository.contents(ledger, &checkpoint.id)?;
        used.insert(key::manifest(ledger.run(), &checkpoint.id));
        used.extend(contents.manifest().indexes.iter().map(|i| format!("{folder}{}", i.object)));
        for index in contents.indexes() {
            used.extend(index.packs.iter().map(|pack| format!("{folder}{}", pack.object)));
        }
    }
    let read = ["ledger/", "journal/"].map(|below| format!("{folder}{below}"));
    let all = repository.block_on(repository.store().list(&folder, None))?;
    Ok(all
        .into_iter()
        .map(|object| object.key)
        .filter(|key| !read.iter().any(|read| key.starts_with(read)) && !used.contains(key))
        .collect())
}

fn finish(
    chosen: &[(Hash, u64)],
    damage: &[Error],
    unused: Option<Vec<String>>,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let exit = if damage.is_empty() { Exit::Done } else { Exit::Damage };
    if as_json {
        output::json(&json!({"checkpoints": chosen.len(), "damaged": damage.len(),
            "damage": damage.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "unused_objects": unused}))?;
        return Ok(exit);
    }
    if let Some(unused) = unused.filter(|unused| !unused.is_empty()) {
        output::line(format!(
            "unused      {} objects of saves that were not committed (first: {})",
            unused.len(),
            unused[0]
        ));
    }
    match damage.len() {
        0 => output::line(format!(
            "verified    {}, no damage",
            output::count(chosen.len(), "checkpoint")
        )),
        n => {
            for error in damage {
                output::note(format!("damage: {error}"));
            }
            output::line(format!(
                "DAMAGE      {n} found in {}",
                output::count(chosen.len(), "checkpoint")
            ));
        }
    }
    Ok(exit)
}
