//! The environment in which the package is tested: an interpreter, the frameworks, and the package itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{self, TOOLS};
use crate::repo;

/// The installer: the versions that it installs are pinned, and it is many times faster than pip.
const UV: &str = "uv==0.13.9";

/// Interpreters that torch has wheels for, the most tried first.
const INTERPRETERS: [&str; 5] = ["python3.11", "python3.12", "python3.13", "python3.14", "python3"];

/// An environment: where it is, and what is in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Environment {
    /// Its folder below that of the tools.
    name: &'static str,
    /// The list of exact versions, made by `lock`.
    requirements: &'static str,
}

/// What the tests of the package run in.
pub(super) const TESTS: Environment =
    Environment { name: "python", requirements: "python/requirements/test.txt" };

/// What the package is measured in; its peers are added to it.
pub(super) const BENCHES: Environment =
    Environment { name: "bench", requirements: "python/requirements/bench.txt" };

/// Makes the environment of the tests, unless it is there and was made from these requirements.
pub(crate) fn prepare() -> Result<()> {
    TESTS.prepare()
}

impl Environment {
    pub(super) fn folder(self) -> PathBuf {
        repo::root().join(TOOLS).join(self.name)
    }

    /// Its interpreter.
    pub(super) fn python(self) -> PathBuf {
        self.folder().join("bin/python")
    }

    /// True if the package is installed in it.
    pub(super) fn has_package(self) -> bool {
        self.folder().join("bin/lastgood").exists()
    }

    /// The installer, for this environment.
    pub(super) fn uv(self, args: &[&str]) -> Command {
        let mut command = process::command(&self.folder().join("bin/uv").display().to_string());
        command.args(args).env("VIRTUAL_ENV", self.folder()).env("UV_LINK_MODE", "hardlink");
        command
    }

    /// Makes it, unless it is there and was made from these requirements.
    pub(super) fn prepare(self) -> Result<()> {
        let wanted = format!("{UV}\n{}", repo::read(self.requirements)?);
        let stamp = self.folder().join("lastgood-requirements.txt");
        if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
            return Ok(());
        }
        if self.folder().exists() {
            fs::remove_dir_all(self.folder())
                .context("cannot remove the old environment of Python")?;
        }
        let mut make = process::command(interpreter()?);
        run(make.args(["-m", "venv"]).arg(self.folder()))?;
        let mut pip = process::command(&self.python().display().to_string());
        run(pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check", UV]))?;
        run(&mut self.uv(&["pip", "install", "-q", "--no-deps", "-r", self.requirements]))?;
        fs::write(&stamp, wanted).context("cannot write down what the environment was made from")
    }

    /// Installs the package from the source tree, as `pip install .` does, but with the build tools of this
    /// environment: in one of its own, of another path every time, everything below `PyO3` would be built again.
    pub(super) fn install(self, profile: &str) -> Result<()> {
        let mut install = self.uv(&["pip", "install", "-q", "--no-deps", "--no-build-isolation"]);
        let profile = format!("build-args=--profile={profile}");
        install.args(["--config-settings", &profile]);
        run(install.args(["--reinstall-package", "lastgood", "."]))
    }
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

/// Writes the exact versions of what the tests and the benchmarks need.
pub(super) fn lock() -> Result<()> {
    ensure!(TESTS.folder().exists(), "run `cargo xtask python install` first");
    lock_one("test", &["--override", "python/requirements/overrides.txt"])?;
    let fewer = ["--override", "python/requirements/bench-overrides.txt"];
    lock_one("bench", &fewer)?;
    let beside = ["--constraint", "python/requirements/bench.txt"];
    lock_one("bench-peers", &[fewer, beside].concat())
}

fn lock_one(name: &str, options: &[&str]) -> Result<()> {
    let (from, to) =
        (format!("python/requirements/{name}.in"), format!("python/requirements/{name}.txt"));
    let mut compile = TESTS.uv(&["pip", "compile", &from, "-q", "-o", &to]);
    compile.args(["--python-version", "3.11", "--no-header", "--no-annotate"]);
    run(compile.args(options))
}

pub(super) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
