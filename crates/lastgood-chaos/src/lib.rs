//! Attacks on lastgood.
//!
//! | module | what it does |
//! |---|---|
//! | [`sim`] | the real ledger and commit code under a seeded scheduler, over a store full of faults |
//! | [`crash`] | every state that a crash can leave on a disk, over recordings of saves |
//! | [`journal`] | the writer of the journal, with a crash at every operation |
//! | [`planted`] | bugs that the two above must find |
//! | [`ranks`] | ranks that save tiny checkpoints through that code, on any store |
//! | [`setting`] | what is attacked: the real code, or the real code with a planted bug |
//! | [`violation`] | the promises, by name |
//! | [`random`] | numbers that are a function of a seed |
//! | [`failure`] | why an attack ended |
//! | [`attack`] | real processes, file systems and bytes: `kill -9`, power cuts, flipped bits, full disks |

pub mod attack;
pub mod crash;
pub mod failure;
pub mod journal;
pub mod planted;
pub mod random;
pub mod ranks;
mod remembering;
pub mod setting;
pub mod sim;
pub mod violation;
