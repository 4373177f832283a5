//! Which process something lives in.
//!
//! A forked child gets a copy of the memory and none of the threads. What waits for a thread there waits for
//! ever, be it for a save, for a runtime or in a `drop`; whatever has threads asks here first.

use lastgood_format::{Error, ErrorKind, Result};

/// A process that existed when this was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    /// The one that asks.
    pub(crate) fn this() -> Self {
        Self(std::process::id())
    }

    /// True in that process, false in its forked children.
    pub(crate) fn is_this(self) -> bool {
        self == Self::this()
    }

    /// # Errors
    /// `Closed` in a forked child.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_this() {
            return Ok(());
        }
        let Self(parent) = self;
        let message = format!("this was opened by process {parent}, of which this one is a fork");
        Err(Error::new(ErrorKind::Closed, message)
            .with_remedy("open the store again in the forked process"))
    }
}
