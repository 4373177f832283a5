//! The processes that are attacked: ranks that save, over a disk that may be flawed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::failure::{Result, bail};
use lastgood::save::{Compression, SaveOptions};
use lastgood::state::World;
use lastgood::{Repository, RunOptions};
use lastgood_store::{LocalStore, SystemEnv};

use super::disks::{Flaw, FlawedDisk};
use super::state::{self, Size};

/// What a worker process does.
#[derive(Clone, Debug)]
pub struct Work {
    /// The store's folder.
    pub folder: PathBuf,
    /// The rank, or all of them in threads of one process.
    pub rank: Option<u32>,
    /// The number of ranks.
    pub ranks: u32,
    /// Names the attempt.
    pub incarnation: String,
    /// The first step that is saved.
    pub first_step: u64,
    /// How many steps are saved.
    pub steps: u64,
    /// How long a save waits for the other ranks.
    pub commit_wait: Duration,
    /// How large the state is.
    pub size: Size,
    /// What is wrong with the disk.
    pub flaw: Flaw,
}

/// A repository in `folder` over a disk with `flaw`, and the disk.
///
/// # Errors
/// As [`LocalStore::open_on`] and [`Repository::create`].
pub fn repository(folder: &Path, flaw: Flaw) -> Result<(Repository, Arc<FlawedDisk>)> {
    let disk = Arc::new(FlawedDisk::new(flaw));
    let store = LocalStore::open_on(folder, Arc::<FlawedDisk>::clone(&disk))?;
    let repository = Repository::create(Arc::new(store), Arc::new(SystemEnv::default()))?;
    Ok((repository, disk))
}

/// Saves as told, and prints `ACK step` for each save once it is committed, and at the end `POINTS n`,
/// the number of points at which the process could have been killed.
///
/// # Errors
/// The first save that fails.
pub fn run(work: &Work) -> Result<()> {
    let (repository, disk) = repository(&work.folder, work.flaw)?;
    let ranks = match work.rank {
        Some(rank) => rank..rank + 1,
        None => 0..work.ranks,
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks
            .map(|rank| {
                scope.spawn({
                    let repository = &repository;
                    move || save_steps(repository, work, rank)
                })
            })
            .collect();
        ranks.into_iter().try_for_each(|rank| match rank.join() {
            Ok(done) => done,
            Err(_) => bail!("a rank panicked"),
        })
    })?;
    say(&format!("POINTS {}", disk.points()));
    Ok(())
}

fn save_steps(repository: &Repository, work: &Work, rank: u32) -> Result<()> {
    let world = World { rank, size: work.ranks };
    let compression = Compression::Delta { chain: 3 };
    let save = SaveOptions { commit_wait: work.commit_wait, compression, ..SaveOptions::default() };
    let options = RunOptions { save, ..RunOptions::default() };
    let mut run = state::open(repository, world, &work.incarnation, options)?;
    state::restore_and_check(&mut run, work.size)?;
    for step in work.first_step..work.first_step + work.steps {
        let id = state::save(&mut run, step, work.size)?.wait()?;
        say(&format!("ACK {step} {id}"));
    }
    run.close()?;
    Ok(())
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that is gone does not want to know.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
