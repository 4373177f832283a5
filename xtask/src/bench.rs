//! `cargo xtask bench`.

use anyhow::{Result, ensure};

use crate::{process, repo};

/// Runs the benchmarks of the library with `args`.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    let folder = repo::root().join("crates/lastgood/benches");
    ensure!(folder.is_dir(), "there is no benchmark yet: crates/lastgood/benches does not exist");
    process::delegate(&["bench", "-p", "lastgood", "--benches", "--"], args)
}
