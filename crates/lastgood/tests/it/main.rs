//! The library over real stores, one feature a module.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and one that measures says what it found"
)]

mod async_saves;
mod auto;
mod child;
mod codecs;
mod copies;
mod deltas;
mod digests;
mod faults;
mod fencing;
mod fixture;
mod growth;
mod journal;
mod journal_failures;
mod ledger;
mod memory;
mod names;
mod policy;
mod predicted;
mod preflight;
mod requests;
mod resharding;
mod resume;
mod reuse;
mod round_trip;
mod s3;
mod safetensors;
mod save_restore;
mod scale;
mod tap;
mod tier;
mod walk_back;
