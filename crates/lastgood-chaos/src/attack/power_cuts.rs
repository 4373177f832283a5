//! Real power cuts: a loop-mounted file system is cut off with its shutdown call while ranks save on
//! it, and mounted again.
//!
//! `kill -9` cannot see a missing sync, since the kernel still writes what a dead process left behind.
//! After a shutdown only what was synced is there.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::failure::{Context, Result, ensure};
use lastgood::RunOptions;
use lastgood::restore::VerifiedPacks;
use lastgood::state::World;

use super::disks::Flaw;
use super::state::{self, Size};
use super::volume::{FileSystem, Volume, call};
use super::worker;

const RANKS: u32 = 3;

/// What became of the cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How often the power was cut.
    pub cuts: u64,
    /// Checkpoints that were acknowledged before a cut, all of which were there after it.
    pub acknowledged: u64,
    /// Checkpoints that were acknowledged while the power was being cut; on XFS they do not count.
    pub late: u64,
    /// Rounds in which a promise was broken; 0 unless the disk is flawed.
    pub violations: u64,
}

/// What is cut off, and while it does what.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'p> {
    /// The program whose worker saves.
    pub program: &'p Path,
    /// Where it saves.
    pub fs: FileSystem,
    /// What it saves.
    pub size: Size,
    /// What is wrong with its disk.
    pub flaw: Flaw,
    /// Decides when the power is cut.
    pub seed: u64,
}

/// A number below `below` that is a function of a seed.
fn draw(seed: &mut u64, below: u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 16) % below
}

impl Trial<'_> {
    /// Cuts the power `cuts` times. With a flaw, ends at the first violation.
    ///
    /// # Errors
    /// If the set-up fails, or, without a flaw, a promise is broken.
    pub fn run(&self, cuts: u64) -> Result<Report> {
        let &Self { fs, size, flaw, seed, .. } = self;
        let volume = Volume::make(fs, self.volume_bytes())?;
        let mut report = Report::default();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut acknowledged = 0;
        let sound = flaw == Flaw::default();
        for round in 0..=cuts {
            volume.mount()?;
            let store = volume.folder().join("store");
            let judged = if round == 0 { Ok(0) } else { judge(&store, size, acknowledged, round) };
            let mut newest = match judged {
                Ok(newest) => newest,
                Err(error) if sound => {
                    return Err(
                        error.context(format!("{} after cut {round} of seed {seed}", fs.name()))
                    );
                }
                Err(_) => {
                    report.violations += 1;
                    0
                }
            };
            if round == cuts || report.violations > 0 {
                volume.unmount()?;
                break;
            }
            if round % self.rounds_a_store() == 0 {
                let _ = fs::remove_dir_all(&store);
                call(Command::new("sync").arg("-f").arg(volume.folder()))?;
                (acknowledged, newest) = (0, 0);
            }
            let (mut child, lines) = self.start(&store, newest + 1, round)?;
            thread::sleep(Duration::from_micros(15_000 + draw(&mut random, 90_000)));
            let before: Vec<u64> = lines.try_iter().collect();
            let cut = volume.cut();
            child.kill()?;
            child.wait()?;
            cut?;
            let late: Vec<u64> = lines.iter().collect();
            report.late += late.len() as u64;
            // XFS lets the sync of a folder succeed that a shutdown overtakes, so that what is acknowledged
            // after it says nothing there; without power nobody would have heard it.
            let late = if fs == FileSystem::Xfs { Vec::new() } else { late };
            for step in before.into_iter().chain(late) {
                report.acknowledged += 1;
                acknowledged = acknowledged.max(step);
            }
            volume.unmount()?;
            report.cuts += 1;
        }
        Ok(report)
    }

    fn volume_bytes(&self) -> u64 {
        match self.fs {
            FileSystem::Ext4 if self.size == Size::SMALL => 96 << 20,
            _ => 400 << 20,
        }
    }

    /// The store is made anew after so many cuts, so that rounds stay short and the disk does not fill up.
    fn rounds_a_store(&self) -> u64 {
        if self.size == Size::SMALL { 25 } else { 5 }
    }

    fn start(&self, store: &Path, first_step: u64, round: u64) -> Result<(Child, Receiver<u64>)> {
        let mut command = Command::new(self.program);
        command
            .args(["__worker", "--ranks", &RANKS.to_string(), "--steps", "1000000"])
            .args(["--first-step", &first_step.to_string()])
            .args(["--incarnation", &format!("round {round}"), "--commit-wait-ms", "10000"])
            .arg("--folder")
            .arg(store)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if self.size == Size::LARGE {
            command.arg("--large");
        }
        if self.flaw.no_file_sync {
            command.arg("--no-file-sync");
        }
        if self.flaw.no_folder_sync {
            command.arg("--no-folder-sync");
        }
        let mut child = command.spawn().context("cannot start the ranks")?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take().context("no output")?;
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let step =
                    line.strip_prefix("ACK ").and_then(|l| l.split(' ').next()?.parse().ok());
                if let Some(step) = step
                    && sender.send(step).is_err()
                {
                    return;
                }
            }
        });
        Ok((child, lines))
    }
}

/// Nothing acknowledged is lost, and nothing wrong verifies. Gives the newest step.
fn judge(store: &Path, size: Size, acknowledged: u64, round: u64) -> Result<u64> {
    let (repository, _) = worker::repository(store, Flaw::default())?;
    let ledger = repository.ledger(&state::run_name())?;
    repository.block_on(ledger.audit())?;
    let checkpoints = ledger.history().checkpoints();
    let newest = checkpoints.iter().map(|checkpoint| checkpoint.step).max().unwrap_or(0);
    ensure!(newest >= acknowledged, "step {acknowledged} was acknowledged, {newest} is there");
    let known = VerifiedPacks::default();
    for checkpoint in checkpoints {
        repository
            .verify_next(&ledger, &checkpoint.id, &known, &|_, _| {})
            .with_context(|| format!("step {}", checkpoint.step))?;
    }
    if newest > 0 {
        let name = format!("judge {round}");
        let mut run = state::open(&repository, World::ALONE, &name, RunOptions::default())?;
        let restored = state::restore_and_check(&mut run, size)?.map(|r| r.step);
        ensure!(restored == Some(newest), "expected step {newest}, restored {restored:?}");
    }
    Ok(newest)
}
