//! The `lastgood` command.

mod args;
mod commands;
mod demo;
mod exit;
mod output;
mod session;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let json = args.json;
    match commands::run(args) {
        Ok(code) => code.into(),
        Err(error) => {
            output::report(&error, json);
            exit::code_of(&error).into()
        }
    }
}
