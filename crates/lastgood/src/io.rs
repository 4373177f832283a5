//! The narrow seam below the byte pipeline.
//!
//! Captured bytes are hashed, packed, put and read by plain threads; this trait is all that they know
//! of a store. Deciding code never uses it.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use lastgood_format::{Error, ErrorKind, Result};
use lastgood_store::{Env, Hedges, Payload, Store, Transfers};

use crate::objects;
use crate::process::Process;

/// Blocking transfers of whole objects and ranges.
pub(crate) trait Io: fmt::Debug + Send + Sync {
    /// Creates `object`, or finds it there with the same bytes.
    ///
    /// # Errors
    /// `Conflict`, `Unavailable`, `Overloaded`, `Denied`.
    fn put_same(&self, object: &str, payload: Payload) -> Result<()>;

    /// Fills `target` with the bytes of `object` from `offset`.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` if the object is too short, `Unavailable`, `Denied`.
    fn read_into(&self, object: &str, offset: u64, target: &mut [u8]) -> Result<()>;

    /// As [`Io::read_into`], of bytes that other processes of this machine read as well.
    ///
    /// # Errors
    /// As [`Io::read_into`].
    fn read_shared_into(&self, object: &str, offset: u64, target: &mut [u8]) -> Result<()>;

    /// How the store is best asked for many bytes.
    fn transfers(&self) -> Transfers;

    /// How often slow reads were asked for a second time so far.
    fn hedges(&self) -> Hedges;

    /// The size of `object`, or `None` if there is none.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    fn size(&self, object: &str) -> Result<Option<u64>>;

    /// Time since some fixed moment.
    fn elapsed(&self) -> Duration;
}

/// [`Io`] of which other processes of this machine read the same bytes.
#[derive(Debug)]
pub(crate) struct Shared<'i>(pub(crate) &'i dyn Io);

impl Io for Shared<'_> {
    fn put_same(&self, object: &str, payload: Payload) -> Result<()> {
        self.0.put_same(object, payload)
    }

    fn read_into(&self, object: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        self.0.read_shared_into(object, offset, target)
    }

    fn read_shared_into(&self, object: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        self.0.read_shared_into(object, offset, target)
    }

    fn transfers(&self) -> Transfers {
        self.0.transfers()
    }

    fn hedges(&self) -> Hedges {
        self.0.hedges()
    }

    fn size(&self, object: &str) -> Result<Option<u64>> {
        self.0.size(object)
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// [`Io`] over a store, on a tokio runtime that drives the store's sockets and timers.
#[derive(Clone, Debug)]
pub(crate) struct StoreIo {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) env: Arc<dyn Env>,
    runtime: Arc<Runtime>,
}

impl StoreIo {
    pub(crate) fn new(store: Arc<dyn Store>, env: Arc<dyn Env>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("lastgood-io")
            .enable_all()
            .build()
            .map_err(|e| Error::new(ErrorKind::Overloaded, format!("no thread for I/O: {e}")))?;
        let runtime =
            Runtime { threads: Some(runtime), store: Arc::clone(&store), process: Process::this() };
        Ok(Self { store, env, runtime: Arc::new(runtime) })
    }

    pub(crate) fn is_of_this_process(&self) -> bool {
        self.runtime.process.is_this()
    }

    /// Runs `work` to its end.
    ///
    /// # Errors
    /// Those of `work`; `Closed` in a forked child.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.process.check()?;
        match &self.runtime.threads {
            Some(threads) => threads.block_on(work),
            None => Err(Error::internal("a runtime was used while it was dropped")),
        }
    }
}

/// The threads below a store, and what they work for.
#[derive(Debug)]
struct Runtime {
    threads: Option<tokio::runtime::Runtime>,
    store: Arc<dyn Store>,
    process: Process,
}

impl Drop for Runtime {
    /// In a forked child nothing is torn down: its threads never end there, and its sockets are the parent's.
    fn drop(&mut self) {
        if !self.process.is_this() {
            mem::forget(self.threads.take());
            mem::forget(Arc::clone(&self.store));
        }
    }
}

impl Io for StoreIo {
    fn put_same(&self, object: &str, payload: Payload) -> Result<()> {
        self.block_on(objects::put_same(self.store.as_ref(), object, payload))
    }

    fn read_into(&self, object: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        self.block_on(self.store.read_into(object, offset, target))
    }

    fn read_shared_into(&self, object: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        self.block_on(self.store.read_shared_into(object, offset, target))
    }

    fn transfers(&self) -> Transfers {
        self.store.transfers()
    }

    fn hedges(&self) -> Hedges {
        self.store.hedges()
    }

    fn size(&self, object: &str) -> Result<Option<u64>> {
        self.block_on(self.store.size(object))
    }

    fn elapsed(&self) -> Duration {
        self.env.elapsed()
    }
}
