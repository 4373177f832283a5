//! The real ledger and commit code, run by a seeded scheduler over a store full of faults.
//!
//! One thread, virtual time, and every call to the store a point at which somebody else may go on.
//! What a seed does is a function of the seed: `lastgood-chaos simulate --seed N` repeats it with a
//! trace.

mod bystanders;
pub mod check;
mod coverage;
mod objects;
mod play;
mod report;
mod scheduler;
mod store;
mod story;
mod trace;

pub use coverage::{Coverage, Features};
pub use play::{Played, play};
pub use report::{Failed, Report, simulate};
