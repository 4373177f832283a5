//! One module a command.

mod demo;
mod export;
mod import;
mod log;
mod ls;
mod mark;
mod show;
mod supervise;
mod verify;

use clap::CommandFactory;

use crate::args::{Args, Command};
use crate::demo::rank;
use crate::exit::Exit;
use crate::output;

/// Runs the command.
///
/// # Errors
/// Whatever it fails with; [`crate::exit::code_of`] gives the exit code.
pub(crate) fn run(args: Args) -> anyhow::Result<Exit> {
    let json = args.json;
    match args.command {
        Command::Ls { store, run: None } => ls::runs(&store, json),
        Command::Ls { store, run: Some(run) } => ls::checkpoints(&store, run, json),
        Command::Show { run, at, tensors } => show::run(&run, &at.at, tensors, json),
        Command::Log { run, last } => log::run(&run, last, json),
        Command::Verify { run, at, mark } => verify::run(&run, at.as_ref(), mark, json),
        Command::Mark { run, at, standing, reason } => {
            mark::run(&run, &at.at, standing, &reason, json)
        }
        Command::Import { file, run, step, component } => {
            import::run(&file, &run, step, &component, json)
        }
        Command::Export { run, at, to, format: _, component, force } => {
            export::run(&export::Request { run, at: at.at, to, components: component, force }, json)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "lastgood", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end());
            Ok(Exit::Done)
        }
        Command::Run(args) => supervise::run(&args, json),
        Command::Rank { parent, command } => supervise::become_rank(parent, &command),
        Command::Demo(args) => demo::run(&args, json),
        Command::DemoRank(args) => rank::run(&args),
    }
}
