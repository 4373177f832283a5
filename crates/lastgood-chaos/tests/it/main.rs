//! The decisions that the simulation found hard, each alone, and the attacks on a small scale.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod lost_base;
