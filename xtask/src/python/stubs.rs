//! The types of the native module, made from the module itself.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::environment::TESTS;
use crate::process::{self, TOOLS};
use crate::repo;

const STUBS: &str = "python/lastgood/_lastgood.pyi";

/// What the module adds while it is imported, which the generator cannot see.
const ADDED: &str = "crates/lastgood-python/exceptions.pyi";

const HEAD: &str = "# Made by `cargo xtask python stubs`; not edited by hand.\n";

/// Writes the stubs.
pub(super) fn write() -> Result<()> {
    fs::write(repo::root().join(STUBS), generate()?).context("cannot write the stubs")
}

/// True if the stubs are those of the module; says so if not.
pub(super) fn check() -> Result<bool> {
    let well = repo::read(STUBS)? == generate()?;
    if !well {
        eprintln!("{STUBS} is not what the module has: run `cargo xtask python stubs`");
    }
    Ok(well)
}

fn generate() -> Result<String> {
    let out = repo::root().join(TOOLS).join("stubs");
    let maturin = TESTS.python().with_file_name("maturin");
    let mut command = process::command(&maturin.display().to_string());
    command.args(["generate-stubs", "-q", "--profile", "dev", "-o"]).arg(&out);
    let status = command.status().context("cannot run maturin")?;
    ensure!(status.success(), "{command:?} ended with {status}");
    let made = fs::read_to_string(out.join("lastgood/_lastgood.pyi")).context("no stubs")?;
    let open = "\ndef __getattr__(name: str) -> Incomplete: ...\n";
    ensure!(made.contains(open), "the generator says that the stubs are complete: drop {ADDED}");
    let made = made
        .replace(open, "")
        .replace("from _typeshed import Incomplete, ", "from _typeshed import ");
    Ok(format!("{HEAD}{made}\n{}", repo::read(ADDED)?))
}
