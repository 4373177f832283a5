//! Which crate may use which.

use anyhow::Result;

use super::Findings;
use crate::{metadata, repo};

/// For each crate, the crates of the workspace that it may depend on, for tests as well.
const MAY_USE: &[(&str, &[&str])] = &[
    ("lastgood-format", &[]),
    ("lastgood-store", &["lastgood-format"]),
    ("lastgood", &["lastgood-format", "lastgood-store"]),
    ("lastgood-serve", &["lastgood-format", "lastgood-store", "lastgood"]),
    ("lastgood-chaos", &["lastgood-format", "lastgood-store", "lastgood"]),
    ("lastgood-python", &["lastgood-format", "lastgood-store", "lastgood", "lastgood-cli"]),
    (
        "lastgood-cli",
        &["lastgood-format", "lastgood-store", "lastgood", "lastgood-serve", "lastgood-chaos"],
    ),
    ("xtask", &[]),
];

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    let packages = metadata::packages()?;
    let architecture = repo::read("ARCHITECTURE.md")?;
    for package in &packages {
        let manifest = format!("{}/Cargo.toml", package.folder);
        let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| *name == package.name) else {
            findings.error(
                &manifest,
                0,
                "an unknown crate: say in xtask/src/lint/crates.rs what it may use",
            );
            continue;
        };
        let own = packages.iter().map(|package| package.name.as_str());
        for used in own.filter(|own| package.dependencies.iter().any(|used| used == own)) {
            if !may_use.contains(&used) {
                findings.error(&manifest, 0, format!("{} must not use {used}", package.name));
            }
        }
        let folder = package.folder.rsplit('/').next().unwrap_or_default();
        if folder != package.name {
            findings.error(&manifest, 0, format!("crate {} stands in {folder}/", package.name));
        }
        if !architecture.contains(&format!("`{}`", package.name)) {
            findings.error("ARCHITECTURE.md", 0, format!("it does not name `{}`", package.name));
        }
    }
    Ok(())
}
