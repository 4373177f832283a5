//! `cargo xtask lint`: what the project promises about its own files and neither rustc nor clippy checks.

mod commands;
mod crates;
pub(crate) mod dependencies;
mod errors;
mod guarantees;
mod names;
mod pages;
mod sizes;

use std::path::Path;

use anyhow::{Result, ensure};

/// One rule: its name, what it demands, and the code that looks.
struct Rule {
    name: &'static str,
    demands: &'static str,
    check: fn(&mut Findings) -> Result<()>,
}

const RULES: &[Rule] = &[
    Rule {
        name: "crates",
        demands: "crates use each other in one direction, and ARCHITECTURE.md names each",
        check: crates::check,
    },
    Rule {
        name: "dependencies",
        demands: "every dependency has its reason on its line; anyhow stays in cli and xtask",
        check: dependencies::check,
    },
    Rule {
        name: "sizes",
        demands: "no production file has more than 1,000 lines; tests stand in their own files",
        check: sizes::check,
    },
    Rule {
        name: "names",
        demands: "no file or type is named after nothing; no open task without an owner",
        check: names::check,
    },
    Rule {
        name: "errors",
        demands: "every error code has its page; every `# Errors` names a kind",
        check: errors::check,
    },
    Rule {
        name: "pages",
        demands: "every page has one title, every link leads somewhere, README fits a screen",
        check: pages::check,
    },
    Rule { name: "commands", demands: "the commands in the pages exist", check: commands::check },
    Rule {
        name: "guarantees",
        demands: "every guarantee names code and attacks that exist",
        check: guarantees::check,
    },
];

/// What the rules found.
#[derive(Default)]
pub(crate) struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    /// A broken rule, in a line of a file (0: the file as a whole).
    pub(crate) fn error(&mut self, path: impl AsRef<Path>, line: usize, message: impl AsRef<str>) {
        self.errors.push(place(path.as_ref(), line, message.as_ref()));
    }

    /// What should be looked at, but breaks nothing.
    pub(crate) fn warning(
        &mut self,
        path: impl AsRef<Path>,
        line: usize,
        message: impl AsRef<str>,
    ) {
        self.warnings.push(place(path.as_ref(), line, message.as_ref()));
    }
}

fn place(path: &Path, line: usize, message: &str) -> String {
    match line {
        0 => format!("{}: {message}", path.display()),
        line => format!("{}:{line}: {message}", path.display()),
    }
}

/// Checks every rule and says what is broken.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    ensure!(args.is_empty(), "cargo xtask lint takes no options");
    let (mut passed, mut failed, mut warnings) = (0, 0, 0);
    for rule in RULES {
        let mut findings = Findings::default();
        (rule.check)(&mut findings)?;
        for warning in &findings.warnings {
            println!("warning: {warning} [{}]", rule.name);
        }
        for error in &findings.errors {
            println!("error: {error} [{}]", rule.name);
        }
        warnings += findings.warnings.len();
        if findings.errors.is_empty() {
            passed += 1;
        } else {
            failed += 1;
            println!("{}: {}", rule.name, rule.demands);
        }
    }
    println!("lint: {warnings} warnings; of {} rules", RULES.len());
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}
