//! The file operations below the local store, one by one.
//!
//! [`LocalStore`](crate::LocalStore) does nothing to a file system but through [`Disk`], so that a
//! test can record every operation, replay what a power cut may leave of them, stop a process at any
//! of them, fail any of them, and show that leaving one out is noticed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::num::NonZero;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{Advice, OFlags, fadvise};
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

/// The files that this process has created and not synced yet. An error of writing them back may be
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
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        write_all(&mut file, parts)?;
        unsynced().insert(path.to_owned(), file);
        Ok(())
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
        // Neither a symbolic link, which the store did not make, nor the wait for a pipe's other end.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        file.read_exact_at(target, offset)
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

/// How much is written before the kernel is told to begin with it.
const STRIDE: usize = 4 << 20;

/// Writes every part, however little the kernel takes at a time.
///
/// The kernel would leave a file alone until its sync, and the disk idle until then. So each stride of a
/// large file is handed to the disk as soon as it is written: that is what this advice does to pages
/// that are dirty; they stay in the cache. It made puts of 64 MiB twice as fast
/// (docs/decisions/2026-11-24-early-writeback.md).
fn write_all(file: &mut File, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        parts.iter().flat_map(|part| part.chunks(STRIDE)).map(IoSlice::new).collect();
    let mut slices = slices.as_mut_slice();
    let (mut written, mut handed_on) = (0, 0);
    while !slices.is_empty() {
        match file.write_vectored(&slices[..stride(slices)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => {
                IoSlice::advance_slices(&mut slices, bytes);
                written += bytes as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if written - handed_on >= STRIDE as u64 {
            // Where it is refused, the sync does all of it.
            let _ = fadvise(&*file, handed_on, NonZero::new(written - handed_on), Advice::DontNeed);
            handed_on = written;
        }
    }
    Ok(())
}

/// How many slices make about one stride; at least one, and no more than the kernel takes.
fn stride(slices: &[IoSlice<'_>]) -> usize {
    const SLICES_MAX: usize = 1024;
    let mut bytes = 0;
    let fits = slices.iter().take(SLICES_MAX).take_while(|slice| {
        bytes += slice.len();
        bytes <= STRIDE
    });
    fits.count().max(1)
}
