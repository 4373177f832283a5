//! Disks with a bug: the store asks for the right thing, and another is done.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lastgood_store::Disk;
use lastgood_store::disk::DiskEntry;

/// What is done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slip {
    /// Files are not synced.
    NoFileSync,
    /// Folders are not synced.
    NoFolderSync,
    /// A folder is synced before its new name is there.
    FolderSyncFirst,
    /// A file is synced after it has got its name.
    LinkFirst,
    /// A name that exists is given to the new file, as a rename would.
    Rename,
    /// The name of a new folder is not synced.
    NewFolderUnsynced,
    /// What is found is not synced.
    FoundUnsynced,
    /// A sync that failed is taken for done.
    FailedSync,
}

/// A disk on which something is done wrongly.
#[derive(Debug)]
pub(super) struct Slipping {
    inner: Arc<dyn Disk>,
    slip: Slip,
    last: Mutex<Last>,
}

/// What was done last, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Last {
    #[default]
    Other,
    /// A folder got a new name, whose sync was done before.
    Linked(PathBuf),
    NewFolder,
    Found,
}

impl Slipping {
    pub(super) fn over(inner: Arc<dyn Disk>, slip: Slip) -> Arc<dyn Disk> {
        Arc::new(Self { inner, slip, last: Mutex::default() })
    }

    /// Notes what is done, and gives what was done before it.
    fn note(&self, now: Last) -> Last {
        std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), now)
    }
}

impl Disk for Slipping {
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        self.note(Last::Other);
        self.inner.create(path, parts)
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.inner.append(path, bytes)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        match self.slip {
            Slip::NoFileSync | Slip::LinkFirst => Ok(()),
            Slip::FailedSync => self.inner.sync_file(path).or(Ok(())),
            _ => self.inner.sync_file(path),
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let parent = to.parent().unwrap_or(to);
        match self.slip {
            Slip::FolderSyncFirst => {
                self.inner.sync_folder(parent)?;
                self.note(Last::Linked(parent.to_owned()));
                self.inner.link(from, to)
            }
            Slip::LinkFirst => {
                self.inner.link(from, to)?;
                self.inner.sync_file(to)
            }
            Slip::Rename => match self.inner.link(from, to) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.inner.unlink(to)?;
                    self.inner.link(from, to)
                }
                linked => linked,
            },
            _ => self.inner.link(from, to),
        }
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.inner.unlink(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let created = self.inner.create_folder(path);
        self.note(if created.is_ok() { Last::NewFolder } else { Last::Other });
        created
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let left_out = match (self.slip, self.note(Last::Other)) {
            (Slip::NoFolderSync, _)
            | (Slip::NewFolderUnsynced, Last::NewFolder)
            | (Slip::FoundUnsynced, Last::Found) => true,
            (Slip::FolderSyncFirst, Last::Linked(folder)) => folder == path,
            _ => false,
        };
        if left_out { Ok(()) } else { self.inner.sync_folder(path) }
    }

    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.inner.read(path, offset, target)
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        let found = self.inner.size(path);
        self.note(if matches!(found, Ok(Some(_))) { Last::Found } else { Last::Other });
        found
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        self.inner.list(path)
    }
}
