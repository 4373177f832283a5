//! Planted bugs, which the simulation and the enumerator must find: an attack that finds nothing proves
//! nothing before it has been seen to find something.

mod bugs;
mod disks;
mod hunt;
mod judges;
mod stores;

pub use bugs::{Bug, Finder, all};
pub use hunt::{Hunted, hunt};
