//! `cargo xtask bench`.

use anyhow::Result;

use crate::process;

/// Runs the benchmarks of the library with `args`.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    process::delegate(&["bench", "-p", "lastgood", "--bench", "*", "--"], args)
}
