//! `cargo xtask bench`: lastgood beside its peers, or one benchmark of a part.

use anyhow::Result;

use crate::{process, python};

/// The benchmarks of one part, in Rust, and the package that each is of.
const PARTS: [(&str, &str); 5] = [
    ("disk", "lastgood"),
    ("growth", "lastgood"),
    ("journal", "lastgood"),
    ("codecs", "lastgood-format"),
    ("fingerprint", "lastgood-format"),
];

/// Runs the benchmark of a part if the first of `args` names one, with the rest of `args`; else all of
/// `python/benches/lastgood_bench`, with `args`.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    if let Some((name, rest)) = args.split_first()
        && let Some((part, package)) = PARTS.iter().find(|(part, _)| part == name)
    {
        return process::delegate(&["bench", "-p", package, "--bench", part, "--"], rest);
    }
    python::bench(args)
}
