//! Memory that outlives the process that fills it: a file that lies in memory alone, which another process holds.
//!
//! What is there after a crash is what was written last, whole or not: whoever reads it must verify it.

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::unix::fs::FileExt;

use lastgood_format::{Error, ErrorKind, Result};
use memmap2::{MmapMut, MmapOptions};

/// No page is smaller.
const SMALL_PAGE: usize = 4 << 10;

/// A file in memory. It is there as long as a process has it open or mapped.
///
/// It never becomes shorter, so that no process that has mapped it can be ended by another.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    /// The same memory without the lock, which lasts as long as anything that was mapped from its file.
    unlocked: File,
    name: String,
}

impl SharedMemory {
    /// A new one, empty. `name` is for people.
    ///
    /// # Errors
    /// `Overloaded` if there is no memory or no file descriptor left; `Incompatible` where the system has none.
    #[cfg(target_os = "linux")]
    pub fn create(name: &str) -> Result<Self> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

        let failed = |error: rustix::io::Errno| {
            let error = Error::new(ErrorKind::Overloaded, format!("no shared memory: {error}"));
            error.with_remedy("look at the limits of memory and open files")
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(name, flags).map_err(failed)?);
        fcntl_add_seals(&file, SealFlags::SHRINK).map_err(failed)?;
        let unlocked = file.try_clone().map_err(|error| self::failed("open", name, &error))?;
        Ok(Self { file, unlocked, name: name.to_owned() })
    }

    /// A new one, empty. `name` is for people.
    ///
    /// # Errors
    /// `Incompatible` always: this system has none.
    #[cfg(not(target_os = "linux"))]
    pub fn create(_name: &str) -> Result<Self> {
        Err(Error::new(
            ErrorKind::Incompatible,
            "this system has no memory that outlives a process",
        ))
    }

    /// The path by which other processes of this user open it, while this process lives.
    #[must_use]
    pub fn path(&self) -> String {
        use std::os::fd::AsRawFd;

        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Opens the one at `path`, which another process holds.
    ///
    /// # Errors
    /// `NotFound` if that process has ended; `Denied` if it is another user's; `Invalid` if it is any other file.
    #[cfg(target_os = "linux")]
    pub fn open(path: &str) -> Result<Self> {
        use rustix::fs::{SealFlags, fcntl_get_seals};

        let open = || {
            let opened = OpenOptions::new().read(true).write(true).open(path);
            opened.map_err(|error| failed("open", path, &error))
        };
        let (file, unlocked) = (open()?, open()?);
        // A file on a disk has no seals, and could become shorter while it is mapped.
        if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
            return Err(Error::invalid("the file is no shared memory that keeps its length")
                .with_object(path)
                .with_remedy("leave the path to `lastgood run`, which makes it"));
        }
        Ok(Self { file, unlocked, name: path.to_owned() })
    }

    /// Opens the one at `path`, which another process holds.
    ///
    /// # Errors
    /// `Incompatible` always: this system has none.
    #[cfg(not(target_os = "linux"))]
    pub fn open(_path: &str) -> Result<Self> {
        Self::create("")
    }

    /// Makes this process the only one that may write. False if another one is; it ends with that process, or with this
    /// object and every [`map`](Self::map) of it.
    ///
    /// # Errors
    /// `Unavailable` if the system refuses to say.
    pub fn lock(&self) -> Result<bool> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(failed("lock", &self.name, &error)),
        }
    }

    /// The length in bytes. Most of it may never have been written, and takes no memory.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn bytes(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        metadata.map(|found| found.len()).map_err(|e| failed("look at", &self.name, &e))
    }

    /// Makes it at least `bytes` long.
    ///
    /// # Errors
    /// `Unavailable` if the system refuses.
    pub fn grow(&self, bytes: u64) -> Result<()> {
        match self.bytes()? < bytes {
            true => self.file.set_len(bytes).map_err(|error| failed("grow", &self.name, &error)),
            false => Ok(()),
        }
    }

    /// Gives the memory of `range` back to the system; it reads as zeros then.
    ///
    /// # Errors
    /// `Unavailable` if the system refuses.
    #[cfg(target_os = "linux")]
    pub fn release(&self, range: Range<u64>) -> Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};

        let end = range.end.min(self.bytes()?);
        if range.start >= end {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, range.start, end - range.start)
            .map_err(|error| failed("release a part of", &self.name, &error.into()))
    }

    /// Gives the memory of `range` back to the system.
    ///
    /// # Errors
    /// `Incompatible` always: this system has none.
    #[cfg(not(target_os = "linux"))]
    pub fn release(&self, _range: Range<u64>) -> Result<()> {
        Self::create("").map(drop)
    }

    /// Reads at `offset`.
    ///
    /// # Errors
    /// `Corrupt` if it is too short; `Unavailable`.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(into, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::corrupt("the shared memory is too short").with_object(&self.name)
            }
            _ => failed("read", &self.name, &error),
        })
    }

    /// Writes at `offset`.
    ///
    /// # Errors
    /// `Overloaded` if there is no memory; `Unavailable`.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|error| failed("write", &self.name, &error))
    }

    /// Maps `range`, which begins at a multiple of the page size and is not empty: what is written there is in the
    /// memory at once.
    ///
    /// # Errors
    /// `Invalid` if it reaches beyond the end; `Overloaded` if there is no room for it.
    pub fn map(&self, range: Range<u64>) -> Result<Mapped> {
        let options = self.options(&range)?;
        // SAFETY: the file is sealed against becoming shorter, so that no page of it can vanish. Whoever writes to it
        // holds the lock, and what is read from it without the lock is verified, and written by nobody meanwhile.
        #[expect(unsafe_code, reason = "a mapping is memory that others may write to")]
        let map = unsafe { options.map_mut(&self.file) };
        map.map(|map| Mapped(map).in_huge_pages()).map_err(|error| no_room(&range, &error))
    }

    /// As [`SharedMemory::map`], but what is written there is seen by this process alone: pages are copied when they
    /// are first written to. It does not keep the lock.
    ///
    /// # Errors
    /// As [`SharedMemory::map`].
    pub fn map_private(&self, range: Range<u64>) -> Result<Mapped> {
        let options = self.options(&range)?;
        // SAFETY: as in `map`.
        #[expect(unsafe_code, reason = "a mapping is memory that others may write to")]
        let map = unsafe { options.map_copy(&self.unlocked) };
        map.map(Mapped).map_err(|error| no_room(&range, &error))
    }

    fn options(&self, range: &Range<u64>) -> Result<MmapOptions> {
        let bytes = range.end.checked_sub(range.start).filter(|bytes| *bytes > 0);
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        match bytes {
            Some(bytes) if range.end <= self.bytes()? => {
                let mut options = MmapOptions::new();
                options.offset(range.start).len(bytes);
                Ok(options)
            }
            _ => Err(Error::invalid(format!(
                "bytes {} to {} are no part of the shared memory",
                range.start, range.end
            ))),
        }
    }
}

