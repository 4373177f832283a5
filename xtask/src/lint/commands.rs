//! A reader who copies a command from a page must not meet an error.

use std::path::Path;

use anyhow::Result;

use super::Findings;
use crate::{COMMANDS, markdown, repo};

/// What README.md must show.
const README_COMMANDS: [&str; 2] = ["cargo run --release -- demo", "cargo xtask test"];

const CLI_SOURCES: &str = "crates/lastgood-cli/src";

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    let readme = repo::read("README.md")?;
    for command in README_COMMANDS {
        if !markdown::code(&readme).any(|(_, line)| line.contains(command)) {
            findings.error("README.md", 0, format!("it does not show `{command}`"));
        }
    }
    let cli = cli_words()?;
    for path in repo::files("md")? {
        let page = repo::read(&path)?;
        let prose = markdown::prose(&page);
        let quoted = prose.flat_map(|(line, text)| markdown::quoted(text).map(move |q| (line, q)));
        for (line, text) in quoted.chain(markdown::code(&page)) {
            check_command(&path, line, text, &cli, findings);
        }
    }
    Ok(())
}

fn check_command(path: &Path, line: usize, text: &str, cli: &[String], findings: &mut Findings) {
    if let Some(name) = word_after(text, "cargo xtask ")
        && !COMMANDS.iter().any(|command| command.name == name)
    {
        findings.error(path, line, format!("there is no `cargo xtask {name}`"));
    }
    for start in ["cargo run --release -- ", "lastgood "] {
        let Some(name) = word_after(text, start) else { continue };
        if !cli.iter().any(|word| word == name) {
            findings.error(path, line, format!("there is no command `lastgood {name}`"));
        }
    }
}

/// The first word after `start`, if `text` is a command that begins so (after a prompt).
fn word_after<'t>(text: &'t str, start: &str) -> Option<&'t str> {
    let command = text.trim_start().trim_start_matches("$ ").strip_prefix(start)?;
    let name = command.split_whitespace().next()?;
    name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-').then_some(name)
}

/// Every subcommand of the binary, as its variants stand in the sources: each name in camel case that a
/// line begins with, in lower case with dashes.
fn cli_words() -> Result<Vec<String>> {
    let mut words = vec!["help".to_owned(), "--help".into(), "--version".into()];
    for path in repo::files("rs")?.iter().filter(|path| path.starts_with(CLI_SOURCES)) {
        for line in repo::read(path)?.lines() {
            let line = line.trim_start();
            let name: String = line.chars().take_while(char::is_ascii_alphanumeric).collect();
            let variant = name.starts_with(|c: char| c.is_ascii_uppercase())
                && line[name.len()..].trim_start().starts_with(['(', '{', ',']);
            if variant {
                words.push(dashed(&name));
            }
        }
    }
    Ok(words)
}

fn dashed(name: &str) -> String {
    let mut dashed = String::new();
    for (at, c) in name.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            dashed.push('-');
        }
        dashed.push(c.to_ascii_lowercase());
    }
    dashed
}

#[cfg(test)]
mod tests;
