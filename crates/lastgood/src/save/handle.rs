//! What a caller holds of a save that goes on behind it.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use lastgood_format::key::SaveKey;
use lastgood_format::{Error, ErrorKind, Hash, Result};

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
    inner: Arc<(Mutex<SaveStatus>, Condvar)>,
}

impl SaveHandle {
    pub(crate) fn new(save: SaveKey) -> Self {
        Self { save, inner: Arc::new((Mutex::new(SaveStatus::Capturing), Condvar::new())) }
    }

    /// The step that is saved.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.save.step
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
    /// The error that the save failed with; `Conflict` if a newer save superseded it.
    pub fn wait(&self) -> Result<Hash> {
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

    fn lock(&self) -> std::sync::MutexGuard<'_, SaveStatus> {
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
