//! A process beside the supervisor that ends the ranks' groups when the supervisor is gone.
//!
//! The kernel kills a rank when its supervisor ends, but not what the rank has started: `sh train.sh`
//! would leave the training behind. The guard learns of each group through a pipe, and that the
//! supervisor is gone by the end of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use lastgood::{Error, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// The supervisor's end of it; nobody if there is no program for it.
#[derive(Debug)]
pub(super) struct Guard(Option<(Child, ChildStdin)>);

impl Guard {
    /// Starts `command`, in a group of its own so that Ctrl-C at the terminal does not end it first.
    pub(super) fn start(command: &[OsString]) -> Result<Self> {
        let Some((program, args)) = command.split_first() else { return Ok(Self(None)) };
        let mut guard = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| Error::unavailable(format!("the guard cannot be started: {error}")))?;
        let pipe = guard.stdin.take();
        Ok(Self(pipe.map(|pipe| (guard, pipe))))
    }

    /// The group of the process `pid` is to end with the supervisor.
    pub(super) fn add(&mut self, pid: u32) {
        self.tell(format_args!("+{pid}"));
    }

    /// The group is on its own again.
    pub(super) fn remove(&mut self, pid: u32) {
        self.tell(format_args!("-{pid}"));
    }

    fn tell(&mut self, what: std::fmt::Arguments<'_>) {
        if let Some((_, pipe)) = &mut self.0 {
            // A guard that somebody has killed guards nothing; the job goes on without it.
            pipe.write_all(format!("{what}\n").as_bytes()).ok();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some((mut guard, pipe)) = self.0.take() {
            drop(pipe);
            guard.wait().ok();
        }
    }
}

/// Reads the groups of ranks from `input` until it ends, then kills those that are left. For the program
/// of [`Job::guard`](super::Job::guard) to call on its standard input.
pub fn guard(input: impl BufRead) {
    let mut groups: BTreeSet<i32> = BTreeSet::new();
    for line in input.lines().map_while(std::result::Result::ok) {
        let group = line.get(1..).and_then(|group| group.parse().ok());
        match (line.as_bytes().first(), group) {
            (Some(b'+'), Some(group)) => {
                groups.insert(group);
            }
            (Some(b'-'), Some(group)) => {
                groups.remove(&group);
            }
            _ => {}
        }
    }
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        // Whoever has ended already is fine.
        kill_process_group(group, Signal::KILL).ok();
    }
}
