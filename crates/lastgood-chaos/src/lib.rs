//! Attacks on lastgood.
//!
//! | module | what it does |
//! |---|---|
//! | [`failure`] | why an attack ended |
//! | [`attack`] | real processes, file systems and bytes: `kill -9`, power cuts, flipped bits, full disks |

pub mod attack;
pub mod failure;
