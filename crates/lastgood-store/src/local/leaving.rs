//! Names of staging files, and which of them a crash has left.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

/// No write of one object takes longer: an older staging file is a leaving of a crash, whoever wrote it.
pub(super) const AGE_MAX: Duration = Duration::from_secs(3600);

/// What tells this process from every other one that may write into the same folder: from other
/// containers and hosts as well, in which the same number is another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Writer {
    /// The boot of the machine and the namespace of process numbers in it; empty if unknown.
    world: String,
    pid: u32,
    /// Differs between two processes that had the same number, one after the other.
    token: u64,
}

impl Writer {
    /// This process. Nothing of it is cached that a fork does not share with its parent.
    pub(super) fn this() -> Self {
        static TOKEN: OnceLock<u64> = OnceLock::new();
        Self {
            world: world().unwrap_or_default(),
            pid: std::process::id(),
            // Without randomness names may meet, which the file system tells.
            token: *TOKEN.get_or_init(|| getrandom::u64().unwrap_or_default()),
        }
    }

    /// True in the process itself, false in its forked children.
    pub(super) fn is_this(&self) -> bool {
        self.pid == std::process::id()
    }

    /// A name that no staging file of this process has yet.
    pub(super) fn staging_name(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("{}-{}-{:016x}-{number}", self.world, self.pid, self.token)
    }

    /// The writer in the name of a staging file.
    pub(super) fn of(name: &str) -> Option<Self> {
        let mut parts = name.splitn(4, '-');
        let world = parts.next()?.to_owned();
        let pid = parts.next()?.parse().ok()?;
        let token = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { world, pid, token })
    }

    /// True if `other` is known not to run any more. Nothing is known of other hosts and containers.
    pub(super) fn knows_dead(&self, other: &Self) -> bool {
        if self.world.is_empty() || self.world != other.world {
            return false;
        }
        if self.pid == other.pid {
            return self.token != other.token;
        }
        let pid = i32::try_from(other.pid).ok().and_then(Pid::from_raw);
        // A signal that may not be sent went to a process that is there.
        pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
    }
}

fn world() -> Option<String> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let boot = BOOT.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        id.split('-').next().filter(|part| !part.is_empty()).map(str::to_owned)
    });
    let boot = boot.as_ref()?;
    let namespace = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    Some(format!("{boot}.{namespace}"))
}

#[cfg(test)]
mod tests;
