//! `kill -9` at every operation on the disk of a save of several ranks, in real processes.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Context, Result, bail, ensure};
use lastgood::restore::VerifiedPacks;
use lastgood::state::World;
use lastgood::{Repository, RunOptions};
use lastgood_format::Hash;
use tempfile::TempDir;

use super::disks::Flaw;
use super::memory;
use super::state::{self, Size};
use super::worker;

const RANKS: u32 = 4;
/// The step that is committed before the attack, and those that are attacked: the second is made of deltas.
const SAFE_STEP: u64 = 1;
const ATTACKED: Range<u64> = 2..4;
/// Attacks side by side: they mostly wait for ranks that wait for a dead one.
const ATTACKERS: usize = 8;
/// Saves of which the longest tells how many points there are.
const COUNTED: u32 = 8;
/// A worker that takes longer hangs.
const WORKER_MAX: Duration = Duration::from_secs(60);

/// What became of the kills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Points at which a rank was killed.
    pub kills: u64,
    /// Kills after which the step that was being saved was committed all the same, or all of them were.
    pub committed: u64,
    /// Kills after which the last good checkpoint was the one before.
    pub went_back: u64,
}

/// Kills each rank at each point of its save. With `every` above 1, only at each `every`-th point.
///
/// # Errors
/// If a checkpoint is lost, a wrong byte is restored, something hangs, or the same step cannot be
/// saved again afterwards.
pub fn run(program: &Path, every: u64) -> Result<Report> {
    let safe = Safe::make()?;
    let mut points = Vec::new();
    for (rank, count) in (0..).zip(count_points(program, &safe)?) {
        points.extend((0..count).step_by(every.max(1) as usize).map(|point| (rank, point)));
    }
    let queue = Mutex::new(points.into_iter());
    let total = Mutex::new(Report::default());
    thread::scope(|scope| {
        let attackers: Vec<_> = (0..ATTACKERS)
            .map(|_| scope.spawn(|| attack(program, &safe, &queue, &total)))
            .collect();
        attackers.into_iter().try_for_each(|attacker| {
            attacker.join().unwrap_or_else(|_| bail!("an attack panicked"))
        })
    })?;
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn attack(
    program: &Path,
    safe: &Safe,
    queue: &Mutex<impl Iterator<Item = (u32, u64)>>,
    total: &Mutex<Report>,
) -> Result<()> {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((victim, point)) = next else { return Ok(()) };
        let committed = kill_one(program, safe, victim, point)
            .with_context(|| format!("rank {victim} was killed at point {point}"))?;
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        total.kills += 1;
        if committed {
            total.committed += 1;
        } else {
            total.went_back += 1;
        }
    }
}

/// How many points there are in the save of each rank, in the longest of some that nobody disturbs: how often a
/// rank looks for the others differs from one to the next.
fn count_points(program: &Path, safe: &Safe) -> Result<[u64; RANKS as usize]> {
    let mut most = [0; RANKS as usize];
    for _ in 0..COUNTED {
        let folder = safe.copy()?;
        let ranks = start_ranks(program, folder.path(), None)?;
        for (child, most) in ranks.into_iter().zip(&mut most) {
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "an undisturbed rank ended with {}", output.status);
            let text = String::from_utf8_lossy(&output.stdout);
            let points: Option<u64> =
                text.lines().find_map(|line| line.strip_prefix("POINTS ")?.parse().ok());
            *most = points.context("a rank did not say how many points there are")?.max(*most);
        }
    }
    Ok(most)
}

/// A repository in which one step was saved. It is made once, and each attack begins with a copy.
struct Safe {
    folder: TempDir,
    /// The checkpoint.
    id: Hash,
}

impl Safe {
    fn make() -> Result<Self> {
        let folder = tempfile::tempdir_in(memory())?;
        let (repository, _) = worker::repository(folder.path(), Flaw::default())?;
        let id = save_in_threads(&repository, SAFE_STEP, "before")?;
        Ok(Self { folder, id })
    }

