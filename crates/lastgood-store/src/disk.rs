//! The file operations below the local store, one by one.
//!
//! [`LocalStore`](crate::LocalStore) does nothing to a file system but through [`Disk`], so that a
//! test can record every operation, replay what a power cut may leave of them, stop a process at any
//! of them, fail any of them, and show that leaving one out is noticed.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

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

    /// Makes the bytes of the file durable. After an error the file must not be used: the kernel may
    /// have dropped what it could not write.
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

    /// Fills `target` from `offset` of the file; `UnexpectedEof` if it ends before.
    ///
    /// # Errors
    /// Those of the file system.
    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()>;

    /// The size of the file, or `None` if there is none.
    ///
    /// # Errors
    /// Those of the file system.
    fn size(&self, path: &Path) -> io::Result<Option<u64>>;

    /// What is in the folder, in no order.
    ///
    /// # Errors
    /// Those of the file system.
    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>>;
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        write_all(&mut file, &mut slices)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn read(&self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<()> {
        File::open(path)?.read_exact_at(target, offset)
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
                Ok(meta) => found.push(DiskEntry {
                    name: entry.file_name(),
                    is_folder: meta.is_dir(),
                    bytes: meta.len(),
                }),
                // Somebody removed it meanwhile.
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Writes every slice, however little the kernel takes at a time.
fn write_all(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    const SLICES_MAX: usize = 1024;
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let count = slices.len().min(SLICES_MAX);
        match file.write_vectored(&slices[..count]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
