//! The supervisor over real processes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rank;
mod supervise;
