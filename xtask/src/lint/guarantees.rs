//! GUARANTEES.md promises nothing that no code keeps and nothing attacks.

use std::collections::BTreeSet;

use anyhow::Result;

use super::Findings;
use crate::{markdown, repo};

const GUARANTEES: &str = "docs/GUARANTEES.md";
const ARCHITECTURE: &str = "ARCHITECTURE.md";

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    let invariants = invariants(findings)?;
    let page = repo::read(GUARANTEES)?;
    let mut header = true;
    for (line, text) in markdown::prose(&page) {
        let Some(cells) = markdown::row(text) else { continue };
        if std::mem::take(&mut header) {
            if cells != ["promise", "fault model", "code", "scenario that attacks it"] {
                findings.error(GUARANTEES, line, "the first table is that of the promises");
            }
            continue;
        }
        let [promise, _, code, attack] = cells[..] else {
            findings.error(GUARANTEES, line, "a row has four cells");
            continue;
        };
        for invariant in cited(promise).filter(|cited| !invariants.contains(*cited)) {
            findings.error(
                GUARANTEES,
                line,
                format!("{ARCHITECTURE} has no invariant {invariant}"),
            );
        }
        for (what, cell) in [("code", code), ("attack", attack)] {
            let mut named = paths(cell).peekable();
            if named.peek().is_none() {
                findings.error(GUARANTEES, line, format!("the promise names no {what}"));
            }
            for path in named {
                if let Err(reason) = exists(path) {
                    findings.error(GUARANTEES, line, format!("`{path}`: {reason}"));
                }
            }
        }
    }
    Ok(())
}

/// The invariants that ARCHITECTURE.md defines: its lines that begin with `**I1**` and so on.
fn invariants(findings: &mut Findings) -> Result<BTreeSet<String>> {
    let page = repo::read(ARCHITECTURE)?;
    let mut found = BTreeSet::new();
    for (line, text) in markdown::prose(&page) {
        let text = text.trim_start_matches("- ");
        let Some((name, _)) = text.strip_prefix("**").and_then(|text| text.split_once("**")) else {
            continue;
        };
        if cited(name).next().is_some_and(|cited| cited == name) && !found.insert(name.to_owned()) {
            findings.error(ARCHITECTURE, line, format!("{name} stands twice"));
        }
    }
    Ok(found)
}

/// The words of a text that name invariants.
fn cited(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| {
        word.strip_prefix('I')
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// The files that a cell names between backquotes.
fn paths(cell: &str) -> impl Iterator<Item = &str> {
    markdown::quoted(cell).filter(|quoted| quoted.contains('/') && !quoted.contains(' '))
}

/// Checks `path` or `path::function`.
fn exists(path: &str) -> Result<(), &'static str> {
    let (file, function) = match path.split_once("::") {
        Some((file, function)) => (file, Some(function)),
        None => (path, None),
    };
    if !repo::root().join(file).exists() {
        return Err("there is no such file");
    }
    let Some(function) = function else { return Ok(()) };
    let source = repo::read(file).map_err(|_| "it cannot be read")?;
    let defined =
        source.contains(&format!("fn {function}(")) || source.contains(&format!("fn {function}<"));
    if defined { Ok(()) } else { Err("the file has no such function") }
}

#[cfg(test)]
mod tests;
