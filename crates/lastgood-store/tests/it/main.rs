//! The store crate's tests. Those of a real S3 gateway are in [`s3`].
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::panic, reason = "a test that cannot go on fails, and says at what")]

mod broken;
mod clock;
mod conformance;
mod disk;
mod fault;
mod hedge;
mod local;
mod open;
mod put_faults;
mod retry;

#[cfg(feature = "s3")]
mod answers;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod server;
