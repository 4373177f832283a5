//! A store in a local folder, durable for real.
//!
//! An object is written to a staging file, synced, and given its name with a hard link, which fails if
//! the name exists: that is the put-if-absent. Then the folder is synced. A crash leaves at most a
//! staging file, which no listing shows and which is cleaned up at a later open. The calls block:
//! they are made on threads that may.

mod failure;
mod leaving;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use leaving::Writer;

use crate::disk::{Disk, RealDisk, is_absent};
use crate::store::{check_key, check_prefix, cut, is_plain, too_large};
use crate::{Error, ObjectMeta, Payload, Put, Result, Store};

/// Where files are written before they get their name. Keys never begin with a dot.
const STAGING: &str = ".staging";

/// A store in a local folder.
///
/// The whole folder must be on one file system that has hard links. Symbolic links in it are not
/// followed, but it may be named through one.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    /// The process that opened it.
    opener: Writer,
    /// Folders that this process knows to be durable, with all folders above them.
    durable: Mutex<BTreeSet<PathBuf>>,
}

impl LocalStore {
    /// The store in the folder `root`, which the first put creates if it does not exist. Leavings of
    /// crashed processes are removed.
    ///
    /// # Errors
    /// `Invalid` if `root` is not absolute.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Self::open_on(root, Arc::new(RealDisk))
    }

    /// As [`LocalStore::open`], on another disk.
    ///
    /// # Errors
    /// As [`LocalStore::open`].
    pub fn open_on(root: impl Into<PathBuf>, disk: Arc<dyn Disk>) -> Result<Self> {
        let root: PathBuf = root.into();
        if !root.is_absolute() {
            return Err(Error::invalid(format!("{} is not an absolute path", root.display())));
        }
        let durable = Mutex::new(BTreeSet::new());
        let store = Self { root, disk, opener: Writer::this(), durable };
        store.clean();
        Ok(store)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// This process. Only in a forked child of the one that opened the store does it have to be asked for.
    fn writer(&self) -> Cow<'_, Writer> {
        match self.opener.is_this() {
            true => Cow::Borrowed(&self.opener),
            false => Cow::Owned(Writer::this()),
        }
    }

    fn path(&self, key: &str) -> Result<PathBuf> {
        check_key(key)?;
        Ok(self.root.join(key))
    }

    /// Removes the staging files of processes that are known to be gone, and old ones. What cannot be
    /// removed now is removed at another open.
    fn clean(&self) {
        let staging = self.root.join(STAGING);
        for entry in self.disk.list(&staging).unwrap_or_default() {
            let path = staging.join(&entry.name);
            let writer = entry.name.to_str().and_then(Writer::of);
            let gone = writer.is_some_and(|writer| self.opener.knows_dead(&writer));
            if gone || self.disk.age(&path).is_ok_and(|age| age > leaving::AGE_MAX) {
                let _ = self.disk.unlink(&path);
            }
        }
    }

    /// Creates the folder and those above it, each durable before anything is put into it. A folder
    /// that exists may still not be durable, if its maker crashed: it is synced once by every process.
    fn ensure_folder(&self, folder: &Path) -> io::Result<()> {
        if self.durable().contains(folder) {
            return Ok(());
        }
        let mut made = self.disk.create_folder(folder);
        if let Err(error) = &made
            && is_absent(error)
            && let Some(parent) = folder.parent()
        {
            self.ensure_folder(parent)?;
            made = self.disk.create_folder(folder);
        }
        let was_there = match made {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(error),
        };
        if let Some(parent) = folder.parent() {
            let is_ours = folder != self.root && folder.starts_with(&self.root);
            if is_ours || !was_there {
                self.ensure_folder(parent)?;
            }
            match self.disk.sync_folder(parent) {
                // What is above the root was there before us, and may be closed to this user.
                Err(error) if !is_ours && is_closed(&error) => {}
                synced => synced?,
            }
        }
        self.durable().insert(folder.to_owned());
        Ok(())
    }

    fn durable(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, path: &Path, payload: &Payload) -> io::Result<Put> {
        match self.try_put(path, payload) {
            // Somebody removed a folder, the staging file or the object on the way.
            Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::AlreadyExists => {
                self.durable().clear();
                self.try_put(path, payload)
            }
            put => put,
        }
    }

    fn try_put(&self, path: &Path, payload: &Payload) -> io::Result<Put> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        self.ensure_folder(folder)?;
        if self.disk.size(path)?.is_some() {
            return self.found(folder);
        }
        let staging = self.root.join(STAGING);
        self.ensure_folder(&staging)?;
        let staged = staging.join(self.writer().staging_name());
        let linked = match self.disk.create(&staged, payload.parts()) {
            // It is somebody else's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(io::Error::other("the name of the staging file is taken"));
            }
            created => created.and_then(|()| self.sync_and_link(&staged, path)),
        };
        // With or without its second name, the staging name has done its work. A crash here leaves it to
        // a later open.
        let _ = self.disk.unlink(&staged);
        match linked {
            Ok(()) => {
                self.disk.sync_folder(folder)?;
                Ok(Put::Created)
            }
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && self.disk.size(path)?.is_some() =>
            {
                self.found(folder)
            }
            Err(error) => Err(error),
        }
    }

    fn sync_and_link(&self, staged: &Path, path: &Path) -> io::Result<()> {
        self.disk.sync_file(staged)?;
        self.disk.link(staged, path).map_err(failure::of_link)
    }

    /// Whoever linked the object may not have synced the folder yet. The caller will rely on the
    /// object, so it is made durable here.
    fn found(&self, folder: &Path) -> io::Result<Put> {
        self.disk.sync_folder(folder)?;
        Ok(Put::Exists)
    }

    fn read(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        let path = self.path(key)?;
        let read = self.disk.read(&path, offset, target);
        self.told(key, offset, target, read)
    }

    /// What became of a read that was to fill `target`.
    fn told(&self, key: &str, offset: u64, target: &[u8], read: io::Result<()>) -> Result<()> {
        read.map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return Error::corrupt(format!(
                    "the object ends before byte {}",
                    offset.saturating_add(target.len() as u64)
                ))
                .with_object(key);
            }
            self.error(key, &error, "read")
        })
    }

    /// True if the file system can tell whether a range exists by reading it; else it was told here.
    fn is_plain_range(&self, key: &str, offset: u64, target: &[u8]) -> Result<bool> {
        // Offsets of files are signed, and to read nothing is to the file system no reading at all.
        if target.is_empty() || i64::try_from(offset).is_err() {
            let end = offset.saturating_add(target.len() as u64);
            cut(key, self.bytes_of(key)?, &(offset..end))?;
            return Ok(false);
        }
        Ok(true)
    }

    fn bytes_of(&self, key: &str) -> Result<u64> {
        let path = self.path(key)?;
        let size = self.disk.size(&path).map_err(|error| self.error(key, &error, "look at"))?;
        size.ok_or_else(|| Error::not_found("no such object").with_object(key))
    }

    /// Adds what is in the folder and those below, as far as `wanted` says that it may matter.
    fn list_folder(
        &self,
        folder: &Path,
        key: &str,
        wanted: &Wanted<'_>,
        found: &mut Vec<ObjectMeta>,
    ) -> Result<()> {
        let entries = self.disk.list(folder).map_err(|error| self.error(key, &error, "list"))?;
        for entry in entries {
            let Some(name) = entry.name.to_str().filter(|name| is_plain(name.as_bytes())) else {
                continue;
            };
            let key = if key.is_empty() { name.to_owned() } else { format!("{key}/{name}") };
            if entry.is_folder {
                if wanted.has_in(&format!("{key}/")) {
                    self.list_folder(&folder.join(name), &key, wanted, found)?;
                }
            } else if wanted.has(&key) {
                found.push(ObjectMeta { key, bytes: entry.bytes });
            }
        }
        Ok(())
    }

    fn error(&self, key: &str, error: &io::Error, verb: &str) -> Error {
        failure::of(&self.root, key, error, verb)
    }
}

