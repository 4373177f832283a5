//! `lastgood import`: what another tool saved becomes a checkpoint.

mod dcp;
mod leaves;
mod part;
mod safetensors;
mod torch;

use std::fmt;
use std::path::Path;

use anyhow::Result;
use indicatif::ProgressBar;
use lastgood::ledger::Ledger;
use lastgood::save::Mode;
use lastgood::state::{Capture, World};
use lastgood::{Error, Repository, Run, RunOptions};
use serde_json::json;

use crate::args::RunArgs;
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::report::{Finding, Findings, Severity, clean};
use crate::doctor::torch::{Kind, kind};
use crate::doctor::{Audit, formats::dcp::METADATA};
use crate::exit::Exit;
use crate::{output, session};

/// Who owns what was imported.
const OWNER: &str = "import";
/// Names of what is left out that are told to a person.
const LEFT_OUT_TOLD: usize = 20;

/// What another tool saved: its tables are read, its tensors are not yet.
trait Package: fmt::Debug + Send + Sync {
    /// The bytes of its tensors.
    fn bytes(&self) -> u64;
    /// Declares everything as one component.
    fn capture<'p>(&'p self, component: &str, capture: &mut Capture<'p>) -> lastgood::Result<()>;
    /// What cannot be taken along, by name and why.
    fn left_out(&self) -> &[String];
}

pub(super) fn run(
    path: &Path,
    args: &RunArgs,
    step: u64,
    component: &str,
    as_json: bool,
) -> Result<Exit> {
    let named = |e: Error| e.with_object(path.display().to_string());
    let bar = output::bar("reading", 0, as_json);
    let package = open(path, &bar).map_err(named)?;
    bar.set_length(package.bytes());
    bar.set_position(0);
    // Everything is checked before a run is touched: an import that cannot succeed fences nobody.
    let mut trial = Capture::new(World::ALONE);
    package.capture(component, &mut trial).map_err(named)?;
    drop(trial);
    let repository = session::create_repository(&args.store.store)?;
    let mut run = Run::open(&repository, &args.run, RunOptions::default())?;
    let handle = run
        .save(step, Mode::Async, |capture| package.capture(component, capture))
        .map_err(named)?;
    bar.finish_and_clear();
    let waiting = output::spinner("writing", as_json);
    let id = handle.wait()?;
    run.close()?;
    waiting.finish_and_clear();
    verify(&repository, &repository.ledger(&args.run)?, &id, as_json)?;
    let left_out = package.left_out();
    if as_json {
        output::json(&json!({"checkpoint": id, "run": args.run, "step": step,
            "bytes": package.bytes(), "left_out": left_out}))?;
        return Ok(Exit::Done);
    }
    output::line(format!(
        "imported {} ({}) as checkpoint {id} at step {step} of run {}, read back and verified",
        path.display(),
        output::size(package.bytes()),
        args.run
    ));
    for name in left_out.iter().take(LEFT_OUT_TOLD) {
        output::line(format!("left out: {}", clean(name)));
    }
    if left_out.len() > LEFT_OUT_TOLD {
        output::line(format!(
            "left out: {} more; --json lists all",
            left_out.len() - LEFT_OUT_TOLD
        ));
    }
    Ok(Exit::Done)
}

/// Reads back every byte that was written.
fn verify(
    repository: &Repository,
    ledger: &Ledger,
    id: &lastgood::Hash,
    quiet: bool,
) -> lastgood::Result<()> {
    let bar = output::bar("verifying", 0, quiet);
    let verified = repository.verify(ledger, id, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    verified.map(drop)
}

/// What is at `path`, by what it is called or begins with.
fn open(path: &Path, bar: &ProgressBar) -> lastgood::Result<Box<dyn Package>> {
    if path.is_dir() {
        return match path.join(METADATA).exists() {
            true => Ok(Box::new(dcp::Dcp::open(path, bar)?)),
            false => Ok(Box::new(safetensors::Shards::open_folder(path, bar)?)),
        };
    }
    let is_named_so = path.extension().is_some_and(|extension| extension == "safetensors");
    let pickled = match Span::open(path) {
        Ok(span) if !is_named_so => matches!(kind(&span), Ok(Kind::Zip | Kind::Legacy)),
        // What is wrong with it is told by who reads it.
        _ => false,
    };
    match pickled {
        true => Ok(Box::new(torch::Torch::open(path, bar)?)),
        false => Ok(Box::new(safetensors::Shards::open_file(path, bar)?)),
    }
}

/// How `lastgood doctor` looks at what is to be imported: no byte is taken from what is damaged.
fn audit(bar: &ProgressBar) -> Audit<'static> {
    Audit { quick: false, allowed: &[], bar: bar.clone() }
}

/// An error if there is damage among the findings.
fn refuse_damage(findings: &Findings) -> lastgood::Result<()> {
    let all = findings.all();
    let damage: Vec<&Finding> = all.iter().filter(|f| f.severity == Severity::Damage).collect();
    let Some(first) = damage.first() else { return Ok(()) };
    let more = match damage.len() {
        1 => String::new(),
        count => format!(", and {} more findings", count - 1),
    };
    let Finding { kind, object, expected, found, .. } = first;
    Err(Error::corrupt(format!("{kind}: {object}: expected {expected}, found {found}{more}"))
        .with_remedy(
            "`lastgood doctor` tells all that is wrong with it, and which older one is whole",
        ))
}

/// A flaw as an error of the library.
fn error_of(flaw: Flaw) -> Error {
    match flaw {
        Flaw::Content(text) => Error::corrupt(text),
        Flaw::Limit(text) => Error::incompatible(text),
        Flaw::Io(text) => Error::unavailable(text),
    }
}
