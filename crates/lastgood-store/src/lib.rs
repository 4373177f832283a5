//! The only code of lastgood that touches object stores, local disk, the clock and entropy.
//!
//! [`Store`] is a flat namespace of immutable objects with put-if-absent; [`Env`] is the clock and
//! randomness. Everything that decides (ledger, commit, fencing) is written against these two, so
//! that a seeded scheduler can run it.

#[cfg(feature = "cloud")]
mod cloud;
pub mod conformance;
pub mod disk;
pub mod env;
pub mod fault;
mod hedge;
mod local;
mod memory;
mod open;
mod retry;
mod shared;
pub mod store;

#[cfg(feature = "cloud")]
pub use cloud::CloudStore;

pub use disk::{Disk, RealDisk};
pub use env::{Env, SystemEnv};
pub use fault::{FaultStore, Faults};
pub use hedge::{HedgePolicy, HedgedStore, Hedges};
pub use lastgood_format::{Error, ErrorKind, Result};
pub use local::LocalStore;
pub use memory::MemoryStore;
pub use open::open_url;
pub use retry::{RetryPolicy, RetryStore};
pub use shared::{Mapped, SharedMemory};
pub use store::{ObjectMeta, Payload, Put, Store, Transfers};
