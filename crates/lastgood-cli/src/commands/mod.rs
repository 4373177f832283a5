//! One module a command.

mod bisect;
mod certificate;
mod demo;
mod doctor;
mod events;
pub(crate) mod export;
mod import;
mod journal;
mod log;
mod ls;
mod mark;
mod policy;
mod postmortem;
mod preflight;
mod prove;
mod replay;
mod resumed;
mod save;
mod show;
pub(crate) mod supervise;
mod verify;
mod why;

use clap::CommandFactory;
use serde_json::json;

use crate::args::{Args, CertificateCommand, Command, KeyCommand, PolicyCommand, RunArgs};
use crate::demo::rank;
use crate::exit::Exit;
use crate::output;

/// Runs the command.
///
/// # Errors
/// Whatever it fails with; [`crate::exit::code_of`] gives the exit code.
pub(crate) fn run(args: Args) -> anyhow::Result<Exit> {
    let as_json = args.json;
    match args.command {
        Command::Ls { store, run: None, last } => ls::runs(&store, last, as_json),
        Command::Ls { store, run: Some(run), last } => {
            ls::checkpoints(&RunArgs { store, run }, last, as_json)
        }
        Command::Show { run, at, tensors } => show::run(&run, &at.at, tensors, as_json),
        Command::Log { run, journal, .. } if journal.journal => {
            journal::run(&run, &journal, as_json)
        }
        Command::Log { run, last, .. } => log::run(&run, last, as_json),
        Command::Events(args) => events::run(&args, as_json),
        Command::Why(args) => why::run(&args, as_json),
        Command::Verify { run, at, mark } => verify::run(&run, at.as_ref(), mark, as_json),
        Command::Mark { run, at, standing, reason } => {
            mark::run(&run, &at.at, standing, &reason, as_json)
        }
        Command::Save(args) => save::run(&args, as_json),
        Command::Policy { command: PolicyCommand::Explain { run } } => {
            policy::explain(&run, as_json)
        }
        Command::Doctor { path, quick, allow } => doctor::run(&path, quick, &allow, as_json),
        Command::Import { file, run, step, component } => {
            import::run(&file, &run, step, &component, as_json)
        }
        Command::Export { run, at, to, format: _, component, force } => export::run(
            &export::Request { run, at: at.at, to, components: component, force },
            as_json,
        ),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "lastgood", &mut script);
            let script = String::from_utf8_lossy(&script);
            match as_json {
                true => output::json(&json!({"shell": shell.to_string(), "script": script}))?,
                false => output::line(script.trim_end()),
            }
            Ok(Exit::Done)
        }
        Command::Postmortem { run, attempt, certificate, to, force } => {
            postmortem::run(&postmortem::Request { run, attempt, certificate, to, force }, as_json)
        }
        Command::Preflight(args) => preflight::run(&args, as_json),
        Command::Prove(args) => prove::run(&args, as_json),
        Command::Key { command: KeyCommand::New { to } } => certificate::new_key(&to, as_json),
        Command::Certificate { command: CertificateCommand::Verify { file, key } } => {
            certificate::verify(&file, key.as_deref(), as_json)
        }
        Command::Bisect(args) => bisect::run(&args, as_json),
        Command::Replay(args) => replay::run(&args, as_json),
        Command::Run(args) => supervise::run(&args, as_json),
        Command::Guard => supervise::guard_ranks(),
        Command::Rank { parent, command } => supervise::become_rank(parent, &command),
        Command::Demo(args) => demo::run(&args, as_json),
        Command::DemoRank(args) => rank::run(&args),
    }
}
