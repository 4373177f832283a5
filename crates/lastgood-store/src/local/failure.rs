//! What an error of the file system means to the caller, and what helps.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::{Error, ErrorKind};

const NO_HARD_LINKS: &str = "the file system has no hard links";

/// An error of giving a file its second name: some file systems say that they have no hard links as if
/// it was a matter of rights.
pub(super) fn of_link(error: io::Error) -> io::Error {
    let none = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS];
    match error.raw_os_error() {
        Some(code) if none.iter().any(|none| none.raw_os_error() == code) => {
            io::Error::new(io::ErrorKind::Unsupported, NO_HARD_LINKS)
        }
        _ => error,
    }
}

/// An error of a put; what is missing then is no object.
pub(super) fn of_put(root: &Path, key: &str, error: &io::Error) -> Error {
    let (kind, remedy) = match error.kind() {
        io::ErrorKind::NotFound => {
            (ErrorKind::Unavailable, "something removes folders of the store; stop it")
        }
        io::ErrorKind::NotADirectory => (
            ErrorKind::Invalid,
            "a folder on the way is a file: use another key, or another folder",
        ),
        io::ErrorKind::AlreadyExists => (
            ErrorKind::Invalid,
            "there is something of this name that is no object: use another key",
        ),
        _ => return of(root, key, error, "write"),
    };
    Error::new(kind, text(root, key, error, "write")).with_object(key).with_remedy(remedy)
}

/// An error of doing `verb` to the object.
pub(super) fn of(root: &Path, key: &str, error: &io::Error, verb: &str) -> Error {
    let (kind, remedy) = meaning(root, error);
    let error = Error::new(kind, text(root, key, error, verb)).with_object(key);
    match remedy {
        Some(remedy) => error.with_remedy(remedy),
        None => error,
    }
}

fn text(root: &Path, key: &str, error: &io::Error, verb: &str) -> String {
    format!("cannot {verb} {}: {error}", root.join(key).display())
}

fn meaning(root: &Path, error: &io::Error) -> (ErrorKind, Option<String>) {
    let remedy = |text: &str| Some(text.to_owned());
    if crate::disk::is_absent(error) {
        return (ErrorKind::NotFound, None);
    }
    let code = error.raw_os_error().unwrap_or_default();
    if [Errno::MFILE, Errno::NFILE].iter().any(|errno| errno.raw_os_error() == code) {
        return (ErrorKind::Overloaded, remedy("allow more open files (ulimit -n)"));
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => (
            ErrorKind::Denied,
            Some(format!("give this user the right to read and write in {}", root.display())),
        ),
        io::ErrorKind::ReadOnlyFilesystem => (
            ErrorKind::Denied,
            remedy(
                "mount the file system for writing; after an error of the disk the kernel does so \
                    by itself, then look into its log",
            ),
        ),
        io::ErrorKind::StorageFull => (ErrorKind::Overloaded, Some(free(root))),
        io::ErrorKind::QuotaExceeded => (
            ErrorKind::Overloaded,
            remedy(
                "the quota of this user is used up: free some space, or have it raised, and save again",
            ),
        ),
        io::ErrorKind::CrossesDevices => {
            (ErrorKind::Invalid, remedy("keep the whole folder of the store on one file system"))
        }
        io::ErrorKind::Unsupported => (
            ErrorKind::Invalid,
            remedy("use a file system that has it, such as ext4, XFS or btrfs"),
        ),
        io::ErrorKind::InvalidFilename => {
            (ErrorKind::Invalid, remedy("use a shorter path for the store"))
        }
        io::ErrorKind::IsADirectory => (ErrorKind::NotFound, None),
        _ => (ErrorKind::Unavailable, None),
    }
}

/// What is free, in the words of whoever has to free more.
fn free(root: &Path) -> String {
    match rustix::fs::statvfs(root) {
        Ok(stat) if stat.f_files > 0 && stat.f_favail == 0 => format!(
            "no more files fit on the file system of {} (its inodes are used up); delete some and save \
             again",
            root.display()
        ),
        Ok(stat) => format!(
            "{} bytes are free on the file system of {}; free some space and save again",
            stat.f_bavail.saturating_mul(stat.f_frsize),
            root.display()
        ),
        Err(_) => "free some space and save again".to_owned(),
    }
}
