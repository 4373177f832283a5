//! When a run saves.

mod ranks;
mod real;
mod simulated;
