//! Reading a range of a file: from the page cache what is there, other large ranges past it.
//!
//! A checkpoint is read once, after a crash, and in the page cache it would take the place of what training reads.
//! Threads that read parts of one file through the cache also hold each other up: 4 of them were 2.5 times as slow
//! as 4 that read past it (docs/decisions/2026-11-29-io.md).

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Advice, OFlags, fadvise};

use super::direct::{ALIGN, STRIDE, give_memory, is_invalid, room, set_direct, take_memory};

/// Ranges of fewer bytes go through the page cache.
const DIRECT_MIN: usize = 1 << 20;

/// Opens the file `path` to be read; `NotFound` if there is something else than a file.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Neither a symbolic link, which the store did not make, nor the wait for a pipe's other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Fills `target` from `offset` of the file, through the page cache.
pub(super) fn fill_shared(file: &File, offset: u64, target: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(target, offset)
}

/// Fills `target` from `offset` of the file.
pub(super) fn fill(file: &File, mut offset: u64, mut target: &mut [u8]) -> io::Result<()> {
    // Nothing but what is asked for: whoever reads parts of a file would get as much again, read ahead.
    let _ = fadvise(file, 0, None, Advice::Random);
    if target.len() < DIRECT_MIN {
        return file.read_exact_at(target, offset);
    }
    let mut file = Direct { file, is_direct: false, is_possible: true };
    let mut memory = take_memory()?;
    let room = room(&mut memory);
    while !target.is_empty() {
        let bytes = target.len().min(STRIDE);
        let (part, rest) = target.split_at_mut(bytes);
        if !file.read(room, offset, part)? {
            file.set_direct(false)?;
            file.file.read_exact_at(part, offset)?;
        }
        (offset, target) = (offset + bytes as u64, rest);
    }
    give_memory(memory);
    Ok(())
}

/// A file that is read past the page cache for as long as that is possible.
struct Direct<'f> {
    file: &'f File,
    is_direct: bool,
    is_possible: bool,
}

impl Direct<'_> {
    fn set_direct(&mut self, direct: bool) -> io::Result<()> {
        if self.is_direct != direct {
            set_direct(self.file, direct)?;
            self.is_direct = direct;
        }
        Ok(())
    }

    /// Fills `part` past the page cache, through `room`; false if it is better, or only possible, to read through the
    /// cache.
    fn read(&mut self, room: &mut [u8], offset: u64, part: &mut [u8]) -> io::Result<bool> {
        if !self.is_possible {
            return Ok(false);
        }
        self.set_direct(false)?;
        if is_cached(self.file, offset, part.len()) {
            return Ok(false);
        }
        // A file system that cannot do it refuses here.
        self.is_possible = self.set_direct(true).is_ok();
        if !self.is_possible {
            return Ok(false);
        }
        let skip = (offset % ALIGN as u64) as usize;
        let begin = offset - skip as u64;
        let wanted = skip + part.len();
        let mut have = 0;
        while have < wanted {
            let into = &mut room[have..wanted.next_multiple_of(ALIGN)];
            match self.file.read_at(into, begin + have as u64) {
                Ok(bytes) => {
                    have += bytes;
                    // The end of the file; what is missing then is told by a plain read.
                    if have < wanted && (bytes == 0 || bytes % ALIGN != 0) {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Larger blocks than any that we know, or a file system that promises what it cannot do.
                Err(error) if is_invalid(&error) => {
                    self.is_possible = false;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        part.copy_from_slice(&room[skip..wanted]);
        Ok(true)
    }
}

/// True if the page cache has the bytes, as far as one of them tells that is chosen at random: to look may bring its
/// page into the cache, which must not speak for the others the next time. True also where nobody can tell.
#[cfg(target_os = "linux")]
fn is_cached(file: &File, offset: u64, bytes: usize) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    let chosen = getrandom::u32().unwrap_or_default() as usize % bytes;
    let mut byte = [0];
    let into = &mut [io::IoSliceMut::new(&mut byte)];
    let found = preadv2(file, into, offset + chosen as u64, ReadWriteFlags::NOWAIT);
    found != Err(Errno::AGAIN)
}

/// Elsewhere nobody can tell.
#[cfg(not(target_os = "linux"))]
fn is_cached(_: &File, _: u64, _: usize) -> bool {
    true
}
