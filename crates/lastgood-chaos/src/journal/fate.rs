//! At which operation a process ends, for its disk and its store together; and that store.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use lastgood_format::{Error, Result};
use lastgood_store::{MemoryStore, ObjectMeta, Payload, Put, Store};

use crate::random::Random;

#[derive(Debug)]
struct Inner {
    done: u64,
    ends_at: Option<u64>,
    random: Random,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It happens.
    Lives,
    /// It is the last one; with `true` it still has its effect.
    Dies(bool),
    /// The process is gone.
    Dead,
}

/// The life of one process.
#[derive(Clone, Debug)]
pub(super) struct Fate(Arc<Mutex<Inner>>);

impl Fate {
    /// A process that ends with operation number `ends_at`.
    pub(super) fn new(seed: u64, ends_at: Option<u64>) -> Self {
        Self(Arc::new(Mutex::new(Inner { done: 0, ends_at, random: Random::new(seed) })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn turn(&self) -> Turn {
        let mut inner = self.lock();
        let now = inner.done;
        inner.done += 1;
        match inner.ends_at {
            Some(end) if now == end => Turn::Dies(inner.random.chance(500)),
            Some(end) if now > end => Turn::Dead,
            _ => Turn::Lives,
        }
    }

    /// A number that this process's end decides.
    pub(super) fn below(&self, below: u64) -> u64 {
        self.lock().random.below(below)
    }

    pub(super) fn is_over(&self) -> bool {
        let inner = self.lock();
        inner.ends_at.is_some_and(|end| inner.done > end)
    }

    pub(super) fn operations(&self) -> u64 {
        self.lock().done
    }
}

/// A process's way to a store that loses nothing.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) store: MemoryStore,
    pub(super) fate: Fate,
}

fn gone() -> Error {
    Error::unavailable("the process is gone")
}

impl Way {
    fn reads(&self) -> Result<()> {
        match self.fate.turn() {
            Turn::Lives => Ok(()),
            Turn::Dies(_) | Turn::Dead => Err(gone()),
        }
    }
}

#[async_trait]
impl Store for Way {
    fn location(&self) -> String {
        "memory".into()
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        match self.fate.turn() {
            Turn::Lives => self.store.put_if_absent(key, payload).await,
            Turn::Dies(true) => {
                let _ = self.store.put_if_absent(key, payload).await;
                Err(gone())
            }
            Turn::Dies(false) | Turn::Dead => Err(gone()),
        }
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        self.reads()?;
        self.store.get(key, bytes_max).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.reads()?;
        self.store.get_range(key, range).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.reads()?;
        self.store.size(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        self.reads()?;
        self.store.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.reads()?;
        self.store.delete(key).await
    }
}
