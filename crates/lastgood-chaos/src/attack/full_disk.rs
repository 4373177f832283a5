//! A disk that fills up during a save: a small tmpfs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::failure::{Context, Result, bail, ensure};
use lastgood::save::SaveOptions;
use lastgood::state::World;
use lastgood::{ErrorKind, Repository, RunOptions};
use lastgood_store::{LocalStore, SystemEnv};

use super::state::{self, Size};
use super::volume::{FileSystem, Volume};

const TMPFS_BYTES: u64 = 8 << 20;
const TMPFS_STATE: Size = Size { row_bytes: 60_000, replicated_bytes: 400_000 };
const EXT4_BYTES: u64 = 48 << 20;

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Saves that were committed before the disk was full.
    pub before: u64,
    /// Saves that failed while it was full, each with a clear error.
    pub failed: u64,
    /// The text of one of them.
    pub error: String,
    /// Saves that were committed after space was freed.
    pub after: u64,
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Fills a small file system in memory by saving on it, trains on, frees space, and saves again.
///
/// # Errors
/// If a failure is not clear, training is stopped by it, a committed checkpoint is harmed, or saving
/// does not work again after space was freed.
pub fn run() -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={TMPFS_BYTES}"), "lastgood-full-disk"])
        .arg(folder.path())
        .status()
        .context("cannot run mount")?;
    ensure!(status.success(), "cannot mount a tmpfs: {status}");
    let _mounted = Mounted(folder.path().to_owned());
    attack(folder.path(), TMPFS_STATE, 2 << 20)
}

/// The same on ext4, with files so large that they are written past the page cache.
///
/// # Errors
/// As [`run`].
pub fn run_large() -> Result<Report> {
    let volume = Volume::make(FileSystem::Ext4, EXT4_BYTES)?;
    volume.mount()?;
    attack(volume.folder(), Size::LARGE, 16 << 20)
}

fn attack(folder: &Path, size: Size, ballast_bytes: usize) -> Result<Report> {
    let ballast = folder.join(".ballast");
    fs::write(&ballast, vec![1; ballast_bytes])?;
    let store = LocalStore::open(folder.join("store"))?;
    let repository = Repository::create(Arc::new(store), Arc::new(SystemEnv::default()))?;
    let save = SaveOptions { commit_wait: Duration::from_secs(2), ..SaveOptions::default() };
    let options = RunOptions { save, ..RunOptions::default() };
    let mut run = state::open(&repository, World::ALONE, "fill", options)?;
    let mut report = Report::default();
    let mut step = 0;
    while report.failed < 3 {
        step += 1;
        ensure!(step < 100, "the disk does not fill up");
        // The call itself must not fail: training goes on.
        match state::save(&mut run, step, size)?.wait() {
            Ok(_) => report.before += 1,
            Err(error) if matches!(error.kind(), ErrorKind::Overloaded) => {
                let text = error.to_string();
                ensure!(text.contains("bytes are free"), "the error does not help: {text}");
                report.error = text;
                report.failed += 1;
            }
            Err(error) => bail!("a full disk gave {error:?}"),
        }
    }
    ensure!(report.before > 0, "nothing was saved before the disk was full");
    run.take_failures();
    check_all(&repository)?;
    fs::remove_file(&ballast)?;
    for _ in 0..2 {
        step += 1;
        state::save(&mut run, step, size)?.wait().context("after space was freed")?;
        report.after += 1;
    }
    run.close()?;
    check_all(&repository)?;
    let mut run = state::open(&repository, World::ALONE, "check", RunOptions::default())?;
    let restored = state::restore_and_check(&mut run, size)?.map(|restored| restored.step);
    ensure!(restored == Some(step), "expected step {step}, restored {restored:?}");
    Ok(report)
}

fn check_all(repository: &Repository) -> Result<()> {
    let ledger = repository.existing(&state::run_name())?;
    repository.block_on(ledger.audit())?;
    for checkpoint in ledger.history().checkpoints() {
        repository.verify(&ledger, &checkpoint.id, &|_, _| {})?;
    }
    Ok(())
}
