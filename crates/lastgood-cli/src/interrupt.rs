//! Ctrl-C and SIGTERM where there is something to clean up first.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// The signal that came, to be asked for between two pieces of work. A second one ends the process.
#[derive(Debug)]
pub(crate) struct Interrupt(Arc<AtomicI32>);

/// The command was interrupted, and has cleaned up.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted(i32);

impl Interrupt {
    /// Takes the signals from here on.
    pub(crate) fn watch() -> Result<Self> {
        let came = Arc::new(AtomicI32::new(0));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signal handlers")?;
        let seen = Arc::clone(&came);
        let listen = move || {
            for signal in signals.forever() {
                if seen.swap(signal, Ordering::SeqCst) != 0 {
                    end_by(signal);
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(listen).context("no thread")?;
        Ok(Self(came))
    }

    /// Fails if a signal has come.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        match self.0.load(Ordering::SeqCst) {
            0 => Ok(()),
            signal => Err(Interrupted(signal)),
        }
    }
}

impl Interrupted {
    /// Ends this process as the signal would have, so that a shell sees it and stops its loop.
    pub(crate) fn end(&self) {
        end_by(self.0);
    }
}

fn end_by(signal: i32) {
    // If that fails, the exit code says that the command has failed.
    emulate_default_handler(signal).ok();
}
