//! Attacks on lastgood.
//!
//! | module | what it does |
//! |---|---|
//! | [`attack`] | real processes, file systems and bytes: `kill -9`, power cuts, flipped bits, full disks |

pub mod attack;