/// Memory of this process that the system maps in pages: a part of a [`SharedMemory`], or of its own.
#[derive(Debug)]
pub struct Mapped(MmapMut);

impl Mapped {
    /// `bytes` zeros of its own, at least one, in huge pages where the system has them, each of which was touched.
    ///
    /// # Errors
    /// `Overloaded` if there is no memory.
    pub fn zeroed(bytes: usize) -> Result<Self> {
        let map = MmapMut::map_anon(bytes).map_err(|error| no_room(&(0..bytes as u64), &error))?;
        let mut map = Self(map).in_huge_pages();
        match map.populate() {
            Err(error) if error.kind() == ErrorKind::Incompatible => {
                for page in map.0.chunks_mut(SMALL_PAGE) {
                    // Writing through a black box keeps the compiler from dropping the store of a zero.
                    page[0] = std::hint::black_box(0);
                }
            }
            populated => populated?,
        }
        Ok(map)
    }

    fn in_huge_pages(self) -> Self {
        // As good as not done: it is for speed alone.
        #[cfg(target_os = "linux")]
        let _ = self.0.advise(memmap2::Advice::HugePage);
        self
    }

    /// Gives every page memory of its own, as a write to each of them would, but leaves their content. What a private
    /// mapping shows does not change any more when the shared memory does.
    ///
    /// # Errors
    /// `Overloaded` if there is no memory; `Incompatible` if this system cannot do it.
    #[cfg(target_os = "linux")]
    pub fn populate(&self) -> Result<()> {
        self.0.advise(memmap2::Advice::PopulateWrite).map_err(|error| {
            let kind = match error.raw_os_error() {
                Some(code) if code == rustix::io::Errno::INVAL.raw_os_error() => {
                    ErrorKind::Incompatible
                }
                _ => ErrorKind::Overloaded,
            };
            Error::new(kind, format!("no memory for {} bytes: {error}", self.0.len()))
        })
    }

    /// Gives every page memory of its own.
    ///
    /// # Errors
    /// `Incompatible` always: this system cannot do it.
    #[cfg(not(target_os = "linux"))]
    pub fn populate(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Incompatible, "this system cannot populate memory"))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Mapped {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn failed(what: &str, name: &str, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull => ErrorKind::Overloaded,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("cannot {what} the shared memory: {error}")).with_object(name)
}

fn no_room(range: &Range<u64>, error: &io::Error) -> Error {
    let bytes = range.end - range.start;
    Error::new(ErrorKind::Overloaded, format!("{bytes} bytes cannot be mapped: {error}"))
}
