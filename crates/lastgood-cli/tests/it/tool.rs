//! Runs the command and takes what it says.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Fails the test unless the command exited with `code`.
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Every line of standard output as JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// The command with nothing in its environment that could name a store.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lastgood"));
    command.args(args).stdin(Stdio::null());
    for name in ["LASTGOOD_STORE", "LASTGOOD_RUN", "RANK", "WORLD_SIZE"] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn lastgood(args: &[&str]) -> Ran {
    Ran::from(command(args).output().unwrap())
}

/// As [`lastgood`], on run `r` of the store in `folder`.
pub(crate) fn on(folder: &Path, args: &[&str]) -> Ran {
    let mut command = command(args);
    command.env("LASTGOOD_STORE", folder.join("store")).env("LASTGOOD_RUN", "r");
    Ran::from(command.output().unwrap())
}
