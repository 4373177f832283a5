//! `lastgood doctor`: which checkpoint of somebody else's can be trusted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::doctor::report::{Checkpoint, Finding, Series, Severity, Verdict, clean};
use crate::doctor::{Audit, examine};
use crate::exit::Exit;
use crate::output;

pub(super) fn run(path: &Path, quick: bool, allowed: &[String], as_json: bool) -> Result<Exit> {
    let audit = Audit { quick, allowed, bar: output::bar("checking", 0, as_json) };
    let examined = examine(&audit, path);
    audit.bar.finish_and_clear();
    let series = examined?;
    match as_json {
        true => print_json(&series)?,
        false => print(path, &series, quick),
    }
    Ok(if series.iter().all(Series::is_clean) { Exit::Done } else { Exit::Damage })
}

fn print_json(series: &[Series]) -> Result<()> {
    let mut counts = [0u64; 3];
    for one in series {
        for checkpoint in &one.checkpoints {
            counts[checkpoint.verdict() as usize] += 1;
            let modified =
                checkpoint.modified.map(|time| humantime::format_rfc3339_seconds(time).to_string());
            output::json(&json!({"checkpoint": text(&checkpoint.path), "folder": text(&one.path),
                "format": checkpoint.format, "step": checkpoint.step, "bytes": checkpoint.bytes,
                "modified": modified, "verdict": checkpoint.verdict(),
                "checked_bytes": checkpoint.coverage.checked,
                "uncheckable_bytes": checkpoint.coverage.uncheckable,
                "findings": checkpoint.findings.all()}))?;
        }
        let last = one.last_trusted();
        output::json(&json!({"folder": text(&one.path), "format": one.format,
            "checkpoints": one.checkpoints.len(), "last_trusted": last.map(|c| text(&c.path)),
            "last_trusted_step": last.and_then(|c| c.step),
            "last_suspect": one.last_suspect().map(|c| text(&c.path)),
            "findings": one.findings.all(), "stock": one.stock}))?;
    }
    let [trusted, suspect, broken] = counts;
    output::json(&json!({"trusted": trusted, "suspect": suspect, "broken": broken,
        "ok": series.iter().all(Series::is_clean)}))
}

/// A path in JSON, which has no bytes that are no text.
fn text(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}

fn print(path: &Path, series: &[Series], quick: bool) {
    for (number, one) in series.iter().enumerate() {
        if number > 0 {
            output::line("");
        }
        output::line(format!("{}  {}", one.format, clean(&one.path.display().to_string())));
        print_table(one);
        print_findings(one);
        print_notes(one);
        print_conclusion(one);
    }
    if quick {
        output::line("");
        output::line("note: --quick: the bytes of tensors were not read");
    }
    if series.len() > 1 {
        output::line("");
        let ok = series.iter().filter(|one| one.is_clean()).count();
        output::line(format!(
            "{}: {ok} of {} folders are all right",
            clean(&path.display().to_string()),
            series.len()
        ));
    }
}

fn name(checkpoint: &Checkpoint) -> String {
    let name = checkpoint.path.file_name().unwrap_or(checkpoint.path.as_os_str());
    clean(&name.to_string_lossy())
}

fn print_table(series: &Series) {
    let row = |checkpoint: &Checkpoint| {
        let coverage = checkpoint.coverage;
        let total = coverage.checked + coverage.uncheckable;
        vec![
            name(checkpoint),
            checkpoint.step.map_or_else(|| "-".to_owned(), |step| step.to_string()),
            output::size(checkpoint.bytes),
            checkpoint.verdict().name().to_owned(),
            match total {
                0 => "-".to_owned(),
                total => format!("{} of {}", output::size(coverage.checked), output::size(total)),
            },
        ]
    };
    let rows: Vec<Vec<String>> = series.checkpoints.iter().map(row).collect();
    output::table(&["CHECKPOINT", "STEP", "SIZE", "VERDICT", "CHECKSUMS"], &rows);
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Doubt => "doubt",
        Severity::Danger => "DANGER",
        Severity::Damage => "DAMAGE",
    }
}

fn print_findings(series: &Series) {
    let of = |checkpoint: &Checkpoint| (name(checkpoint), checkpoint.findings.all());
    let all = series.checkpoints.iter().map(of);
    for (name, findings) in all.chain([("the folder itself".to_owned(), series.findings.all())]) {
        let told: Vec<&Finding> = findings.iter().filter(|f| f.severity > Severity::Note).collect();
        if told.is_empty() {
            continue;
        }
        output::line("");
        output::line(&name);
        for finding in told {
            print_finding(finding);
        }
    }
}

fn print_finding(finding: &Finding) {
    let Finding { severity, kind, object, expected, found, remedy } = finding;
    output::line(format!("  {:<6} {kind}: {object}", word(*severity)));
    if !expected.is_empty() {
        output::line(format!("         expected {expected}"));
    }
    if !found.is_empty() {
        output::line(format!("         found    {found}"));
    }
    if !remedy.is_empty() {
        output::line(format!("         {remedy}"));
    }
}

/// What is the same for many checkpoints is told once.
fn print_notes(series: &Series) {
    let mut notes: BTreeMap<(&str, String), u64> = BTreeMap::new();
    let notes_of =
        |findings: Vec<Finding>| findings.into_iter().filter(|f| f.severity == Severity::Note);
    for checkpoint in &series.checkpoints {
        for note in notes_of(checkpoint.findings.all()) {
            let text = match note.object.as_str() {
                "" => note.found,
                object => format!("{object}: {}", note.found),
            };
            *notes.entry((note.kind, format!("{text}; {}", note.remedy))).or_default() += 1;
        }
    }
    if !notes.is_empty() {
        output::line("");
    }
    for ((kind, text), count) in notes {
        let where_found = if count > 1 { format!(" ({count} checkpoints)") } else { String::new() };
        output::line(format!("note: {kind}: {text}{where_found}"));
    }
}

fn print_conclusion(series: &Series) {
    let step = |c: &Checkpoint| c.step.map_or_else(String::new, |step| format!(" (step {step})"));
    output::line("");
    match (series.last_trusted(), series.last_suspect()) {
        (Some(last), _) => {
            output::line(format!("last that can be trusted: {}{}", name(last), step(last)))
        }
        (None, Some(last)) => output::line(format!(
            "none can be trusted; the newest that may be whole: {}{}",
            name(last),
            step(last)
        )),
        (None, None) => match series.last_dangerous() {
            Some(last) => output::line(format!(
                "none can be trusted; the newest that is whole, but runs code if it is loaded: {}{}",
                name(last),
                step(last)
            )),
            None => output::line("none can be trusted, and none is whole"),
        },
    }
    if let Some(stock) = &series.stock {
        let taken = stock.takes.as_ref().and_then(|path| path.file_name());
        let taken = taken.map_or("nothing".to_owned(), |name| clean(&name.to_string_lossy()));
        output::line(format!("{} would take {taken}: {}", stock.tool, clean(&stock.outcome)));
    }
}

/// The order of the counts of a report.
const _: () = assert!(Verdict::Trusted as usize == 0 && Verdict::Broken as usize == 2);
