//! The commands of the project: `cargo xtask test | lint | demo | bench | instructions | docs`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks to its terminal"
)]

mod bench;
mod demo;
mod docs;
mod instructions;
mod lint;
mod markdown;
mod metadata;
mod process;
mod python;
mod repo;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// One command: its name, what it does, and its code. It gives false if it found something wrong and
/// has said so.
struct Command {
    name: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<bool>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "test",
        about: "installs what is missing and runs everything; --list, --only STAGE, --skip STAGE",
        run: test::run,
    },
    Command { name: "lint", about: "the checks that rustc and clippy do not have", run: lint::run },
    Command {
        name: "demo",
        about: "cargo run --release -- demo, with its options",
        run: demo::run,
    },
    Command {
        name: "bench",
        about: "lastgood beside its peers; --help; or one of disk, journal, codecs, fingerprint",
        run: bench::run,
    },
    Command {
        name: "instructions",
        about: "counts the instructions of hot loops against what was expected; --accept",
        run: instructions::run,
    },
    Command {
        name: "python",
        about: "the package's tests in an environment of their own; lint, stubs, install, lock",
        run: python::run,
    },
    Command {
        name: "docs",
        about: "writes the generated pages; --check compares them",
        run: docs::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<bool> {
    let name = args.first().map_or("help", String::as_str);
    if matches!(name, "help" | "-h" | "--help") {
        print_help();
        return Ok(true);
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        print_help();
        bail!("there is no command {name:?}");
    };
    (command.run)(&args[1..])
}

fn print_help() {
    println!("cargo xtask COMMAND\n");
    for command in COMMANDS {
        println!("  {:<12} {}", command.name, command.about);
    }
}
