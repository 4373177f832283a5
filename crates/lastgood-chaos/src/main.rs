//! Runs the attacks, for the test command and by hand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use lastgood_chaos::attack::disks::Flaw;
use lastgood_chaos::attack::power_cuts::Trial;
use lastgood_chaos::attack::state::Size;
use lastgood_chaos::attack::volume::FileSystem;
use lastgood_chaos::attack::{bit_flips, cli_flips, full_disk, kills, worker};
use lastgood_chaos::failure::{Failure, Result};
use lastgood_chaos::setting::Setting;
use lastgood_chaos::{crash, journal, planted, sim};

/// Attacks on lastgood: each says what it did and what it found, and fails on a broken promise.
#[derive(Debug, Parser)]
#[command(name = "lastgood-chaos", version)]
struct Arguments {
    #[command(subcommand)]
    attack: Attack,
}

#[derive(Debug, Subcommand)]
enum Attack {
    /// Run the real ledger and commit code under seeded faults, crashes and interleavings
    Simulate {
        /// How many seeds
        #[arg(long, default_value_t = 20_000)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Repeat this seed alone, and print what happens
        #[arg(long, conflicts_with_all = ["seeds", "first"])]
        seed: Option<u64>,
    },
    /// Judge every state that a crash can leave on a disk, at every point of recorded saves
    Enumerate {
        /// Go through recordings until so many states were tried
        #[arg(long, default_value_t = 1_000_000)]
        states: u64,
        /// Repeat this recording alone
        #[arg(long, conflicts_with = "states")]
        recording: Option<u64>,
    },
    /// Crash the journal's writer at every operation of disk and store, and its recovery too
    Journal {
        /// How many crashes
        #[arg(long, default_value_t = 20_000)]
        crashes: u64,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        first: u64,
    },
    /// Plant bugs, each of which the simulation and the enumerator must find
    Mutants,
    /// Flip every bit of a small repository, one at a time
    BitFlips {
        /// The size of the repository
        #[arg(long, default_value_t = 128 << 10)]
        bytes: u64,
    },
    /// Flip random bits of a large repository, one at a time, and judge each by the `lastgood` command
    CliFlips {
        /// How many bits
        #[arg(long, default_value_t = 2000)]
        flips: u64,
        /// Decides which
        #[arg(long, default_value_t = 1)]
        seed: u64,
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
        /// And so many on each, while large files are written past the page cache
        #[arg(long, default_value_t = 30)]
        large: u64,
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
    #[arg(long)]
    large: bool,
}

/// How an attack ended.
enum Ending {
    /// It said what there is to say.
    Said,
    /// It ends with its time.
    Timed,
    /// It ends with its time, and how many tries kept and broke a promise.
    Counted { passed: u64, failed: u64 },
}

fn main() -> ExitCode {
    let begin = Instant::now();
    let ending = run(Arguments::parse().attack);
    if matches!(ending, Ok(Ending::Timed | Ending::Counted { .. })) {
        say(&format!("{:.1} s", begin.elapsed().as_secs_f64()));
    }
    match ending {
        Ok(Ending::Said | Ending::Timed) => ExitCode::SUCCESS,
        Ok(Ending::Counted { passed, failed }) => {
            say(&format!("{passed} passed, {failed} failed"));
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
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

fn run(attack: Attack) -> Result<Ending> {
    match attack {
        Attack::Simulate { seeds, first, seed } => match seed {
            Some(seed) => return Ok(repeat(seed)),
            None => return simulate(first, seeds),
        },
        Attack::Enumerate { states, recording } => return enumerate(states, recording),
        Attack::Journal { crashes, first } => return Ok(crash_journals(first, crashes)),
        Attack::Mutants => return mutants(),
        Attack::BitFlips { bytes } => {
            let report = bit_flips::run(bytes)?;
            say(&format!(
                "bit flips: {} in {} bytes; {} reported by verify and refused or not read by \
                 restore, {} in objects that no checkpoint stands on, 0 unseen",
                report.flips, report.bytes, report.reported, report.unused
            ));
        }
        Attack::CliFlips { flips, seed } => flip_through_the_command(flips, seed)?,
        Attack::Kills { every } => {
            let report = kills::run(&std::env::current_exe()?, every)?;
            say(&format!(
                "kills: {}; {} times the attacked step was committed all the same, {} times \
                 recovery went back to the step before, 0 broken promises",
                report.kills, report.committed, report.went_back
            ));
        }
        Attack::PowerCuts { ext4, xfs, large, seed } => {
            power_cuts_and_mutants(ext4, xfs, large, seed)?;
        }
        Attack::FullDisk => {
            for (name, report) in
                [("tmpfs", full_disk::run()?), ("ext4, large files", full_disk::run_large()?)]
            {
                say(&format!(
                    "full disk, {name}: {} saves before it was full, {} failed while it was, {} after \
                     space was freed\n  {}",
                    report.before, report.failed, report.after, report.error
                ));
            }
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
                size: if args.large { Size::LARGE } else { Size::SMALL },
                flaw: Flaw {
                    kill_at: args.kill_at,
                    no_file_sync: args.no_file_sync,
                    no_folder_sync: args.no_folder_sync,
                },
            })?;
            return Ok(Ending::Said);
        }
    }
    Ok(Ending::Timed)
}

fn flip_through_the_command(flips: u64, seed: u64) -> Result<()> {
    let program = std::env::current_exe()?.with_file_name("lastgood");
    let report = cli_flips::run(&program, flips, seed)?;
    say(&format!("flips through the command, in {} bytes (seed {seed}):", report.bytes));
    let head = "  object          flips  verify: code 3   unused  export: refused  right bytes";
    say(head);
    for (class, tally) in &report.classes {
        say(&format!(
            "  {class:<13} {:>7} {:>15} {:>8} {:>16} {:>12}",
            tally.flips, tally.reported, tally.unused, tally.refused, tally.right
        ));
    }
    Ok(())
}

/// The sound code, and the planted bugs, which must be caught; all at once, since each mostly waits.
fn power_cuts_and_mutants(ext4: u64, xfs: u64, large: u64, seed: u64) -> Result<()> {
    let program = &std::env::current_exe()?;
    let sound = |fs, size| Trial { program, fs, size, flaw: Flaw::default(), seed };
    let flawed = |size, flaw| Trial { program, fs: FileSystem::Ext4, size, flaw, seed };
    let no_file_sync = Flaw { no_file_sync: true, ..Flaw::default() };
    let no_folder_sync = Flaw { no_folder_sync: true, ..Flaw::default() };
    thread::scope(|scope| {
        let trials = [
            scope.spawn(move || {
                cut("ext4", &sound(FileSystem::Ext4, Size::SMALL), ext4)?;
                catch("no folder sync", &flawed(Size::SMALL, no_folder_sync))
            }),
            scope.spawn(move || {
                cut("xfs", &sound(FileSystem::Xfs, Size::SMALL), xfs)?;
                catch("no file sync", &flawed(Size::SMALL, no_file_sync))
            }),
            scope.spawn(move || {
                cut("ext4, large files", &sound(FileSystem::Ext4, Size::LARGE), large)?;
                cut("xfs, large files", &sound(FileSystem::Xfs, Size::LARGE), large)?;
                catch("no file sync, large files", &flawed(Size::LARGE, no_file_sync))
            }),
        ];
        trials.into_iter().try_for_each(|trial| {
            trial.join().unwrap_or_else(|_| Err(Failure::new("a trial panicked")))
        })
    })
}

fn cut(name: &str, trial: &Trial<'_>, cuts: u64) -> Result<()> {
    let report = trial.run(cuts)?;
    say(&format!(
        "power cuts on {name}: {}; {} acknowledged checkpoints, 0 lost, 0 wrong; {} \
         acknowledged while it was cut",
        report.cuts, report.acknowledged, report.late
    ));
    Ok(())
}

fn catch(name: &str, trial: &Trial<'_>) -> Result<()> {
    let report = trial.run(200)?;
    if report.violations == 0 {
        return Err(Failure::new(format!("the planted bug `{name}` survived 200 cuts")));
    }
    say(&format!("planted bug `{name}`: caught after {} cuts", report.cuts));
    Ok(())
}

fn enumerate(states: u64, recording: Option<u64>) -> Result<Ending> {
    let setting = Setting::default();
    let report = match recording {
        None => crash::enumerate(states, &setting)?,
        Some(number) => {
            let (counts, found) = crash::recording(number, &setting)?;
            crash::Report { counts, found: found.into_iter().collect() }
        }
    };
    let counts = &report.counts;
    say(&format!(
        "enumerate: {} recordings of saves, {} of them of the real engine; {} points, at {} of them every \
         state, at {} a sample; {} states, {} of them of the first kind; {} distinct disks, {} of them \
         distinct in what a reader sees or in what had been told, each of those judged",
        counts.recordings,
        counts.engine,
        counts.points,
        counts.exhaustive,
        counts.points - counts.exhaustive,
        counts.states,
        counts.exhaustive_states,
        counts.images,
        counts.judged,
    ));
    for found in report.found.iter().take(10) {
        say(&format!(
            "recording {}, after operation {}, state {}: {}\n{}  repeat it: lastgood-chaos enumerate \
             --recording {}",
            found.recording,
            found.point,
            found.state,
            found.violation,
            found.explain(&setting)?,
            found.recording
        ));
    }
    let failed = report.found.len() as u64;
    Ok(Ending::Counted { passed: counts.states.saturating_sub(failed), failed })
}

fn crash_journals(first: u64, crashes: u64) -> Ending {
    let report = journal::simulate(first, crashes, &Setting::default());
    say(&report.to_string());
    for broken in report.failed.iter().take(10) {
        let repeat = format!("lastgood-chaos journal --first {} --crashes 1", broken.seed);
        say(&format!("{broken}\n  repeat it: {repeat}"));
    }
    let failed = report.failed.len() as u64;
    Ending::Counted { passed: report.crashes - failed, failed }
}

fn mutants() -> Result<Ending> {
    let hunted = planted::hunt()?;
    for one in &hunted {
        let mark = if one.is_found() { "found   " } else { "SURVIVED" };
        say(&format!("{mark} {}", one.bug.name));
        if let Some(failed) = &one.simulation {
            say(&format!("         simulation, seed {}: {}", failed.seed, failed.violation));
        }
        if let Some(broken) = &one.journal {
            say(&format!("         journal, {broken}"));
        }
        if let Some(found) = &one.enumerator {
            say(&format!(
                "         enumerator, recording {}, after operation {}, state {}: {}",
                found.recording, found.point, found.state, found.violation
            ));
        }
    }
    let passed = hunted.iter().filter(|one| one.is_found()).count() as u64;
    Ok(Ending::Counted { passed, failed: hunted.len() as u64 - passed })
}

fn simulate(first: u64, seeds: u64) -> Result<Ending> {
    let report = sim::simulate(first, seeds, &Setting::default(), false)?;
    let sum = &report.sum;
    say(&format!(
        "simulate: {} seeds, {} events; {} commits, {} crashes, {} power cuts in which {} objects \
         vanished, {} fenced ranks, {} abandoned saves, {} saves given up, {} waits; {} distinct \
         traces; {} seeds played twice did the same",
        report.seeds,
        sum.events,
        sum.commits,
        sum.crashes,
        sum.power_cuts,
        sum.vanished,
        sum.fences,
        sum.abandoned,
        sum.given_up,
        sum.waits,
        report.distinct,
        report.twice,
    ));
    say(&report.coverage.to_string());
    for failed in report.failed.iter().take(10) {
        say(&format!(
            "seed {}: {}\n  repeat it: lastgood-chaos simulate --seed {}",
            failed.seed, failed.violation, failed.seed
        ));
    }
    let failed = report.failed.len() as u64;
    Ok(Ending::Counted { passed: report.seeds - failed, failed })
}

fn repeat(seed: u64) -> Ending {
    let played = sim::play(seed, &Setting::default(), true);
    say(&played.text);
    say(&format!("trace {:016x}", played.trace));
    match played.violation {
        None => Ending::Counted { passed: 1, failed: 0 },
        Some(violation) => {
            say(&format!("seed {seed}: {violation}"));
            Ending::Counted { passed: 0, failed: 1 }
        }
    }
}
