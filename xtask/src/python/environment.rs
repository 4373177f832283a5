//! The environment in which the package is tested: an interpreter, the frameworks, and the package itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{self, TOOLS};
use crate::repo;

/// Exact versions of everything, made by `lock`.
const REQUIREMENTS: &str = "python/requirements/test.txt";

/// The installer: the versions that it installs are pinned, and it is many times faster than pip.
const UV: &str = "uv==0.13.9";

/// Interpreters that torch has wheels for, the most tried first.
const INTERPRETERS: [&str; 5] = ["python3.11", "python3.12", "python3.13", "python3.14", "python3"];

fn folder() -> PathBuf {
    repo::root().join(TOOLS).join("python")
}

/// The interpreter of the environment.
pub(super) fn python() -> PathBuf {
    folder().join("bin/python")
}

fn uv(args: &[&str]) -> Command {
    let mut command = process::command(&folder().join("bin/uv").display().to_string());
    command.args(args).env("VIRTUAL_ENV", folder()).env("UV_LINK_MODE", "hardlink");
    command
}

/// Makes the environment, unless it is there and was made from these requirements.
pub(crate) fn prepare() -> Result<()> {
    let wanted = format!("{UV}\n{}", repo::read(REQUIREMENTS)?);
    let stamp = folder().join("lastgood-requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    if folder().exists() {
        fs::remove_dir_all(folder()).context("cannot remove the old environment of Python")?;
    }
    let mut make = process::command(interpreter()?);
    run(make.args(["-m", "venv"]).arg(folder()))?;
    let mut pip = process::command(&python().display().to_string());
    run(pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check", UV]))?;
    run(&mut uv(&["pip", "install", "-q", "--no-deps", "-r", REQUIREMENTS]))?;
    fs::write(&stamp, wanted).context("cannot write down what the environment was made from")
}

fn interpreter() -> Result<&'static str> {
    let found = INTERPRETERS.into_iter().find(|name| is_right(name));
    found.context("no Python of 3.11 or later with venv is on the search path; install one")
}

fn is_right(name: &str) -> bool {
    let test = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))";
    let output = process::command(name).args(["-c", test]).output();
    output.is_ok_and(|output| output.status.success())
}

/// Installs the package from the source tree, as `pip install .` does, but with the build tools of this environment: in
/// one of its own, of another path every time, everything below `PyO3` would be built again; and as the tests build the
/// engine, which shares all below it.
pub(super) fn install() -> Result<()> {
    let mut install = uv(&["pip", "install", "-q", "--no-deps", "--no-build-isolation"]);
    let profile = ["--config-settings", "build-args=--profile=dev"];
    run(install.args(profile).args(["--reinstall-package", "lastgood", "."]))
}

/// Writes the exact versions of what the tests need.
pub(super) fn lock() -> Result<()> {
    ensure!(Path::new(&folder()).exists(), "run `cargo xtask python install` first");
    run(&mut uv(&[
        "pip",
        "compile",
        "python/requirements/test.in",
        "--override",
        "python/requirements/overrides.txt",
        "--python-version",
        "3.11",
        "--no-header",
        "--no-annotate",
        "-q",
        "-o",
        REQUIREMENTS,
    ]))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