/// Which keys a listing is to have.
struct Wanted<'a> {
    prefix: &'a str,
    after: Option<&'a str>,
}

impl Wanted<'_> {
    fn has(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && self.after.is_none_or(|after| key > after)
    }

    /// True if a key that begins with `folder` may be wanted.
    fn has_in(&self, folder: &str) -> bool {
        let fits = folder.starts_with(self.prefix) || self.prefix.starts_with(folder);
        fits && self.after.is_none_or(|after| folder > after || after.starts_with(folder))
    }
}

/// True if a folder may not be opened, or its file system is not to be written to.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

#[async_trait]
impl Store for LocalStore {
    fn location(&self) -> String {
        format!("file://{}", self.root.display())
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        let path = self.path(key)?;
        self.put(&path, &payload).map_err(|error| failure::of_put(&self.root, key, &error))
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        let bytes = self.bytes_of(key)?;
        if bytes > bytes_max {
            return Err(too_large(key, bytes, bytes_max));
        }
        let mut target = vec![0; bytes as usize];
        self.read(key, 0, &mut target)?;
        Ok(target.into())
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let bytes = self.bytes_of(key)?;
        let range = cut(key, bytes, &range)?;
        let mut target = vec![0; range.len()];
        self.read(key, range.start as u64, &mut target)?;
        Ok(target.into())
    }

    async fn read_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        match self.is_plain_range(key, offset, target)? {
            true => self.read(key, offset, target),
            false => Ok(()),
        }
    }

    async fn read_shared_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        if !self.is_plain_range(key, offset, target)? {
            return Ok(());
        }
        let path = self.path(key)?;
        let read = self.disk.read_shared(&path, offset, target);
        self.told(key, offset, target, read)
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        self.disk.size(&path).map_err(|error| self.error(key, &error, "look at"))
    }

    async fn settle(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        let Some(folder) = path.parent() else { return Ok(()) };
        match self.disk.sync_folder(folder) {
            Err(error) if is_absent(&error) => Ok(()),
            synced => synced.map_err(|error| self.error(key, &error, "sync")),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        check_prefix(prefix)?;
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut found = Vec::new();
        let wanted = Wanted { prefix, after };
        self.list_folder(&self.root.join(folder), folder, &wanted, &mut found)?;
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        let removed = self.disk.unlink(&path).and_then(|()| match path.parent() {
            Some(folder) => self.disk.sync_folder(folder),
            None => Ok(()),
        });
        match removed {
            Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::IsADirectory => {
                Ok(())
            }
            removed => removed.map_err(|error| self.error(key, &error, "delete")),
        }
    }
}
