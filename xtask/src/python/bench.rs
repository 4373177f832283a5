//! lastgood beside its peers, in an environment of its own.

use std::fs;

use anyhow::{Context, Result};

use super::environment::{self, BENCHES};
use crate::{process, repo};

/// Exact versions of the peers, made by `cargo xtask python lock`.
const PEERS: &str = "python/requirements/bench-peers.txt";

/// Runs `python/benches/lastgood_bench` with `args`; with `--peers` among them, beside every peer.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    let reads = args.iter().any(|arg| matches!(arg.as_str(), "-h" | "--help" | "--from"));
    BENCHES.prepare()?;
    if !reads || !BENCHES.has_package() {
        eprintln!("xtask: builds and installs the package as it is released");
        BENCHES.install("release")?;
    }
    if args.iter().any(|arg| arg == "--peers")
        && let Err(error) = install_peers()
    {
        // Each that is not there is told by name, with all the others measured.
        eprintln!("xtask: the peers could not be installed: {error:#}");
    }
    let python = BENCHES.python().display().to_string();
    let mut command = process::command(&python);
    command.args(["-m", "lastgood_bench"]).args(args).env("PYTHONPATH", "python/benches");
    Ok(command.status().with_context(|| format!("cannot run {python}"))?.success())
}

/// Installs the peers, unless these versions of them are there.
fn install_peers() -> Result<()> {
    let wanted = repo::read(PEERS)?;
    let stamp = BENCHES.folder().join("lastgood-peers.txt");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    environment::run(&mut BENCHES.uv(&["pip", "install", "-q", "--no-deps", "-r", PEERS]))?;
    fs::write(&stamp, wanted).context("cannot write down which peers were installed")
}
