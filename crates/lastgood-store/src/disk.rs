//! The file operations below the local store, one by one.
//!
//! [`LocalStore`](crate::LocalStore) does nothing to a file system but through [`Disk`], so that a
//! test can record every operation, replay what a power cut may leave of them, stop a process at any
//! of them, fail any of them, and show that leaving one out is noticed.

mod direct;
mod read;
mod write;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskEntry {
    /// The name in its folder.
    pub name: OsString,
    /// True if it is a folder.
    pub is_folder: bool,
    /// The size of a file.
    pub bytes: u64,
}

/// The file operations that the local store is made of. Paths are absolute.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Creates the file `path` with `parts`, one after the other; fails if it exists. Nothing is
    /// durable after it.
    ///
    /// # Errors
    /// Those of the file system. The file may exist with some of the bytes.
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()>;

    /// Appends `bytes` to the file `path`, which exists. Nothing is durable after it.
    ///
    /// # Errors
    /// Those of the file system. Some of the bytes may have been appended.
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Makes the bytes of the file durable. After an error the file must not be used, nor synced
    /// again: the kernel may have dropped what it could not write, and then says that all is well.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_file(&self, path: &Path) -> io::Result<()>;

    /// Gives the file `from` the second name `to`; fails with `AlreadyExists` if there is one.
    ///
    /// # Errors
    /// Those of the file system.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes the name `path` of a file.
    ///
    /// # Errors
    /// Those of the file system.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Creates the folder `path`; fails with `AlreadyExists` if there is one.
    ///
    /// # Errors
    /// Those of the file system.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in the folder durable.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Fills `target` from `offset` of the file; `UnexpectedEof` if it ends before, `NotFound` if there
    /// is something else than a file.
    ///
    /// # Errors
    /// Those of the file system.
    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()>;

    /// As [`Disk::read`], of what other processes read as well: it is to be in the page cache for them.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn read_shared(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.read(path, offset, target)
    }

    /// The size of the file, or `None` if there is none, or something else than a file.
    ///
    /// # Errors
    /// Those of the file system.
    fn size(&self, path: &Path) -> io::Result<Option<u64>>;

    /// The files and folders in the folder, in no order; nothing else that may be there, such as
    /// symbolic links.
    ///
    /// # Errors
    /// Those of the file system.
    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>>;

    /// How long ago the file was written to.
    ///
    /// # Errors
    /// Those of the file system; a time that is still to come is one.
    fn age(&self, path: &Path) -> io::Result<Duration> {
        let modified = fs::symlink_metadata(path)?.modified()?;
        SystemTime::now().duration_since(modified).map_err(io::Error::other)
    }
}

/// The files that this process has created or appended to, and not synced yet. An error of writing them back may be
/// told to nobody but to a file that was open when it happened, so they are kept open until then.
static UNSYNCED: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());

fn unsynced() -> MutexGuard<'static, BTreeMap<PathBuf, File>> {
    UNSYNCED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        let file = write::create(path, parts)?;
        unsynced().insert(path.to_owned(), file);
        Ok(())
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW.bits() as i32;
        let mut file = OpenOptions::new().append(true).custom_flags(flags).open(path)?;
        let written = file.write_all(bytes);
        unsynced().insert(path.to_owned(), file);
        written
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let created = unsynced().remove(path);
        match created {
            Some(file) => file.sync_all(),
            None => File::open(path)?.sync_all(),
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        unsynced().remove(path);
        fs::remove_file(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        read::fill(&read::open(path)?, offset, target)
    }

    fn read_shared(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        read::fill_shared(&read::open(path)?, offset, target)
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
            Ok(_) => Ok(None),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(meta) if meta.is_dir() || meta.is_file() => found.push(DiskEntry {
                    name: entry.file_name(),
                    is_folder: meta.is_dir(),
                    bytes: meta.len(),
                }),
                Ok(_) => {}
                // Somebody removed it meanwhile.
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

pub(crate) fn is_absent(error: &io::Error) -> bool {
    // A symbolic link that was not followed, or a socket, is no file either.
    let code = error.raw_os_error().unwrap_or_default();
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || [Errno::LOOP, Errno::NXIO].iter().any(|errno| errno.raw_os_error() == code)
}
