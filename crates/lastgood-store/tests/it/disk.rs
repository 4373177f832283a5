//! A disk that writes down what it does, and fails or meets a stranger when it is told to.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lastgood_store::disk::DiskEntry;
use lastgood_store::{Disk, RealDisk};

/// A file operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create(PathBuf),
    SyncFile(PathBuf),
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
    CreateFolder(PathBuf),
    SyncFolder(PathBuf),
    Read(PathBuf),
    Size(PathBuf),
    List(PathBuf),
}

/// An operation that was done, or tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) op: Op,
    /// It may have had its effect, even if it failed.
    pub(crate) happened: bool,
    pub(crate) succeeded: bool,
}

/// When an operation that fails does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    /// A file has half of its bytes.
    Midway,
    After,
}

type Interference = Box<dyn Fn(&Op) -> io::Result<()> + Send + Sync>;

/// The real disk, watched.
#[derive(Default)]
pub(crate) struct Watched {
    log: Mutex<Vec<Done>>,
    /// The number of the operation that fails, with which error, and when.
    failing: Mutex<Option<(usize, i32, Moment)>>,
    /// What a stranger does before an operation; an error is that of the operation.
    stranger: Mutex<Option<(usize, Interference)>>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl Watched {
    pub(crate) fn log(&self) -> Vec<Done> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn forget(&self) {
        self.log.lock().unwrap().clear();
    }

    /// Lets operation `at`, counted from 0, fail with the error of the operating system.
    pub(crate) fn fail(&self, at: usize, errno: i32, moment: Moment) {
        *self.failing.lock().unwrap() = Some((at, errno, moment));
    }

    /// Lets `stranger` act before operation `at`, and whenever it is asked again.
    pub(crate) fn interfere(
        &self,
        at: usize,
        stranger: impl Fn(&Op) -> io::Result<()> + Send + Sync + 'static,
    ) {
        *self.stranger.lock().unwrap() = Some((at, Box::new(stranger)));
    }

    /// From now on nothing fails and nobody else is there.
    pub(crate) fn heal(&self) {
        *self.failing.lock().unwrap() = None;
        *self.stranger.lock().unwrap() = None;
    }

    fn at<T>(&self, op: Op, act: impl FnOnce(Option<Moment>) -> io::Result<T>) -> io::Result<T> {
        let number = self.log.lock().unwrap().len();
        let failing = self.failing.lock().unwrap().filter(|(at, ..)| *at == number);
        let met = match &*self.stranger.lock().unwrap() {
            Some((at, stranger)) if number >= *at => stranger(&op),
            _ => Ok(()),
        };
        let (happened, done) = match (met, failing) {
            (Err(error), _) => (false, Err(error)),
            (Ok(()), Some((_, errno, Moment::Before))) => {
                (false, Err(io::Error::from_raw_os_error(errno)))
            }
            (Ok(()), Some((_, errno, moment))) => {
                let _ = act(Some(moment));
                (true, Err(io::Error::from_raw_os_error(errno)))
            }
            (Ok(()), None) => {
                let done = act(None);
                (done.is_ok(), done)
            }
        };
        let succeeded = done.is_ok();
        self.log.lock().unwrap().push(Done { op, happened, succeeded });
        done
    }
}

impl Disk for Watched {
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        self.at(Op::Create(path.into()), |moment| {
            let halves: Vec<Bytes> =
                parts.iter().map(|part| part.slice(..part.len() / 2)).collect();
            RealDisk.create(path, if moment == Some(Moment::Midway) { &halves } else { parts })
        })
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        RealDisk.append(path, bytes)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.at(Op::SyncFile(path.into()), |_| RealDisk.sync_file(path))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.at(Op::Link(from.into(), to.into()), |_| RealDisk.link(from, to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.at(Op::Unlink(path.into()), |_| RealDisk.unlink(path))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.at(Op::CreateFolder(path.into()), |_| RealDisk.create_folder(path))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.at(Op::SyncFolder(path.into()), |_| RealDisk.sync_folder(path))
    }

    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.at(Op::Read(path.into()), |_| RealDisk.read(path, offset, target))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        self.at(Op::Size(path.into()), |_| RealDisk.size(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        self.at(Op::List(path.into()), |_| RealDisk.list(path))
    }

    fn age(&self, path: &Path) -> io::Result<Duration> {
        RealDisk.age(path)
    }
}

/// What a cut of power may take after `log`: files whose bytes, and names of files and folders which,
/// were not synced after they were made.
pub(crate) fn unsynced(log: &[Done]) -> BTreeSet<PathBuf> {
    let mut unsynced = BTreeSet::new();
    for Done { op, happened, succeeded } in log {
        match op {
            Op::Create(path) if *happened => {
                unsynced.insert(path.clone());
            }
            Op::SyncFile(path) if *succeeded => {
                unsynced.remove(path);
            }
            // A name is as safe as its folder and its bytes, whatever becomes of the other name.
            Op::Link(from, to) if *happened => {
                assert!(!unsynced.contains(from), "{} is linked before it is synced", to.display());
                unsynced.insert(to.clone());
            }
            Op::Unlink(path) if *happened => {
                unsynced.remove(path);
            }
            Op::CreateFolder(path) if *happened => {
                unsynced.insert(path.clone());
            }
            Op::SyncFolder(folder) if *succeeded => {
                unsynced.retain(|path| path.parent() != Some(folder));
            }
            _ => {}
        }
    }
    unsynced
}
