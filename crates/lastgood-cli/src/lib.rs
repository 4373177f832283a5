//! The `lastgood` command as a function, so that the Python package has the same command.

mod args;
mod commands;
mod demo;
mod doctor;
mod events;
mod exit;
mod interrupt;
mod output;
mod postmortem;
mod program;
mod replay;
mod session;

use std::ffi::OsString;

use clap::Parser;
use exit::Exit;

/// Runs the command whose arguments are `args`, without the program's name, and gives its exit code.
/// `program` is how this command is started again, for what it runs as processes of its own.
#[must_use]
pub fn main(program: Vec<OsString>, args: &[OsString]) -> u8 {
    program::set(program);
    end(run(args)) as u8
}

fn run(given: &[OsString]) -> Exit {
    let named = std::iter::once(OsString::from("lastgood")).chain(given.iter().cloned());
    let args = match args::Args::try_parse_from(named) {
        Ok(args) => args,
        Err(error) => return usage(&error, given),
    };
    let json = args.json;
    match commands::run(args) {
        Ok(exit) => exit,
        Err(error) => {
            if let Some(interrupted) = error.downcast_ref::<interrupt::Interrupted>() {
                output::note("interrupted");
                interrupted.end();
            }
            output::report(&error, json);
            exit::code_of(&error)
        }
    }
}

fn end(exit: Exit) -> Exit {
    if exit == Exit::Done && output::lost() {
        output::note("error: the output could not be written");
        return Exit::Failed;
    }
    exit
}

/// Shows help, or what is wrong with the arguments.
fn usage(error: &clap::Error, given: &[OsString]) -> Exit {
    let asked_for_json = given.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    if !error.use_stderr() {
        // A reader that has seen enough of the help is no error.
        error.print().ok();
        return Exit::Done;
    }
    if asked_for_json {
        output::report_usage(error.render().to_string().trim());
    } else {
        // Nobody is left to tell when the terminal is gone.
        error.print().ok();
    }
    Exit::Usage
}
