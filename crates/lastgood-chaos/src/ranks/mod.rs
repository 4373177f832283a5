//! Ranks that train nothing and save tiny checkpoints, through the real ledger and commit code.
//!
//! A rank does what the engine's writing thread does: it puts its pack, publishes its shard index and
//! asks for the commit until it is there. It runs on any store and clock.

pub mod content;
mod rank;
mod witness;

pub use rank::{Ended, Order, Rank, run};
pub use witness::{Told, Witness};
