//! A store in a local folder, durable for real.
//!
//! An object is written to a staging file, synced, and given its name with a hard link, which fails if
//! the name exists: that is the put-if-absent. Then the folder is synced. A crash leaves at most a
//! staging file, which no listing shows and which is cleaned up at the next open. The calls block:
//! they are made on threads that may.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::disk::{Disk, RealDisk, is_absent};
use crate::store::{check_key, check_prefix, cut, too_large};
use crate::{Error, ErrorKind, ObjectMeta, Payload, Put, Result, Store};

/// Where files are written before they get their name. Keys never begin with a dot.
const STAGING: &str = ".staging";

/// A staging file of a process that is gone, or older than this, is a leaving of a crash.
const STAGING_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A store in a local folder.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    /// Folders that this process knows to be durable, with all folders above them.
    durable: Mutex<BTreeSet<PathBuf>>,
    next_staging: AtomicU64,
    process: String,
}

impl LocalStore {
    /// The store in the folder `root`, which is created if it does not exist. Leavings of crashed
    /// processes are removed.
    ///
    /// # Errors
    /// `Invalid` if `root` is not absolute; `Denied`, `Overloaded`, `Unavailable` from the file system.
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
        let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let store = Self {
            root,
            disk,
            durable: Mutex::new(BTreeSet::new()),
            next_staging: AtomicU64::new(0),
            process: format!("{}-{:x}", std::process::id(), start.as_nanos()),
        };
        store.clean();
        Ok(store)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, key: &str) -> Result<PathBuf> {
        check_key(key)?;
        Ok(self.root.join(key))
    }

    /// Removes staging files whose process is gone. A process that is alive keeps its own; one whose
    /// number was given to another process is found by age.
    fn clean(&self) {
        let staging = self.root.join(STAGING);
        for entry in self.disk.list(&staging).unwrap_or_default() {
            let path = staging.join(&entry.name);
            if is_leaving(&path) {
                // What cannot be removed now is removed at another open.
                let _ = self.disk.unlink(&path);
            }
        }
    }

    /// Creates the folder and those above it, each durable before anything is put into it. A folder
    /// that exists may still not be durable, if its maker crashed: it is synced once by every process.
    fn ensure_folder(&self, folder: &Path) -> io::Result<()> {
        if self.is_durable(folder) {
            return Ok(());
        }
        match self.disk.create_folder(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if is_absent(&error) => {
                let parent = folder.parent().ok_or(error)?;
                self.ensure_folder(parent)?;
                match self.disk.create_folder(folder) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
            Err(error) => return Err(error),
        }
        // Above the root there is nothing of ours, but the root itself may have just been made.
        if let Some(parent) = folder.parent() {
            if folder != self.root {
                self.ensure_folder(parent)?;
            }
            match self.disk.sync_folder(parent) {
                // What is above the root was there before us, and may be closed to this user.
                Err(e) if folder == self.root && e.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
        }
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned());
        Ok(())
    }

    fn is_durable(&self, folder: &Path) -> bool {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).contains(folder)
    }

    fn put(&self, path: &Path, payload: &Payload) -> io::Result<Put> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        self.ensure_folder(folder)?;
        if self.disk.size(path)?.is_some() {
            return self.found(folder);
        }
        let staging = self.root.join(STAGING);
        self.ensure_folder(&staging)?;
        let number = self.next_staging.fetch_add(1, Ordering::Relaxed);
        let staged = staging.join(format!("{}-{number}", self.process));
        let linked = self.stage_and_link(&staged, path, payload);
        // With or without its second name, the staging name has done its work. A crash here leaves it
        // to the next open.
        let _ = self.disk.unlink(&staged);
        match linked {
            Ok(()) => {
                self.disk.sync_folder(folder)?;
                Ok(Put::Created)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.found(folder),
            Err(error) => Err(error),
        }
    }

    fn stage_and_link(&self, staged: &Path, path: &Path, payload: &Payload) -> io::Result<()> {
        self.disk.create(staged, payload.parts())?;
        self.disk.sync_file(staged)?;
        self.disk.link(staged, path)
    }

    /// Whoever linked the object may not have synced the folder yet. The caller will rely on the
    /// object, so it is made durable here.
    fn found(&self, folder: &Path) -> io::Result<Put> {
        self.disk.sync_folder(folder)?;
        Ok(Put::Exists)
    }

    fn read(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        let path = self.path(key)?;
        self.disk.read(&path, offset, target).map_err(|error| {
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

    fn bytes_of(&self, key: &str) -> Result<u64> {
        let path = self.path(key)?;
        let size = self.disk.size(&path).map_err(|error| self.error(key, &error, "look at"))?;
        size.ok_or_else(|| Error::not_found("no such object").with_object(key))
    }

    fn list_folder(&self, folder: &Path, key: &str, found: &mut Vec<ObjectMeta>) -> Result<()> {
        let entries = self.disk.list(folder).map_err(|error| self.error(key, &error, "list"))?;
        for entry in entries {
            let Some(name) = entry.name.to_str().filter(|name| !name.starts_with('.')) else {
                continue;
            };
            let key = if key.is_empty() { name.to_owned() } else { format!("{key}/{name}") };
            if entry.is_folder {
                self.list_folder(&folder.join(name), &key, found)?;
            } else {
                found.push(ObjectMeta { key, bytes: entry.bytes });
            }
        }
        Ok(())
    }

    fn error(&self, key: &str, error: &io::Error, verb: &str) -> Error {
        let (kind, remedy) = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => (ErrorKind::NotFound, None),
            io::ErrorKind::PermissionDenied => {
                (ErrorKind::Denied, Some("give this user the right to the folder".to_owned()))
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                (ErrorKind::Denied, Some("mount the file system for writing".to_owned()))
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (ErrorKind::Overloaded, Some(self.free_text()))
            }
            _ => (ErrorKind::Unavailable, None),
        };
        let path = self.root.join(key);
        let message = format!("cannot {verb} {}: {error}", path.display());
        let error = Error::new(kind, message).with_object(key);
        match remedy {
            Some(remedy) => error.with_remedy(remedy),
            None => error,
        }
    }

    fn free_text(&self) -> String {
        match rustix::fs::statvfs(&self.root) {
            Ok(stat) => format!(
                "{} bytes are free on the file system of {}; free some space and save again",
                stat.f_bavail.saturating_mul(stat.f_frsize),
                self.root.display()
            ),
            Err(_) => "free some space and save again".to_owned(),
        }
    }
}

/// True if the process in the name of a staging file is gone, or the file is very old.
fn is_leaving(path: &Path) -> bool {
    let process = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.split('-').next())
        .and_then(|pid| pid.parse::<u32>().ok());
    let gone = match process {
        Some(pid) => pid != std::process::id() && !Path::new(&format!("/proc/{pid}")).exists(),
        None => false,
    };
    let age = std::fs::metadata(path)
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|modified| SystemTime::now().duration_since(modified).ok());
    gone || age.is_some_and(|age| age > STAGING_AGE_MAX)
}

#[async_trait]
impl Store for LocalStore {
    fn location(&self) -> String {
        format!("file://{}", self.root.display())
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        let path = self.path(key)?;
        self.put(&path, &payload).map_err(|error| self.error(key, &error, "write"))
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
        self.read(key, offset, target)
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        self.disk.size(&path).map_err(|error| self.error(key, &error, "look at"))
    }

    async fn settle(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        let Some(folder) = path.parent() else { return Ok(()) };
        self.disk.sync_folder(folder).map_err(|error| self.error(key, &error, "sync"))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        check_prefix(prefix)?;
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut found = Vec::new();
        self.list_folder(&self.root.join(folder), folder, &mut found)?;
        found.retain(|object| {
            object.key.starts_with(prefix) && after.is_none_or(|after| object.key.as_str() > after)
        });
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
            Err(error) if is_absent(&error) => Ok(()),
            removed => removed.map_err(|error| self.error(key, &error, "delete")),
        }
    }
}
