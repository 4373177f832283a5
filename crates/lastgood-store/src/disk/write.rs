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
use std::sync::Mutex;

use bytes::Bytes;
use memmap2::MmapMut;
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// Files of fewer bytes go through the page cache.
const DIRECT_MIN: usize = 1 << 20;
/// How much is written at once.
const STRIDE: usize = 4 << 20;
/// Address, offset and length of a direct write are multiples of it. No device has larger blocks.
const ALIGN: usize = 4096;

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

#[cfg(target_os = "linux")]
fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

/// Elsewhere there is no such flag.
#[cfg(not(target_os = "linux"))]
fn set_direct(_: &File, _: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
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

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// Writes `parts` to `file`, which is set to direct writes. The bytes behind the last whole block go
/// through the page cache.
fn write_direct(file: &File, parts: &[Bytes]) -> io::Result<()> {
    let mut file = Direct { file, is_direct: true };
    let mut memory = take_memory()?;
    let room = room(&mut memory);
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

/// Memory for direct writes that nobody uses: as much as there are writers at a time.
static SPARE: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());
const SPARE_MAX: usize = 4;
const HUGE_PAGE: usize = 2 << 20;

/// Memory with room for [`STRIDE`] bytes: huge pages where the system has some, since a device is asked
/// once for each stretch of memory, and small pages are as many stretches.
fn take_memory() -> io::Result<MmapMut> {
    // Nobody waits here, least of all a forked child for the owner of a lock in its parent.
    if let Some(spare) = SPARE.try_lock().ok().and_then(|mut spare| spare.pop()) {
        return Ok(spare);
    }
    let memory = MmapMut::map_anon(STRIDE + HUGE_PAGE)?;
    // It is for speed alone.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

fn give_memory(memory: MmapMut) {
    if let Ok(mut spare) = SPARE.try_lock()
        && spare.len() < SPARE_MAX
    {
        spare.push(memory);
    }
}

/// The room in `memory`, which begins where a huge page does.
fn room(memory: &mut MmapMut) -> &mut [u8] {
    let begin = memory.as_ptr().align_offset(HUGE_PAGE);
    &mut memory[begin..begin + STRIDE]
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
