//! What cargo knows about the workspace.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process;

/// For each crate of the workspace, the crates of the workspace and the others that it depends on, for
/// any purpose.
pub(crate) struct Package {
    pub(crate) name: String,
    /// The folder's path from the root.
    pub(crate) folder: String,
    pub(crate) dependencies: Vec<String>,
}

/// The crates of the workspace, by name.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let output = process::command(&process::cargo())
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()
        .context("cannot run cargo metadata")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {errors}");
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    parse(&metadata)
}

fn parse(metadata: &Value) -> Result<Vec<Package>> {
    let root = text(&metadata["workspace_root"])?;
    let mut packages = BTreeMap::new();
    for package in list(&metadata["packages"])? {
        let name = text(&package["name"])?;
        let manifest = text(&package["manifest_path"])?;
        let folder = manifest
            .strip_prefix(root)
            .and_then(|path| path.strip_suffix("/Cargo.toml"))
            .with_context(|| format!("{manifest} is not below {root}"))?
            .trim_start_matches('/');
        let dependencies = list(&package["dependencies"])?
            .iter()
            .map(|dependency| Ok(text(&dependency["name"])?.to_owned()))
            .collect::<Result<_>>()?;
        let package = Package { name: name.into(), folder: folder.into(), dependencies };
        packages.insert(name.to_owned(), package);
    }
    Ok(packages.into_values().collect())
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("cargo metadata: expected text")
}

fn list(value: &Value) -> Result<&[Value]> {
    value.as_array().map(Vec::as_slice).context("cargo metadata: expected a list")
}
