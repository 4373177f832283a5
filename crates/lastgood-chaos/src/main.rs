//! Runs the attacks, for the test command and by hand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use lastgood_chaos::attack::disks::Flaw;
use lastgood_chaos::attack::power_cuts::FileSystem;
use lastgood_chaos::attack::{bit_flips, full_disk, kills, power_cuts, worker};
use lastgood_chaos::failure::{Failure, Result};

/// Attacks on lastgood: each says what it did and what it found, and fails on a broken promise.
#[derive(Debug, Parser)]
#[command(name = "lastgood-chaos", version)]
struct Arguments {
    #[command(subcommand)]
    attack: Attack,
}

#[derive(Debug, Subcommand)]
enum Attack {
    /// Flip every bit of a small repository, one at a time
    BitFlips {
        /// The size of the repository
        #[arg(long, default_value_t = 256 << 10)]
        bytes: u64,
    },
    /// Kill a rank with `kill -9` at every operation of its save
    Kills {
        /// Attack only each N-th point
        #[arg(long, default_value_t = 1, value_name = "N")]
        every: u64,
    },
    /// Cut the power of real file systems during saves (as root)
    PowerCuts {
        #[arg(long, default_value_t = 300)]
        ext4: u64,
        #[arg(long, default_value_t = 150)]
        xfs: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Fill up a disk during saves (as root)
    FullDisk,
    /// A process that is attacked
    #[command(hide = true, name = "__worker")]
    Worker(WorkerArgs),
}

#[derive(Debug, Args)]
struct WorkerArgs {
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    rank: Option<u32>,
    #[arg(long)]
    ranks: u32,
    #[arg(long)]
    incarnation: String,
    #[arg(long)]
    first_step: u64,
    #[arg(long)]
    steps: u64,
    #[arg(long)]
    commit_wait_ms: u64,
    #[arg(long)]
    kill_at: Option<u64>,
    #[arg(long)]
    no_file_sync: bool,
    #[arg(long)]
    no_folder_sync: bool,
}

fn main() -> ExitCode {
    let begin = Instant::now();
    match run(Arguments::parse().attack) {
        Ok(true) => {
            say(&format!("{:.1} s", begin.elapsed().as_secs_f64()));
            ExitCode::SUCCESS
        }
        Ok(false) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("FAILED: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
fn say(line: &str) {
    println!("{line}");
}

fn run(attack: Attack) -> Result<bool> {
    match attack {
        Attack::BitFlips { bytes } => {
            let report = bit_flips::run(bytes)?;
            say(&format!(
                "bit flips: {} in {} bytes; {} reported by verify and refused or not read by \
                 restore, {} in objects that no checkpoint stands on, 0 unseen",
                report.flips, report.bytes, report.reported, report.unused
            ));
        }
        Attack::Kills { every } => {
            let report = kills::run(&std::env::current_exe()?, every)?;
            say(&format!(
                "kills: {}; {} times the attacked step was committed all the same, {} times \
                 recovery went back to the step before, 0 broken promises",
                report.kills, report.committed, report.went_back
            ));
        }
        Attack::PowerCuts { ext4, xfs, seed } => power_cuts_and_mutants(ext4, xfs, seed)?,
        Attack::FullDisk => {
            let report = full_disk::run()?;
            say(&format!(
                "full disk: {} saves before it was full, {} failed while it was, {} after space was \
                 freed\n  {}",
                report.before, report.failed, report.after, report.error
            ));
        }
        Attack::Worker(args) => {
            worker::run(&worker::Work {
                folder: args.folder,
                rank: args.rank,
                ranks: args.ranks,
                incarnation: args.incarnation,
                first_step: args.first_step,
                steps: args.steps,
                commit_wait: Duration::from_millis(args.commit_wait_ms),
                flaw: Flaw {
                    kill_at: args.kill_at,
                    no_file_sync: args.no_file_sync,
                    no_folder_sync: args.no_folder_sync,
                },
            })?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// First the sound code, then the planted bugs, which must be caught.
fn power_cuts_and_mutants(ext4: u64, xfs: u64, seed: u64) -> Result<()> {
    let program = std::env::current_exe()?;
    for (fs, cuts) in [(FileSystem::Ext4, ext4), (FileSystem::Xfs, xfs)] {
        let report = power_cuts::run(&program, fs, cuts, Flaw::default(), seed)?;
        say(&format!(
            "power cuts on {}: {}; {} acknowledged checkpoints, 0 lost, 0 wrong",
            fs.name(),
            report.cuts,
            report.acknowledged
        ));
    }
    let no_file_sync = Flaw { no_file_sync: true, ..Flaw::default() };
    let no_folder_sync = Flaw { no_folder_sync: true, ..Flaw::default() };
    for (name, flaw) in [("no file sync", no_file_sync), ("no folder sync", no_folder_sync)] {
        let report = power_cuts::run(&program, FileSystem::Ext4, 200, flaw, seed)?;
        if report.violations == 0 {
            return Err(Failure::new(format!("the planted bug `{name}` survived 200 cuts")));
        }
        say(&format!("planted bug `{name}`: caught after {} cuts", report.cuts));
    }
    Ok(())
}
