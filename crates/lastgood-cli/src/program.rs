//! How this command is started again.

use std::ffi::OsString;
use std::sync::OnceLock;

use anyhow::{Result, ensure};

static PROGRAM: OnceLock<Vec<OsString>> = OnceLock::new();

/// Says how; only the first time counts.
pub(crate) fn set(program: Vec<OsString>) {
    PROGRAM.set(program).ok();
}

/// The command line that starts this command with `args`.
pub(crate) fn with(args: &[&str]) -> Result<Vec<OsString>> {
    let program = PROGRAM.get().map_or(&[][..], Vec::as_slice);
    ensure!(!program.is_empty(), "cannot find the file of this program");
    Ok(program.iter().cloned().chain(args.iter().map(OsString::from)).collect())
}
