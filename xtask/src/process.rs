//! Running other programs.

use std::io::{BufRead, BufReader, Write, stdout};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use anyhow::{Context, Result};

use crate::repo;

/// A command in the project's root, in the environment that a person's shell would give it.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(repo::root());
    // What cargo says about this program must not reach the cargo that it runs: build scripts that look
    // at these variables would run again each time, and everything above them would be built again.
    for (name, _) in env::vars_os() {
        let of_this_program = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if of_this_program {
            command.env_remove(name);
        }
    }
    command
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

/// Runs cargo with `args` and then `more`, on this terminal; false if it fails.
pub(crate) fn delegate(args: &[&str], more: &[String]) -> Result<bool> {
    let status = command(&cargo())
        .args(args)
        .args(more)
        .status()
        .with_context(|| format!("cannot run cargo {}", args.join(" ")))?;
    Ok(status.success())
}

/// Where `program` is on the search path, or in the folders where the system's own tools are.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), repo::root().join(TOOLS).join("bin")])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Builds the programs of the workspace as the tests have them. `cargo build` would leave out features that
/// only tests ask for, and compile our crates once more.
pub(crate) const BUILD: &str =
    "cargo test --no-run --workspace --features lastgood/candle --locked";

/// A program of the workspace, as [`BUILD`] builds it.
pub(crate) fn built(program: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    repo::root().join(target).join("debug").join(program)
}

/// Where the tools are that this program installs, from the root.
pub(crate) const TOOLS: &str = "target/tools";

/// Writes to our own output. A closed terminal must not stop the tests.
pub(crate) fn pass_on(text: &[u8]) {
    let mut out = stdout().lock();
    let _ = out.write_all(text).and_then(|()| out.flush());
}

/// How a command ended whose output was looked at line by line.
pub(crate) enum End {
    Exited(ExitStatus),
    /// It ran past its limit and was killed.
    TimedOut,
}

/// Runs `command` and gives each line of its output to `see`.
pub(crate) fn watch(
    mut command: Command,
    limit: Duration,
    mut see: impl FnMut(&[u8]) + Send + 'static,
) -> Result<End> {
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    // Our copies of the writing end must not keep the pipe open.
    drop(command);
    let (finished, end_of_output) = channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            see(&line);
            line.clear();
        }
        let _ = finished.send(());
    });
    wait(&mut child, &end_of_output, limit)
}

fn wait(child: &mut Child, end_of_output: &Receiver<()>, limit: Duration) -> Result<End> {
    let start = Instant::now();
    loop {
        let ended = end_of_output.recv_timeout(Duration::from_millis(250));
        if ended != Err(RecvTimeoutError::Timeout) {
            return Ok(End::Exited(child.wait()?));
        }
        if let Some(status) = child.try_wait()? {
            // Something that the command started still holds its output; its last lines are in by now.
            let _ = end_of_output.recv_timeout(Duration::from_secs(2));
            return Ok(End::Exited(status));
        }
        if start.elapsed() > limit {
            child.kill().context("cannot end a command that ran past its limit")?;
            child.wait()?;
            return Ok(End::TimedOut);
        }
    }
}

/// The line without colours and its line feed.
pub(crate) fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.trim_end();
    while let Some(start) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..start]);
        let code = &rest[start + 2..];
        let end = code.find(|c: char| c.is_ascii_alphabetic()).map_or(code.len(), |end| end + 1);
        rest = &code[end..];
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests;
