//! Attacks on real processes, file systems and bytes.
//!
//! Each attack says what it did and what it found, and fails on the first broken promise.

pub mod bit_flips;
pub mod cli_flips;
pub mod disks;
pub mod full_disk;
pub mod kills;
pub mod power_cuts;
pub mod state;
pub mod volume;
pub mod worker;

use std::env;
use std::path::PathBuf;

/// A file system in memory if there is one, for an attack that is not on a disk: what a process has written
/// survives its end there as well, and nothing waits for a sync.
fn memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { env::temp_dir() }
}
