//! The `lastgood` command.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Without the file of this program only what starts it again fails, and says so.
    let program = env::current_exe().map(|file| vec![file.into()]).unwrap_or_default();
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    lastgood_cli::main(program, &args).into()
}
