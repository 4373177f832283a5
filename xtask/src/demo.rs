//! `cargo xtask demo`.

use anyhow::Result;

use crate::process;

/// Runs the demo with `args`.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    process::delegate(&["run", "--release", "--", "demo"], args)
}
