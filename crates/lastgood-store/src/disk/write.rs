//! Writing a new file; a large one past the page cache, where the file system lets us.
//!
//! What a checkpoint writes is read again after a crash, or never. In the page cache it would take the
//! place of what training reads, and each page costs a copy and memory that the kernel must find, in a
//! virtual machine from its host. So a large file is copied piece by piece into one small buffer, from
//! which the device takes it by itself (docs/decisions/2026-11-28-direct-writes.md).

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::num::NonZero;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{Advice, fadvise};

use super::direct::{ALIGN, STRIDE, give_memory, is_invalid, room, set_direct, take_memory};

/// Files of fewer bytes go through the page cache.
const DIRECT_MIN: usize = 1 << 20;

/// Creates the file `path` with `parts`, one after the other; fails if it exists.
pub(super) fn create(path: &Path, parts: &[Bytes]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let bytes: usize = parts.iter().map(Bytes::len).sum();
    // A file system that cannot do it refuses here, as some FUSE ones do.
    if bytes >= DIRECT_MIN && set_direct(&file, true).is_ok() {
        write_direct(&file, parts)?;
    } else {
        write_buffered(&mut file, parts)?;
    }
    Ok(file)
}

/// A file that is written to past the page cache for as long as that goes well.
struct Direct<'f> {
    file: &'f File,
    is_direct: bool,
}

impl Direct<'_> {
    /// Goes on through the page cache, which takes any address and length.
    fn stop(&mut self) -> io::Result<()> {
        if self.is_direct {
            set_direct(self.file, false)?;
            self.is_direct = false;
        }
        Ok(())
    }

    /// Writes all of `bytes`, however little the kernel takes at a time.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    if written % ALIGN != 0 {
                        self.stop()?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Larger blocks than any that we know, or a file system that promises what it cannot do.
                Err(error) if self.is_direct && is_invalid(&error) => self.stop()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Writes `parts` to `file`, which is set to direct writes. The bytes behind the last whole block go
/// through the page cache.
fn write_direct(file: &File, parts: &[Bytes]) -> io::Result<()> {
    let mut file = Direct { file, is_direct: true };
    let mut memory = take_memory()?;
    let room = &mut room(&mut memory)[..STRIDE];
    let mut filled = 0;
    for part in parts {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(STRIDE - filled));
            room[filled..filled + now.len()].copy_from_slice(now);
            filled += now.len();
            rest = later;
            if filled == STRIDE {
                file.write(room)?;
                filled = 0;
            }
        }
    }
    let (blocks, tail) = room[..filled].split_at(filled - filled % ALIGN);
    file.write(blocks)?;
    file.stop()?;
    file.write(tail)?;
    give_memory(memory);
    Ok(())
}

/// Writes every part, however little the kernel takes at a time.
///
/// The kernel would leave a file alone until its sync, and the disk idle until then. So each stride of a
/// large file is handed to the disk as soon as it is written: that is what this advice does to pages
/// that are dirty; they stay in the cache (docs/decisions/2026-11-24-early-writeback.md).
fn write_buffered(file: &mut File, parts: &[Bytes]) -> io::Result<()> {
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
