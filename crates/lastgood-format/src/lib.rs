//! The bytes of a lastgood repository.
//!
//! Everything here is a pure function: no I/O, no clock, no randomness, no async. The normative
//! description is `docs/FORMAT.md`; where this crate and that page disagree, one of them is a bug.
//!
//! | module | object |
//! |---|---|
//! | [`key`] | where each object stands in a repository |
//! | [`sealed`] | JSON objects that carry their own hash (descriptor, ledger entry, ledger head) |
//! | [`descriptor`] | `lastgood.json` |
//! | [`ledger`] | one decision of a run |
//! | [`manifest`] | one checkpoint |
//! | [`index`] | one rank's tensors, shards and chunks of one save |
//! | [`pack`] | many encoded chunks |
//! | [`chunk`] | codecs of one chunk |
//! | [`journal`] | the events of a run: frames, segments, and what an event says |
//! | [`fingerprint`] | sums that identify a tensor however it is cut into shards |
//! | [`layout`] | arithmetic on n-dimensional boxes: intersection, runs of bytes, coverage |

pub mod chunk;
pub mod delta;
pub mod descriptor;
pub mod dtype;
pub mod error;
pub mod fingerprint;
mod frames;
pub mod hash;
pub mod index;
pub mod journal;
pub mod key;
pub mod layout;
pub mod ledger;
pub mod manifest;
mod members;
pub mod pack;
mod planes;
pub mod sealed;
mod wire;

pub use dtype::Dtype;
pub use error::{Error, ErrorKind, Result};
pub use fingerprint::Fingerprint;
pub use hash::Hash;
pub use key::RunName;

/// The format version that this crate writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
