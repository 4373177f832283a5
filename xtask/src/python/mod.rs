//! `cargo xtask python`: the environment of the Python tests, and everything that is checked in it.

mod bench;
mod environment;
mod stubs;

use std::io::{self, Write};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

pub(crate) use bench::run as bench;
pub(crate) use environment::prepare;

use self::environment::TESTS;
use crate::process;

type Word = (&'static str, fn(&[String]) -> Result<bool>);

/// What each word of the command line does.
const WORDS: &[Word] = &[
    ("test", test),
    ("lint", |_| lint()),
    ("stubs", |_| stubs::write().map(|()| true)),
    ("lock", |_| environment::lock().map(|()| true)),
    ("install", |_| install().map(|()| true)),
];

/// Runs `cargo xtask python WORD`.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    let (word, rest) = args.split_first().map_or(("test", &[][..]), |(word, rest)| (word, rest));
    let Some((_, run)) = WORDS.iter().find(|(name, _)| *name == word) else {
        let names: Vec<&str> = WORDS.iter().map(|(name, _)| *name).collect();
        bail!("there is no {word:?}; there are {}", names.join(", "));
    };
    if word != "lock" {
        prepare()?;
    }
    run(rest)
}

/// Installs the package as the tests build the engine, which shares all below it.
fn install() -> Result<()> {
    TESTS.install("dev")
}

/// Formatting, lints, types, and stubs that say what the module has. All of them at once: most keep one core
/// busy.
fn lint() -> Result<bool> {
    install()?;
    let checks: [&[&str]; 4] = [
        &["-m", "ruff", "check", "python", "examples"],
        &["-m", "ruff", "format", "--check", "python", "examples"],
        &["-m", "mypy"],
        // With the same settings: it would look into every framework without them, which takes a minute.
        &[
            "-m",
            "mypy.stubtest",
            "lastgood._lastgood",
            "--ignore-missing-stub",
            "--mypy-config-file",
            "pyproject.toml",
        ],
    ];
    thread::scope(|scope| {
        let checks = checks.map(|words| scope.spawn(move || python(words).output()));
        let mut well = stubs::check()?;
        for check in checks {
            let output = check.join().unwrap_or_else(|_| Err(io::Error::other("a panic")));
            let output = output.context("cannot run the interpreter of the tests")?;
            // Nothing can be done about a terminal that is gone.
            let _ = io::stdout().write_all(&output.stdout);
            let _ = io::stderr().write_all(&output.stderr);
            well &= output.status.success();
        }
        Ok(well)
    })
}

/// Installs the package as a user would and runs its tests; more words go to pytest.
fn test(args: &[String]) -> Result<bool> {
    install()?;
    let mut tests = python(&["-m", "pytest", "-p", "lastgood_counts", "-n", "2"]);
    // Two workers and their children on a few cores: threads that spin for work take it from each other.
    tests.env("LASTGOOD_INSTALLED", "1").env("OMP_NUM_THREADS", "1").args(args);
    succeeds(&mut tests)
}

/// The interpreter of the environment with `args`.
fn python(args: &[&str]) -> Command {
    let mut command = process::command(&TESTS.python().display().to_string());
    command.args(args).env("PYTHONPATH", "python/plugins").env("HF_HUB_OFFLINE", "1");
    command
}

fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(command.status().with_context(|| format!("cannot run {command:?}"))?.success())
}
