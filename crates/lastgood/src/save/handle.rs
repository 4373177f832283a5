//! What a caller holds of a save that goes on behind it.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lastgood_format::key::SaveKey;
use lastgood_format::{Error, ErrorKind, Hash, Result};

use crate::process::Process;

/// How far a save is.
#[derive(Clone, Debug)]
pub enum SaveStatus {
    /// The state is being copied.
    Capturing,
    /// The state is copied: it may be changed.
    Captured,
    /// This rank's part is durable; other ranks' parts may not be.
    Durable,
    /// It is a checkpoint of this id.
    Committed(Hash),
    /// A newer save took its place, on this rank or on another one.
    Superseded,
    /// It will never be a checkpoint.
    Failed(Error),
}

impl SaveStatus {
    fn is_final(&self) -> bool {
        matches!(self, Self::Committed(_) | Self::Superseded | Self::Failed(_))
    }
}

/// A save on its way.
#[derive(Clone, Debug)]
pub struct SaveHandle {
    save: SaveKey,
    process: Process,
    inner: Arc<(Mutex<SaveStatus>, Condvar)>,
    /// When it became a checkpoint, from the environment's fixed moment.
    at: Arc<OnceLock<Duration>>,
}

impl SaveHandle {
    pub(crate) fn new(save: SaveKey) -> Self {
        let inner = Arc::new((Mutex::new(SaveStatus::Capturing), Condvar::new()));
        Self { save, process: Process::this(), inner, at: Arc::default() }
    }

    /// A save that is a checkpoint already.
    pub(crate) fn committed(attempt: u64, step: u64, id: Hash) -> Self {
        let handle = Self::new(SaveKey { attempt, step, generation: 0 });
        handle.set(SaveStatus::Committed(id));
        handle
    }

    /// The step that is saved.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.save.step
    }

    /// It became a checkpoint at this time; told before its status says so.
    pub(crate) fn set_at(&self, at: Duration) {
        let _ = self.at.set(at);
    }

    /// `None` while it is under way; then when it became a checkpoint, or `None` if it never will.
    pub(crate) fn end(&self) -> Option<Option<Duration>> {
        self.lock().is_final().then(|| self.at.get().copied())
    }

    pub(crate) fn save(&self) -> SaveKey {
        self.save
    }

    /// How far it is now.
    #[must_use]
    pub fn status(&self) -> SaveStatus {
        self.lock().clone()
    }

    /// Waits until it is a checkpoint, and gives its id.
    ///
    /// # Errors
    /// The error that the save failed with; `Conflict` if a newer save superseded it; `Closed` in a forked
    /// child.
    pub fn wait(&self) -> Result<Hash> {
        self.process.check()?;
        let mut status = self.lock();
        while !status.is_final() {
            status = self.inner.1.wait(status).unwrap_or_else(PoisonError::into_inner);
        }
        match &*status {
            SaveStatus::Committed(id) => Ok(*id),
            SaveStatus::Failed(error) => Err(error.clone()),
            _ => Err(Error::new(
                ErrorKind::Conflict,
                format!("the save of step {} was superseded by a newer one", self.save.step),
            )),
        }
    }

    /// Waits at most `timeout` until the state is copied; `None` if it is not yet.
    ///
    /// # Errors
    /// What the capture failed with: `Overloaded`, or that of a source; `Closed` in a forked child.
    pub fn wait_captured(&self, timeout: Duration) -> Result<Option<()>> {
        self.process.check()?;
        let status = self.wait_while(timeout, |status| matches!(status, SaveStatus::Capturing));
        match &*status {
            SaveStatus::Capturing => Ok(None),
            SaveStatus::Failed(error) => Err(error.clone()),
            _ => Ok(Some(())),
        }
    }

    /// As [`SaveHandle::wait`], for at most `timeout`; `None` if it is not through by then.
    ///
    /// # Errors
    /// As [`SaveHandle::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Hash>> {
        self.process.check()?;
        let is_final = self.wait_while(timeout, |status| !status.is_final()).is_final();
        if is_final { self.wait().map(Some) } else { Ok(None) }
    }

    fn wait_while(
        &self,
        timeout: Duration,
        mut pending: impl FnMut(&SaveStatus) -> bool,
    ) -> MutexGuard<'_, SaveStatus> {
        let wait = self.inner.1.wait_timeout_while(self.lock(), timeout, |status| pending(status));
        wait.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Goes to `status`, unless a later one is reached.
    pub(crate) fn set(&self, status: SaveStatus) {
        let mut current = self.lock();
        let late = current.is_final()
            || matches!((&*current, &status), (SaveStatus::Durable, SaveStatus::Captured));
        if !late {
            *current = status;
            self.inner.1.notify_all();
        }
    }

    /// A handle for the thread that writes, which ends it if that thread ends before the save does.
    pub(crate) fn promise(&self) -> Promise {
        Promise(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, SaveStatus> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty to bring a save to an end: dropped before that, it fails the save, so that nobody waits
/// for what a panic has cut off.
#[derive(Debug)]
pub(crate) struct Promise(SaveHandle);

impl Deref for Promise {
    type Target = SaveHandle;

    fn deref(&self) -> &SaveHandle {
        &self.0
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let error = Error::internal("the thread that saves ended before the save");
        self.0.set(SaveStatus::Failed(error));
    }
}
