//! Runs the command and takes what it says.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use lastgood::Repository;
use lastgood_store::{Env, SystemEnv};
use serde_json::Value;
use tempfile::TempDir;

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
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) fn lastgood(args: &[&str]) -> Ran {
    Ran::from(command(args).output().unwrap())
}

/// As [`lastgood`], on run `r` of the store in `folder`.
pub(crate) fn on(folder: &Path, args: &[&str]) -> Ran {
    Ran::from(command_on(folder, args).output().unwrap())
}

/// The command on run `r` of the store in `folder`.
pub(crate) fn command_on(folder: &Path, args: &[&str]) -> Command {
    let mut command = command(args);
    command.env("LASTGOOD_STORE", folder.join("store")).env("LASTGOOD_RUN", "r");
    command
}

/// A folder of a test's own, and a store that may be somewhere else.
#[derive(Debug)]
pub(crate) struct Place {
    folder: TempDir,
    pub(crate) store: String,
    variables: Vec<(&'static str, String)>,
}

impl Place {
    /// The store is in the folder.
    pub(crate) fn local() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store").display().to_string();
        Self { folder, store, variables: Vec::new() }
    }

    /// The store is the gateway's, in a prefix of its own.
    pub(crate) fn s3() -> Self {
        const WHERE: &str = "LASTGOOD_TEST_S3";
        let Ok(address) = std::env::var(WHERE) else {
            panic!("{WHERE}=endpoint,key,secret,bucket must name a gateway: scripts/ceph-rgw up")
        };
        let [endpoint, key, secret, bucket] = address.split(',').collect::<Vec<_>>()[..] else {
            panic!("{WHERE} is {address:?}, no endpoint,key,secret,bucket")
        };
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().file_name().unwrap().to_str().unwrap().replace('.', "cli-");
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_ACCESS_KEY_ID", key),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_REGION", "us-east-1"),
        ];
        let variables = variables.map(|(name, value)| (name, value.to_owned())).into();
        Self { folder, store: format!("s3://{bucket}/{prefix}"), variables }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The command on run `r` of the store.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.env("LASTGOOD_STORE", &self.store).env("LASTGOOD_RUN", "r");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) fn on(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// The repository, for what a command cannot save.
    pub(crate) fn repository(&self) -> Repository {
        let options = self.variables.iter();
        let options = options.map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        let clock: Arc<dyn Env> = Arc::new(SystemEnv::default());
        let store = lastgood_store::open_url(&self.store, &options.collect(), &clock).unwrap();
        Repository::create(store, clock).unwrap()
    }
}
