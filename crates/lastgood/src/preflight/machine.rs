//! What this machine has left.

use std::fs;
use std::path::Path;

use rustix::fs::statvfs;

/// The bytes of memory that can be had without swapping, by the system and by the control group of this process;
/// `None` if the system does not say.
#[must_use]
pub fn memory_available() -> Option<u64> {
    let system = system_memory()?;
    Some(group_memory().map_or(system, |group| group.min(system)))
}

fn system_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the control group may take still: its limit, less what it has that cannot be given back at once.
fn group_memory() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounted = Path::new("/sys/fs/cgroup");
    let folder = mounted.join(group.trim_start_matches('/'));
    // A limit further up holds as well.
    let folders = folder.ancestors().take_while(|folder| folder.starts_with(mounted));
    folders.filter_map(left_in).min()
}

fn left_in(folder: &Path) -> Option<u64> {
    let number =
        |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let max = number("memory.max")?;
    let current = number("memory.current")?;
    let statistics = fs::read_to_string(folder.join("memory.stat")).ok()?;
    let file = |name: &str| {
        let line = statistics.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    let given_back = file("inactive_file ").unwrap_or(0) + file("active_file ").unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(given_back)))
}

/// The bytes that this process may still write below `path`; `None` if the file system does not say.
#[must_use]
pub fn space_available(path: &Path) -> Option<u64> {
    let found = path.ancestors().find_map(|path| statvfs(path).ok())?;
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(test)]
mod tests;
