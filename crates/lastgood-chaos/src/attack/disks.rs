//! Disks that misbehave: one that kills its process, and two that forget to sync.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lastgood_store::disk::DiskEntry;
use lastgood_store::{Disk, RealDisk};
use rustix::process::{Signal, getpid, kill_process};

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaw {
    /// `kill -9` this process at the operation of this number: before it is done if the number is
    /// even, after it if it is odd.
    pub kill_at: Option<u64>,
    /// Files are never synced.
    pub no_file_sync: bool,
    /// Folders are never synced.
    pub no_folder_sync: bool,
}

/// The real disk with a flaw.
#[derive(Debug, Default)]
pub struct FlawedDisk {
    flaw: Flaw,
    calls: AtomicU64,
}

impl FlawedDisk {
    /// The real disk with `flaw`.
    #[must_use]
    pub fn new(flaw: Flaw) -> Self {
        Self { flaw, calls: AtomicU64::new(0) }
    }

    /// Twice the number of operations so far: the numbers at which a kill can be asked for.
    #[must_use]
    pub fn points(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn at<T>(&self, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let point = self.calls.fetch_add(2, Ordering::Relaxed);
        self.kill_if(point);
        let done = operation();
        self.kill_if(point + 1);
        done
    }

    fn kill_if(&self, point: u64) {
        if self.flaw.kill_at == Some(point) {
            // The signal ends the process before the call returns.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

impl Disk for FlawedDisk {
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        self.at(|| RealDisk.create(path, parts))
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.at(|| RealDisk.append(path, bytes))
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.at(|| if self.flaw.no_file_sync { Ok(()) } else { RealDisk.sync_file(path) })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.at(|| RealDisk.link(from, to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.at(|| RealDisk.unlink(path))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.at(|| RealDisk.create_folder(path))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.at(|| if self.flaw.no_folder_sync { Ok(()) } else { RealDisk.sync_folder(path) })
    }

    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.at(|| RealDisk.read(path, offset, target))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        self.at(|| RealDisk.size(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        self.at(|| RealDisk.list(path))
    }
}
