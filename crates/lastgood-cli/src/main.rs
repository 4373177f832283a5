//! The `lastgood` command.

mod args;
mod commands;
mod demo;
mod doctor;
mod exit;
mod interrupt;
mod output;
mod session;

use std::process::ExitCode;

use clap::Parser;
use exit::Exit;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let json = args.json;
    let exit = match commands::run(args) {
        Ok(exit) => exit,
        Err(error) => {
            if let Some(interrupted) = error.downcast_ref::<interrupt::Interrupted>() {
                output::note("interrupted");
                interrupted.end();
            }
            output::report(&error, json);
            exit::code_of(&error)
        }
    };
    if exit == Exit::Done && output::lost() {
        output::note("error: the output could not be written");
        return Exit::Failed.into();
    }
    exit.into()
}

/// Shows help, or what is wrong with the arguments.
fn usage(error: &clap::Error) -> ExitCode {
    let asked_for_json =
        std::env::args_os().skip(1).take_while(|arg| arg != "--").any(|arg| arg == "--json");
    if !error.use_stderr() {
        // A reader that has seen enough of the help is no error.
        error.print().ok();
        return Exit::Done.into();
    }
    if asked_for_json {
        output::report_usage(error.render().to_string().trim());
    } else {
        // Nobody is left to tell when the terminal is gone.
        error.print().ok();
    }
    Exit::Usage.into()
}