    fn copy(&self) -> Result<TempDir> {
        let folder = tempfile::tempdir_in(memory())?;
        copy_folder(self.folder.path(), folder.path())?;
        Ok(folder)
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&to)?;
            copy_folder(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

/// Saves `step` with all ranks as threads of this process, over a sound disk.
fn save_in_threads(repository: &Repository, step: u64, incarnation: &str) -> Result<Hash> {
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..RANKS)
            .map(|rank| {
                scope.spawn(move || -> Result<Hash> {
                    let world = World { rank, size: RANKS };
                    let mut run =
                        state::open(repository, world, incarnation, RunOptions::default())?;
                    state::restore_and_check(&mut run, Size::SMALL)?;
                    let id = state::save(&mut run, step, Size::SMALL)?.wait()?;
                    run.close()?;
                    Ok(id)
                })
            })
            .collect();
        let mut id = None;
        for rank in ranks {
            id = Some(rank.join().unwrap_or_else(|_| bail!("a rank panicked"))?);
        }
        id.context("there is no rank")
    })
}

fn start_ranks(program: &Path, folder: &Path, kill: Option<(u32, u64)>) -> Result<Vec<Child>> {
    (0..RANKS)
        .map(|rank| {
            let mut command = Command::new(program);
            command
                .args(["__worker", "--incarnation", "attacked"])
                .args(["--steps", &(ATTACKED.end - ATTACKED.start).to_string()])
                .args(["--first-step", &ATTACKED.start.to_string(), "--rank", &rank.to_string()])
                .args(["--ranks", &RANKS.to_string()])
                .args(["--commit-wait-ms", if kill.is_some() { "150" } else { "10000" }])
                .arg("--folder")
                .arg(folder)
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            if let Some((_, point)) = kill.filter(|(victim, _)| *victim == rank) {
                command.args(["--kill-at", &point.to_string()]);
            }
            command.spawn().context("cannot start a rank")
        })
        .collect()
}

fn wait(child: &mut Child, begin: Instant) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begin.elapsed() > WORKER_MAX {
            child.kill()?;
            child.wait()?;
            bail!("a rank hung");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Gives whether the attacked step was committed.
fn kill_one(program: &Path, safe: &Safe, victim: u32, point: u64) -> Result<bool> {
    let folder = safe.copy()?;
    let mut ranks = start_ranks(program, folder.path(), Some((victim, point)))?;
    let begin = Instant::now();
    for rank in &mut ranks {
        wait(rank, begin)?;
    }
    let mut acknowledged = SAFE_STEP;
    for rank in ranks {
        let output = rank.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let steps = text.lines().filter_map(|line| line.strip_prefix("ACK ")?.split(' ').next());
        acknowledged = steps.filter_map(|step| step.parse().ok()).fold(acknowledged, u64::max);
    }
    let (repository, _) = worker::repository(folder.path(), Flaw::default())?;
    let newest = check_after(&repository, &safe.id, acknowledged)?;
    // The next save of a step that was or was not committed must succeed, and come back.
    let last = ATTACKED.end - 1;
    save_in_threads(&repository, last, "after")?;
    check_restore(&repository, last, "second look")?;
    Ok(newest > acknowledged || newest == last)
}

/// Gives the newest step that is committed.
fn check_after(repository: &Repository, safe: &Hash, acknowledged: u64) -> Result<u64> {
    let ledger = repository.existing(&state::run_name())?;
    repository.block_on(ledger.audit())?;
    let checkpoints = ledger.history().checkpoints();
    ensure!(checkpoints.iter().any(|c| c.id == *safe), "the checkpoint before is gone");
    let known = VerifiedPacks::default();
    for checkpoint in checkpoints {
        repository.verify_next(&ledger, &checkpoint.id, &known, &|_, _| {})?;
    }
    let newest = checkpoints.iter().map(|c| c.step).max().unwrap_or(0);
    ensure!(newest >= acknowledged, "step {acknowledged} was acknowledged, {newest} is the newest");
    check_restore(repository, newest, "first look")?;
    Ok(newest)
}

/// Restores on another number of ranks, and compares every byte.
fn check_restore(repository: &Repository, step: u64, incarnation: &str) -> Result<()> {
    for rank in 0..2 {
        let world = World { rank, size: 2 };
        let mut run = state::open(repository, world, incarnation, RunOptions::default())?;
        let restored = state::restore_and_check(&mut run, Size::SMALL)?;
        let found = restored.map(|restored| restored.step);
        ensure!(found == Some(step), "expected step {step}, restored {found:?}");
        run.close()?;
    }
    Ok(())
}
