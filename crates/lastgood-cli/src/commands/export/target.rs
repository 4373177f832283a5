//! The folder that an export becomes.
//!
//! It is written beside its place, under a hidden name, and locked while it is. Nobody holds the lock of a
//! folder whose export was killed: the next export into the same place removes it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lastgood::Error;
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Marks a folder as an export, and says of what.
pub(super) const MARKER: &str = "lastgood-export.json";

/// What the name of a folder or file that is being written begins with.
pub(crate) const PARTIAL: &str = ".lastgood-export-";

/// Where an export goes to, without symbolic links.
#[derive(Debug)]
pub(super) struct Target {
    to: PathBuf,
    parent: PathBuf,
}

impl Target {
    /// Checks that `to` may be written, or replaced if it is an earlier export or by `force`.
    pub(super) fn new(to: &Path, store: &str, force: bool) -> Result<Self> {
        let shown = to.display();
        let to = resolve(&std::path::absolute(to).with_context(|| format!("{shown} is no path"))?);
        let Some(parent) = to.parent().filter(|_| to.file_name().is_some()) else {
            bail!(
                Error::invalid(format!("{shown} cannot be replaced as a whole"))
                    .with_remedy("give a folder in it")
            );
        };
        let root = store.strip_prefix("file://").map(|root| resolve(Path::new(root)));
        let inside = root.as_ref().is_some_and(|root| to.starts_with(root));
        if inside || root.is_some_and(|root| root.starts_with(&to)) {
            let place = if inside { "in the store" } else { "a folder that the store is in" };
            bail!(
                Error::invalid(format!("{shown} is {place}"))
                    .with_remedy("export to another place")
            );
        }
        let occupied = match fs::read_dir(&to) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                bail!(
                    Error::invalid(format!("{shown} is no folder, or lies below a file"))
                        .with_remedy("export to a folder")
                );
            }
            Err(error) => return Err(error).context(format!("cannot look at {shown}")),
        };
        if occupied && !force && !to.join(MARKER).exists() {
            bail!(
                Error::invalid(format!("{shown} is not empty and no earlier export"))
                    .with_remedy("choose another folder, or --force to replace it")
            );
        }
        Ok(Self { parent: parent.to_owned(), to })
    }

    /// Makes the folder to write into, and removes what killed exports have left.
    pub(super) fn begin(&self) -> Result<Partial<'_>> {
        let parent = &self.parent;
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        sweep(parent);
        let mut number = 0;
        loop {
            let path = parent.join(format!("{PARTIAL}{}-{number}", std::process::id()));
            number += 1;
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot create {}", path.display()));
                }
            }
            // Another export may sweep the folder before it is locked.
            if let Some(lock) = lock(&path) {
                return Ok(Partial { target: self, path, _lock: lock });
            }
        }
    }
}

/// `path` without symbolic links, as far as it exists.
fn resolve(path: &Path) -> PathBuf {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(path), _, _) => path,
        (Err(_), Some(parent), Some(name)) => resolve(parent).join(name),
        _ => path.to_owned(),
    }
}

/// Locks a folder or file that exists and is locked by nobody.
fn lock(path: &Path) -> Option<File> {
    let folder = File::open(path).ok()?;
    folder.try_lock().ok()?;
    path.exists().then_some(folder)
}

/// Removes the folders and files of exports that were killed.
pub(crate) fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PARTIAL.as_bytes())
            && lock(&entry.path()).is_some()
        {
            // What cannot be removed now is removed by another export.
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

/// A folder that is being written. It is removed unless it is published.
#[derive(Debug)]
pub(super) struct Partial<'t> {
    target: &'t Target,
    path: PathBuf,
    _lock: File,
}

impl Partial<'_> {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the finished folder its name. An earlier export is exchanged in one step and then removed,
    /// so that there is a whole export under the name at every moment.
    pub(super) fn publish(self) -> Result<()> {
        let Target { to, parent } = self.target;
        sync_folder(&self.path)?;
        let renamed = match to.exists() {
            true => renameat_with(CWD, &self.path, CWD, to, RenameFlags::EXCHANGE),
            false => renameat_with(CWD, &self.path, CWD, to, RenameFlags::empty()),
        };
        renamed.with_context(|| format!("cannot give {} its name", to.display()))?;
        // What has the hidden name now, if anything, is the earlier export: dropping this removes it.
        sync_folder(parent)
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is removed by another export.
        fs::remove_dir_all(&self.path).ok();
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("cannot sync {}", path.display()))
}
