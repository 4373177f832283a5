//! The command, as a person or a script runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod demo;
mod output;
mod run;
mod tensors;
mod tool;
