//! `lastgood preflight`: whether a restore would succeed, and compute as before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use lastgood::journal::Lane;
use lastgood::ledger::{Checkpoint, Ledger, Writer};
use lastgood::preflight::objects::{Depth, Objects};
use lastgood::preflight::{Acceptance, Compared, Finding, Report, machine};
use lastgood::replay::{Place, Plan, Span};
use lastgood::restore::{Contents, resolve};
use lastgood::{Error, ErrorKind, Repository};
use serde_json::{Value, json};

use super::supervise;
use crate::args::Preflight;
use crate::exit::Exit;
use crate::replay::Source;
use crate::replay::execute::execute;
use crate::{output, session};

/// What came of one check, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Passed,
    /// Nobody could say.
    Unknown,
    /// A person should know it.
    Noted,
    /// It stood against the restore, and was accepted.
    Accepted,
    /// It stands against the restore.
    Refused,
    /// Data is damaged or missing.
    Damaged,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Noted => "note",
            Self::Accepted => "accepted",
            Self::Refused => "REFUSED",
            Self::Damaged => "DAMAGED",
            Self::Unknown => "unknown",
        }
    }
}

/// One line of the table.
struct Check {
    name: &'static str,
    outcome: Outcome,
    found: String,
}

impl Check {
    fn new(name: &'static str, outcome: Outcome, found: impl Into<String>) -> Self {
        Self { name, outcome, found: found.into() }
    }
}

pub(super) fn run(args: &Preflight, as_json: bool) -> Result<Exit> {
    let (repository, mut ledger) = session::ledger(&args.run)?;
    let checkpoint = resolve(ledger.history(), &args.at.at)?.clone();
    let contents = repository.contents(&ledger, &checkpoint.id)?;
    let ranks = args.ranks.unwrap_or(checkpoint.world_size);
    let depth: Depth = args.data.parse()?;
    let objects = objects(&repository, &contents, depth, as_json)?;
    let Some(mut reports) = reports(args, (&repository, &ledger), &checkpoint, ranks)? else {
        output::note("stopped");
        return Ok(Exit::Failed);
    };
    let accepted = match args.accept.acceptance() {
        Some(acceptance) => accept(&repository, &mut ledger, &acceptance, &mut reports)?,
        None => Vec::new(),
    };
    let mut checks = environment(&reports, args.command.is_empty());
    checks.push(topology(checkpoint.world_size, ranks));
    checks.push(data(objects.as_ref(), depth));
    checks.push(coverage(&contents, &reports));
    checks.push(space(&args.run.store.store, checkpoint.bytes));
    checks.push(memory(&reports, checkpoint.bytes, ranks));
    checks.push(time(objects.as_ref().ok()));
    show(&checkpoint, (&checks, &reports, &accepted), objects.as_ref().ok(), as_json)
}

