//! Every dependency has a reason, and there are not too many.

use anyhow::Result;

use super::Findings;
use crate::{metadata, repo};

/// The packages of the lock file above which a warning is given.
const PACKAGES_MAX: usize = 350;

/// The crates that may turn every error into a message.
const MAY_USE_ANYHOW: [&str; 2] = ["lastgood-cli", "xtask"];

/// A line of a manifest that names a dependency.
pub(crate) struct Dependency<'a> {
    pub(crate) line: usize,
    pub(crate) name: &'a str,
    /// What the comment on its line says.
    pub(crate) reason: Option<&'a str>,
}

/// The dependencies of a manifest, without those for tests alone.
pub(crate) fn dependencies(manifest: &str) -> Vec<Dependency<'_>> {
    let mut found = Vec::new();
    let mut wanted = false;
    for (line, text) in (1..).zip(manifest.lines()) {
        if let Some(table) = text.trim().strip_prefix('[') {
            let table = table.trim_end_matches(']');
            wanted = table == "dependencies"
                || table == "build-dependencies"
                || (table.starts_with("target.") && table.ends_with(".dependencies"));
            continue;
        }
        let (spec, reason) = match text.split_once('#') {
            Some((spec, reason)) => (spec, Some(reason.trim()).filter(|reason| !reason.is_empty())),
            None => (text, None),
        };
        let Some((key, _)) = spec.split_once('=') else { continue };
        let name = key.trim().split('.').next().unwrap_or_default();
        if wanted && !name.is_empty() {
            found.push(Dependency { line, name, reason });
        }
    }
    found
}

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    for package in metadata::packages()? {
        let path = format!("{}/Cargo.toml", package.folder);
        let manifest = repo::read(&path)?;
        for dependency in dependencies(&manifest) {
            if dependency.reason.is_none() {
                let message = format!("{} has no `# reason` on its line", dependency.name);
                findings.error(&path, dependency.line, message);
            }
        }
        let anyhow = package.dependencies.iter().any(|name| name == "anyhow");
        if anyhow && !MAY_USE_ANYHOW.contains(&package.name.as_str()) {
            findings.error(&path, 0, "a library's errors have kinds: it must not use anyhow");
        }
    }
    let packages = repo::read("Cargo.lock")?.lines().filter(|line| *line == "[[package]]").count();
    if packages > PACKAGES_MAX {
        findings.warning("Cargo.lock", 0, format!("{packages} packages, aim at {PACKAGES_MAX}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
