//! Two disks that are made of memory alone: one that writes down what is done to it, and one that holds what
//! a crash left.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use lastgood_store::disk::DiskEntry;
use lastgood_store::{Disk, Env};

use super::tree::{File, Folder, Name, Node, Tree};
use super::turns::Turns;
use crate::random::Random;
use crate::ranks::Witness;

/// How long one turn is.
const TURN: Duration = Duration::from_micros(100);

/// How many turns somebody rests who looked for a shard index in vain.
const REST: u64 = 40;

/// One thing that was done to the file system.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create { folder: Folder, name: Name, file: File },
    SyncFile(File),
    Link { folder: Folder, name: Name, file: File },
    Unlink { folder: Folder, name: Name },
    CreateFolder { folder: Folder, name: Name, new: Folder },
    SyncFolder(Folder),
}

/// One thing that was done, and by whom.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) op: Op,
    pub(super) who: usize,
    /// How much had been told before.
    pub(super) told: usize,
}

#[derive(Debug, Default)]
struct Log {
    tree: Tree,
    steps: Vec<Step>,
}

/// Writes down what its players do.
#[derive(Debug)]
pub(super) struct Recorder {
    log: Mutex<Log>,
    pub(super) turns: Turns,
    pub(super) witness: Witness,
    /// How many turns a sync takes: the slower it is, the more is not yet durable at once.
    sync_turns: u64,
}

impl Recorder {
    pub(super) fn new(seed: u64, players: usize, witness: Witness, sync_turns: u64) -> Self {
        Self { log: Mutex::default(), turns: Turns::new(seed, players), witness, sync_turns }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was done, and the files that were written.
    pub(super) fn take(&self) -> (Vec<Step>, Arc<Vec<Bytes>>) {
        let mut log = self.lock();
        (std::mem::take(&mut log.steps), Arc::clone(&log.tree.files))
    }
}

/// One player's way to the recorder.
#[derive(Debug)]
pub(super) struct RecordingDisk {
    recorder: Arc<Recorder>,
    who: usize,
    rest: AtomicU64,
    /// The threads of one player do one thing at a time.
    one: Mutex<()>,
}

impl RecordingDisk {
    pub(super) fn new(recorder: Arc<Recorder>, who: usize) -> Self {
        Self { recorder, who, rest: AtomicU64::new(0), one: Mutex::new(()) }
    }

    fn turn<T>(&self, work: impl FnOnce(&mut Log) -> io::Result<T>) -> io::Result<T> {
        let _one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        self.recorder.turns.take(self.who, self.rest.swap(0, Ordering::Relaxed));
        if self.recorder.turns.is_over() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        work(&mut self.recorder.lock())
    }

    fn effect(&self, work: impl FnOnce(&mut Tree) -> io::Result<Op>) -> io::Result<()> {
        self.turn(|log| {
            let op = work(&mut log.tree)?;
            let told = self.recorder.witness.count();
            log.steps.push(Step { op, who: self.who, told });
            Ok(())
        })
    }
}

fn create(tree: &mut Tree, path: &Path, parts: &[Bytes]) -> io::Result<Op> {
    let (folder, name) = tree.vacant(path)?;
    let file = tree.add_file(parts.concat().into());
    tree.set(folder, &name, Some(Node::File(file)));
    Ok(Op::Create { folder, name, file })
}

fn link(tree: &mut Tree, from: &Path, to: &Path) -> io::Result<Op> {
    let file = tree.file(from)?;
    let (folder, name) = tree.vacant(to)?;
    tree.set(folder, &name, Some(Node::File(file)));
    Ok(Op::Link { folder, name, file })
}

fn unlink(tree: &mut Tree, path: &Path) -> io::Result<Op> {
    tree.file(path)?;
    let (folder, name) = tree.place(path)?;
    tree.set(folder, &name, None);
    Ok(Op::Unlink { folder, name })
}

fn create_folder(tree: &mut Tree, path: &Path) -> io::Result<Op> {
    let (folder, name) = tree.vacant(path)?;
    let new = tree.add_folder();
    tree.set(folder, &name, Some(Node::Folder(new)));
    Ok(Op::CreateFolder { folder, name, new })
}

impl Disk for RecordingDisk {
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        self.effect(|tree| create(tree, path, parts))
    }

