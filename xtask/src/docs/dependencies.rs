//! The dependencies with their reasons, from the comments in the manifests.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};

use super::Page;
use crate::lint::dependencies::dependencies;
use crate::{metadata, repo};

const PATH: &str = "docs/decisions/2026-11-23-dependencies.md";

/// Above it the page is written by hand, below it by this program.
const MARK: &str = "<!-- From here on made by `cargo xtask docs` -->\n";

/// The page, with the part above the mark as it is.
pub(super) fn page() -> Result<Page> {
    let old = repo::read(PATH)?;
    let (hand, _) = old.split_once(MARK).with_context(|| format!("{PATH} has no line {MARK}"))?;
    let mut text = format!("{hand}{MARK}\n{}", table()?);
    let packages = repo::read("Cargo.lock")?.lines().filter(|line| *line == "[[package]]").count();
    writeln!(text, "\nThe lock file has {packages} packages, those for tests included.")?;
    Ok(Page { path: PATH, text })
}

fn table() -> Result<String> {
    let packages = metadata::packages()?;
    let mut uses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in &packages {
        let manifest = repo::read(format!("{}/Cargo.toml", package.folder))?;
        for dependency in dependencies(&manifest) {
            let own = packages.iter().any(|package| package.name == dependency.name);
            if let Some(reason) = dependency.reason.filter(|_| !own) {
                let reason = format!("`{}`: {reason}", package.name);
                uses.entry(dependency.name.to_owned()).or_default().push(reason);
            }
        }
    }
    let mut table = "| dependency | used by, for |\n|---|---|\n".to_owned();
    for (name, reasons) in uses {
        writeln!(table, "| {name} | {} |", reasons.join("<br>"))?;
    }
    Ok(table)
}