/// Looks at the data; damage is an answer.
fn objects(
    repository: &Repository,
    contents: &Contents,
    depth: Depth,
    quiet: bool,
) -> Result<std::result::Result<Objects, Error>> {
    let bar = output::bar("data", 0, quiet);
    let found = repository.check_objects(contents, depth, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    match found {
        Err(error) if error.kind() != ErrorKind::Corrupt => Err(error.into()),
        found => Ok(found),
    }
}

/// What the ranks of the job say, or what those of the newest attempt said; `None` if it was told to stop.
fn reports(
    args: &Preflight,
    (repository, ledger): (&Repository, &Ledger),
    checkpoint: &Checkpoint,
    ranks: u32,
) -> Result<Option<Vec<(Lane, Report)>>> {
    let run = ledger.run();
    if args.command.is_empty() {
        let attempt = ledger.history().newest_attempt();
        let mut reports = repository.preflights(run, attempt)?;
        reports.retain(|(_, report)| report.checkpoint == checkpoint.id);
        return Ok(Some(reports));
    }
    let folder = tempfile::Builder::new().prefix("lastgood-preflight.").tempdir()?;
    let store = args.run.store.store.clone();
    let source_place = Place { store: store.clone(), run: run.clone() };
    let into = Place { store: folder.path().display().to_string(), run: run.clone() };
    let target = session::create_repository(&into.store)?;
    let plan = Plan::to_look(source_place, into, (checkpoint.id, checkpoint.step));
    let span = Span {
        from: Some(checkpoint.id),
        from_step: checkpoint.step,
        to: checkpoint.step,
        end: None,
        ranks,
        recorded_ranks: checkpoint.world_size,
    };
    let control = supervise::stop_on_signals()?;
    let source =
        Source { repository, ledger, store: &store, command: &args.command, control: &control };
    if !execute(&target, &source, &span, &plan)? {
        return Ok(None);
    }
    let attempt = target.ledger(run)?.history().newest_attempt();
    let reports = target.preflights(run, attempt)?;
    if reports.is_empty() {
        bail!(Error::not_found("the job ended before it came to a restore").with_remedy(
            "the job must open the run and restore it as it does otherwise; of a program in Rust, with \
             what `Rank::from_env` gives"
        ));
    }
    Ok(Some(reports))
}

/// Writes into the ledger what the reports find and `acceptance` names.
fn accept(
    repository: &Repository,
    ledger: &mut Ledger,
    acceptance: &Acceptance,
    reports: &mut [(Lane, Report)],
) -> Result<Vec<String>> {
    let all: Vec<Finding> = reports.iter().flat_map(|(_, r)| r.findings.iter().cloned()).collect();
    let mut differences = acceptance.of(&all);
    differences.sort();
    differences.dedup();
    let unused = acceptance.unused(&all);
    if let Some(key) = unused.first() {
        let mut there: Vec<&str> =
            all.iter().filter(|f| f.is_refused()).map(|f| f.key.as_str()).collect();
        there.sort_unstable();
        there.dedup();
        let there = match there.len() {
            0 => "nothing that differs stands against the restore".to_owned(),
            _ => format!("what differs: {}", there.join(", ")),
        };
        bail!(
            Error::not_found(format!("there is no difference {key:?} to accept")).with_remedy(
                format!("{there}; give the command of the job after `--` to look anew")
            )
        );
    }
    let accepted = differences.iter().map(|difference| difference.key.clone()).collect();
    let writer = Writer { attempt: 0, actor: "lastgood preflight".into() };
    let reason = acceptance.reason.clone();
    repository.block_on(lastgood::preflight::record(ledger, &writer, differences, reason))?;
    for (_, report) in reports {
        acceptance.note(&mut report.findings);
    }
    Ok(accepted)
}

fn environment(reports: &[(Lane, Report)], is_past: bool) -> Vec<Check> {
    let name = "environment";
    if reports.is_empty() {
        let what = "not compared: give the command of the job after `--`";
        return vec![Check::new(name, Outcome::Unknown, what)];
    }
    let whose = if is_past { "of the newest attempt " } else { "" };
    let compared: BTreeSet<&str> = reports.iter().map(|(_, r)| r.environment.name()).collect();
    let compared = compared.into_iter().collect::<Vec<_>>().join(", ");
    let found = by_finding(reports);
    let unknown = |(_, r): &(Lane, Report)| {
        matches!(r.environment, Compared::NotRecorded | Compared::NotGiven)
    };
    let outcome = if reports.iter().any(unknown) { Outcome::Unknown } else { Outcome::Passed };
    let worst = found.keys().map(|finding| outcome_of(finding)).fold(outcome, Outcome::max);
    let ranks = output::count(reports.len(), "rank");
    let head = Check::new(name, worst, format!("{whose}{compared} ({ranks})"));
    let rows = found.iter().map(|(finding, lanes)| {
        let whom = match lanes.len() == reports.len() {
            true => String::new(),
            false => format!(
                " on rank {}",
                lanes.iter().map(Lane::to_string).collect::<Vec<_>>().join(", ")
            ),
        };
        let why =
            finding.accepted.as_ref().map_or(String::new(), |why| format!("; accepted: {why}"));
        Check::new("", outcome_of(finding), format!("{finding}{whom}{why}"))
    });
    [head].into_iter().chain(rows).collect()
}

fn by_finding(reports: &[(Lane, Report)]) -> BTreeMap<&Finding, Vec<Lane>> {
    let mut found: BTreeMap<&Finding, Vec<Lane>> = BTreeMap::new();
    for (lane, report) in reports {
        for finding in report.findings.iter().filter(|finding| finding.key != "memory") {
            found.entry(finding).or_default().push(*lane);
        }
    }
    found
}

fn outcome_of(finding: &Finding) -> Outcome {
    match (finding.is_refused(), &finding.accepted) {
        (true, _) => Outcome::Refused,
        (false, Some(_)) => Outcome::Accepted,
        (false, None) => Outcome::Noted,
    }
}

fn topology(saved_by: u32, ranks: u32) -> Check {
    let saved = output::count(saved_by as usize, "rank");
    match saved_by == ranks {
        true => Check::new("topology", Outcome::Passed, format!("{saved}, as when it was saved")),
        false => Check::new(
            "topology",
            Outcome::Noted,
            format!(
                "{saved} saved it, {ranks} restore it: equal bytes from here on need sums in the order of \
                 logical ranks"
            ),
        ),
    }
}

fn data(objects: std::result::Result<&Objects, &Error>, depth: Depth) -> Check {
    let objects = match objects {
        Ok(objects) => objects,
        Err(error) => return Check::new("data", Outcome::Damaged, error.to_string()),
    };
    let read = match depth {
        Depth::Size => "none of it was read".to_owned(),
        Depth::Sample => format!("{} of it read and right", output::size(objects.read)),
        Depth::Full => "every byte read and right".to_owned(),
    };
    let packs = output::count(objects.packs as usize, "pack");
    let bytes = output::size(objects.bytes);
    Check::new("data", Outcome::Passed, format!("{packs}, {bytes}, all there; {read}"))
}

fn coverage(contents: &Contents, reports: &[(Lane, Report)]) -> Check {
    let problems: BTreeSet<&str> =
        reports.iter().flat_map(|(_, r)| &r.problems).map(String::as_str).collect();
    if let Some(first) = problems.first() {
        let more = problems.len() - 1;
        let more = if more == 0 { String::new() } else { format!("; and {more} more") };
        return Check::new("coverage", Outcome::Refused, format!("{first}{more}"));
    }
    let tensors = output::count(contents.tensors().len(), "tensor");
    let incomplete = contents.incomplete();
    match incomplete.first() {
        Some((component, name)) => Check::new(
            "coverage",
            Outcome::Noted,
            format!("{} of {tensors} were not saved whole: {component}/{name}", incomplete.len()),
        ),
        None if reports.is_empty() => {
            Check::new("coverage", Outcome::Passed, format!("{tensors}, all of them whole"))
        }
        None => {
            Check::new("coverage", Outcome::Passed, format!("{tensors}, as the job asks for them"))
        }
    }
}

/// Whether the next checkpoint has room.
fn space(store: &str, bytes: u64) -> Check {
    let Some(path) = local_path(store) else {
        return Check::new("space", Outcome::Unknown, "an object store does not say what is left");
    };
    let needed = output::size(bytes);
    match machine::space_available(&path) {
        None => Check::new("space", Outcome::Unknown, "the file system does not say what is left"),
        Some(left) if left < bytes => Check::new(
            "space",
            Outcome::Noted,
            format!("{} left, the next whole checkpoint may take {needed}", output::size(left)),
        ),
        Some(left) => {
            let left = output::size(left);
            Check::new(
                "space",
                Outcome::Passed,
                format!("{left} left, a whole checkpoint takes {needed}"),
            )
        }
    }
}

fn local_path(store: &str) -> Option<PathBuf> {
    let path = store.strip_prefix("file://").unwrap_or(store);
    (!path.contains("://")).then(|| std::path::absolute(Path::new(path)).ok()).flatten()
}

fn memory(reports: &[(Lane, Report)], bytes: u64, ranks: u32) -> Check {
    let short = reports.iter().flat_map(|(_, r)| &r.findings).find(|f| f.key == "memory");
    if let Some(finding) = short {
        return Check::new("memory", outcome_of(finding), finding.to_string());
    }
    // Ranks of one machine take it together.
    let asked: u64 = reports.iter().map(|(_, report)| report.memory_needed).sum();
    let left = reports.iter().filter_map(|(_, r)| r.memory_available).min();
    let left = left.or_else(machine::memory_available);
    let Some(left) = left else {
        return Check::new("memory", Outcome::Unknown, "the system does not say what is left");
    };
    let left_text = output::size(left);
    if asked == 0 {
        let share = output::size(bytes.div_ceil(u64::from(ranks.max(1))));
        return Check::new(
            "memory",
            Outcome::Noted,
            format!("{left_text} left here; a rank holds at least {share} if all hold equal parts"),
        );
    }
    let outcome = if asked > left { Outcome::Noted } else { Outcome::Passed };
    Check::new(
        "memory",
        outcome,
        format!("{} needed by all ranks, {left_text} left", output::size(asked)),
    )
}

fn time(objects: Option<&Objects>) -> Check {
    let estimate = objects.and_then(|objects| Some((objects, objects.estimate(objects.bytes)?)));
    match estimate {
        Some((objects, took)) => Check::new(
            "time",
            Outcome::Passed,
            format!(
                "about {} to read all of it here, as fast as {} were",
                duration(took),
                output::size(objects.read)
            ),
        ),
        None => Check::new(
            "time",
            Outcome::Unknown,
            "nothing was read: --data sample says how fast it is",
        ),
    }
}

fn duration(time: Duration) -> String {
    let rounded = match time.as_secs() {
        0 => Duration::from_millis(time.as_millis().max(1) as u64),
        seconds => Duration::from_secs(seconds),
    };
    humantime::format_duration(rounded).to_string()
}

fn show(
    checkpoint: &Checkpoint,
    (checks, reports, accepted): (&[Check], &[(Lane, Report)], &[String]),
    objects: Option<&Objects>,
    as_json: bool,
) -> Result<Exit> {
    let any = |outcome| checks.iter().any(|check| check.outcome == outcome);
    let (exit, verdict) = if any(Outcome::Damaged) {
        (Exit::Damage, "damaged")
    } else if any(Outcome::Refused) {
        (Exit::Refused, "refused")
    } else if any(Outcome::Accepted) {
        (Exit::Done, "accepted")
    } else {
        (Exit::Done, "passed")
    };
    if as_json {
        let rows = checks.iter().filter(|check| !check.name.is_empty());
        let rows = rows.map(|check| {
            json!({"check": check.name, "found": check.found,
            "outcome": check.outcome.name().to_lowercase()})
        });
        let ranks = reports.iter().map(|(lane, report)| rank_json(*lane, report));
        output::json(
            &json!({"checkpoint": checkpoint.id, "step": checkpoint.step, "verdict": verdict,
            "checks": rows.collect::<Vec<_>>(), "ranks": ranks.collect::<Vec<_>>(),
            "accepted": accepted, "packs": objects.map(|o| o.packs), "bytes": objects.map(|o| o.bytes),
            "read": objects.map(|o| o.read),
            "seconds_to_read": objects.and_then(|o| o.estimate(o.bytes)).map(|t| t.as_secs_f64())}),
        )?;
        return Ok(exit);
    }
    output::line(format_args!("checkpoint {} of step {}", checkpoint.id.short(), checkpoint.step));
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|check| vec![check.name.into(), check.outcome.name().into(), check.found.clone()])
        .collect();
    output::table(&["CHECK", "RESULT", "FOUND"], &rows);
    for key in accepted {
        output::line(format_args!("recorded in the ledger: {key} is accepted"));
    }
    output::line(verdict);
    Ok(exit)
}

fn rank_json(lane: Lane, report: &Report) -> Value {
    let findings = report.findings.iter().map(|finding| {
        json!({"key": finding.key,
        "effect": finding.effect.name(), "recorded": finding.recorded, "found": finding.found,
        "accepted": finding.accepted})
    });
    json!({"rank": lane.rank(), "environment": report.environment.name(),
        "findings": findings.collect::<Vec<_>>(), "problems": report.problems, "bytes": report.bytes,
        "memory_needed": report.memory_needed, "memory_available": report.memory_available})
}