    /// The store never appends; the journal's writer has a disk of its own (`crate::journal`).
    fn append(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.rest.store(self.recorder.sync_turns, Ordering::Relaxed);
        self.effect(|tree| tree.file(path).map(Op::SyncFile))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.effect(|tree| link(tree, from, to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.effect(|tree| unlink(tree, path))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.effect(|tree| create_folder(tree, path))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.rest.store(self.recorder.sync_turns, Ordering::Relaxed);
        self.effect(|tree| tree.folder(path).map(Op::SyncFolder))
    }

    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.turn(|log| log.tree.read(path, offset, target))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        self.turn(|log| {
            let found = log.tree.size(path);
            if found.is_none() && path.extension().is_some_and(|extension| extension == "idx") {
                self.rest.store(REST, Ordering::Relaxed);
            }
            Ok(found)
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        self.turn(|log| Ok(log.tree.list(path)))
    }
}

/// One player's clock, which counts turns, and its randomness, which is the seed's.
#[derive(Debug)]
pub(super) struct RecordingEnv {
    recorder: Arc<Recorder>,
    who: usize,
    random: Mutex<Random>,
}

impl RecordingEnv {
    pub(super) fn new(recorder: Arc<Recorder>, who: usize, seed: u64) -> Self {
        let random = Random::new(crate::random::join(seed, who as u64));
        Self { recorder, who, random: Mutex::new(random) }
    }
}

fn wall_clock(elapsed: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + elapsed
}

#[async_trait]
impl Env for RecordingEnv {
    fn now(&self) -> SystemTime {
        wall_clock(self.elapsed())
    }

    fn elapsed(&self) -> Duration {
        let now = self.recorder.turns.now();
        TURN * u32::try_from(now).unwrap_or(u32::MAX)
    }

    fn random(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).draw()
    }

    async fn sleep(&self, duration: Duration) {
        let turns = duration.as_nanos() / TURN.as_nanos();
        self.recorder.turns.take(self.who, turns as u64);
    }
}

/// What a crash left, for those who come after it: nothing is lost any more.
#[derive(Debug)]
pub(super) struct ImageDisk(pub(super) Mutex<Tree>);

impl ImageDisk {
    fn with<T>(&self, work: impl FnOnce(&mut Tree) -> io::Result<T>) -> io::Result<T> {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The bytes of a file, shared with it.
    pub(super) fn bytes(&self, path: &Path) -> Option<Bytes> {
        let tree = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tree.file(path).ok().map(|file| tree.files[file].clone())
    }
}

impl Disk for ImageDisk {
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        self.with(|tree| create(tree, path, parts).map(drop))
    }

    fn append(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.with(|tree| tree.file(path).map(drop))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|tree| link(tree, from, to).map(drop))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.with(|tree| unlink(tree, path).map(drop))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.with(|tree| create_folder(tree, path).map(drop))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.with(|tree| tree.folder(path).map(drop))
    }

    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.with(|tree| tree.read(path, offset, target))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        self.with(|tree| Ok(tree.size(path)))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        self.with(|tree| Ok(tree.list(path)))
    }
}

/// The clock and randomness of those who come after a crash.
#[derive(Debug)]
pub(super) struct ImageEnv {
    time: AtomicU64,
    random: Mutex<Random>,
}

impl ImageEnv {
    pub(super) fn new(seed: u64) -> Self {
        Self { time: AtomicU64::new(0), random: Mutex::new(Random::new(seed)) }
    }
}

#[async_trait]
impl Env for ImageEnv {
    fn now(&self) -> SystemTime {
        wall_clock(self.elapsed())
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.time.load(Ordering::Relaxed))
    }

    fn random(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).draw()
    }

    /// Lets the others go on once.
    async fn sleep(&self, duration: Duration) {
        self.time.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
        let mut asked = false;
        std::future::poll_fn(|_| match std::mem::replace(&mut asked, true) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        })
        .await;
    }
}
