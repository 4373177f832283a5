//! What direct reads and writes share: memory from which a device takes bytes by itself, or into which it puts them.

use std::fs::File;
use std::io;
use std::sync::Mutex;

use memmap2::MmapMut;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// How much is read or written at once.
pub(super) const STRIDE: usize = 4 << 20;
/// A stride that begins anywhere lies in so many bytes that begin where a block does.
const ROOM: usize = STRIDE + ALIGN;
/// Address, offset and length of a direct transfer are multiples of it. No device has larger blocks.
pub(super) const ALIGN: usize = 4096;

#[cfg(target_os = "linux")]
pub(super) fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

/// Elsewhere there is no such flag.
#[cfg(not(target_os = "linux"))]
pub(super) fn set_direct(_: &File, _: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// True if a transfer does not fit the blocks of the device, or the file system cannot do it.
pub(super) fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// Memory for direct reads and writes that nobody uses.
static SPARE: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());
/// As much as the threads that read or write at a time have.
const SPARE_MAX: usize = 8;
const HUGE_PAGE: usize = 2 << 20;

/// Memory with room for a stride: huge pages where the system has some, since a device is asked
/// once for each stretch of memory, and small pages are as many stretches.
pub(super) fn take_memory() -> io::Result<MmapMut> {
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

pub(super) fn give_memory(memory: MmapMut) {
    if let Ok(mut spare) = SPARE.try_lock()
        && spare.len() < SPARE_MAX
    {
        spare.push(memory);
    }
}

/// The room in `memory`, which begins where a huge page does.
pub(super) fn room(memory: &mut MmapMut) -> &mut [u8] {
    let begin = memory.as_ptr().align_offset(HUGE_PAGE);
    &mut memory[begin..begin + ROOM]
}
