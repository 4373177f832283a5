//! The command, as a person or a script runs it.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bisect;
mod demo;
mod doctor;
mod events;
mod everywhere;
mod export;
mod json;
mod large;
mod memory;
mod output;
mod policy;
mod postmortem;
mod preflight;
mod replay;
mod resume;
mod run;
mod s3;
mod shadow;
mod tensors;
mod tool;
mod travel;
mod why;
