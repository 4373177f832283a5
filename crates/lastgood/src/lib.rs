//! lastgood keeps the state of a running model recoverable.
//!
//! It captures sharded state without stopping the step, commits it all or nothing to any object
//! store, and proves every byte on the way back.
//!
//! | module | what it does |
//! |---|---|
//! | [`state`] | names what is saved and where it is restored to |
//! | [`save`] | capture, chunks, packs, and the thread that writes them |
//! | [`commit`] | turns the shard indexes of all ranks into one checkpoint |
//! | [`ledger`] | the run's append-only list of decisions |
//! | [`attempt`] | starts incarnations of a run and fences the old ones |
//! | [`journal`] | the run's events, for replay |
//! | [`replay`] | re-executing a part of a run beside what was recorded of it |
//! | [`policy`] | when to save |
//! | [`preflight`] | whether a restore would succeed, and compute as before |
//! | [`lineage`] | what led to a tensor, as far as it is recorded |
//! | [`restore`] | chooses a checkpoint, plans, reads, verifies, places |
//! | [`certificate`] | what a replay came to, signed |
//! | [`safetensors`] | files of tensors in and out |
//! | `candle` | models of candle as components (feature `candle`) |
//!
//! [`Repository`] and [`Run`] put them together.

pub mod attempt;
pub mod branch;
#[cfg(feature = "candle")]
pub mod candle;
pub mod certificate;
pub mod commit;
mod io;
pub mod journal;
pub mod ledger;
pub mod lineage;
#[doc(hidden)]
pub mod objects;
pub mod policy;
pub mod preflight;
mod process;
pub mod replay;
mod repository;
pub mod restore;
mod run;
pub mod safetensors;
pub mod save;
pub mod state;
pub mod tier;

pub use lastgood_format::{Dtype, Error, ErrorKind, Hash, Result, RunName};
pub use repository::Repository;
pub use run::{Heartbeat, Last, Run, RunOptions, mark};
