//! The reference of the command line, from `lastgood help`.

use std::env;
use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Page;
use crate::process;

pub(super) const PATH: &str = "docs/reference/cli.md";

/// The page, or nothing if the program has no help.
pub(super) fn page() -> Result<Option<Page>> {
    let build: Vec<&str> = process::BUILD.split(' ').skip(1).chain(["--quiet"]).collect();
    ensure!(process::delegate(&build, &[])?, "{} failed", process::BUILD);
    let overview = help(&[])?;
    if overview.trim().is_empty() {
        return Ok(None);
    }
    let mut text = format!(
        "# Command line\n\nMade by `cargo xtask docs` from `lastgood help`.\n\n```text\n{}\n```\n",
        overview.trim()
    );
    for command in commands(&overview) {
        let help = help(&[command])?;
        write!(text, "\n## lastgood {command}\n\n```text\n{}\n```\n", help.trim())?;
    }
    Ok(Some(Page { path: PATH, text }))
}

fn help(command: &[&str]) -> Result<String> {
    let mut program = process::command(&process::built("lastgood").display().to_string());
    program.arg("help").args(command);
    without_environment(&mut program);
    let output = program.stdin(Stdio::null()).output().context("cannot run lastgood")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "lastgood help {}: {errors}", command.join(" "));
    let help = String::from_utf8(output.stdout).context("the help is no UTF-8")?;
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    Ok(lines.join("\n"))
}

/// Help shows the values of environment variables and is as wide as the terminal: neither belongs into a
/// page.
fn without_environment(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("LASTGOOD_")) {
            command.env_remove(name);
        }
    }
    command.env("COLUMNS", "100").env("NO_COLOR", "1");
}

/// The names below `Commands:`, without `help` itself.
fn commands(overview: &str) -> Vec<&str> {
    overview
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect()
}

#[cfg(test)]
mod tests;
