//! The S3 gateway that the tests of stores use.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use super::install::{last_lines, log_file};
use crate::process;

/// Installs, starts and stops it.
pub(super) const SCRIPT: &str = "scripts/ceph-rgw";

/// Tells tests where it is: `endpoint,key,secret,bucket`.
pub(super) const VARIABLE: &str = "LASTGOOD_TEST_S3";

const BUCKET: &str = "lastgood";

/// Starts the gateway, says where it is, waits until its input ends, and stops it. The input ends when
/// the tests are done, and however else this program ends: it is the other end of a pipe.
const KEEPER: &str = r#"
set -eu
folder=$(mktemp -d /tmp/lastgood-rgw.XXXXXX)
trap '"$0" down "$folder"; rm -rf "$folder"' EXIT
"$0" up "$folder" </dev/null
read -r _ || true
"#;

/// A running gateway; it stops when this is dropped.
pub(super) struct Gateway {
    /// What [`VARIABLE`] is set to.
    pub(super) address: String,
    keeper: Child,
}

/// How often it is tried: a port that was free may be taken by the time that it is listened on, and on a
/// machine that builds everything at once its parts may wait for each other for too long.
const TRIES: usize = 3;

impl Gateway {
    pub(super) fn start() -> Result<Self> {
        let mut printed = String::new();
        for _ in 0..TRIES {
            let (log, path) = log_file("gateway")?;
            if let Some(gateway) = Self::start_once(log)? {
                return Ok(gateway);
            }
            printed = last_lines(&path);
        }
        bail!(
            "the gateway did not start, tried {TRIES} times; the last time it printed:\n{printed}"
        )
    }

    /// None if it ended without an address; why stands in its log.
    fn start_once(log: File) -> Result<Option<Self>> {
        let mut keeper = process::command("bash")
            .args(["-c", KEEPER, SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for this program; the keeper learns of it by the end of its input.
            .process_group(0)
            .spawn()
            .context("cannot run bash")?;
        let mut line = String::new();
        if let Some(output) = keeper.stdout.take() {
            BufReader::new(output).read_line(&mut line).context("the gateway's address")?;
        }
        let gateway = Self { address: address(&line), keeper };
        Ok((!gateway.address.is_empty()).then_some(gateway))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // Nothing can be done about a gateway that does not stop.
        let _ = self.keeper.wait();
    }
}

/// From `http://127.0.0.1:PORT access secret` and perhaps a bucket to what the tests read.
fn address(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if words.len() == 3 {
        words.push(BUCKET);
    }
    if words.len() == 4 { words.join(",") } else { String::new() }
}
