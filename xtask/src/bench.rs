//! `cargo xtask bench`.

use anyhow::Result;

use crate::process;

/// Runs one of the benchmarks, `disk` unless the first of `args` names another, with the rest of `args`.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    let (name, rest) = match args.split_first() {
        Some((name, rest)) if !name.starts_with('-') => (name.as_str(), rest),
        _ => ("disk", args),
    };
    let package =
        if ["codecs", "fingerprint"].contains(&name) { "lastgood-format" } else { "lastgood" };
    process::delegate(&["bench", "-p", package, "--bench", name, "--"], rest)
}
