//! Every state that a crash can leave on a disk, over recordings of saves of several ranks.
//!
//! Ranks save through the real local store onto a disk that is made of memory and writes down what is done to
//! it. At every point of such a recording, everything that was not synced by then may be there or not, each
//! effect alone: each of these states becomes a disk, is opened by the real code, and is judged by what had
//! been told by then. `lastgood-chaos enumerate --recording N` repeats one recording.

mod disk;
mod enumerate;
mod judge;
mod replay;
mod scenario;
mod states;
mod torn;
mod tree;
mod turns;

pub use enumerate::{Counts, Found, Report, enumerate, recording};
