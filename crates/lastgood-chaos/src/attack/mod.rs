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
pub mod worker;
