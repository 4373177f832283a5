//! The narrow seam below the byte pipeline.
//!
//! Captured bytes are hashed, packed, put and read by plain threads; this trait is all that they know
//! of a store. Deciding code never uses it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lastgood_format::Result;
use lastgood_store::{Env, Payload, Store};

use crate::objects;

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

    /// The size of `object`, or `None` if there is none.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    fn size(&self, object: &str) -> Result<Option<u64>>;

    /// Time since some fixed moment.
    fn elapsed(&self) -> Duration;
}

/// [`Io`] over a store, on a tokio runtime that drives the store's sockets and timers.
#[derive(Clone, Debug)]
pub(crate) struct StoreIo {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) runtime: Arc<tokio::runtime::Runtime>,
}

impl Io for StoreIo {
    fn put_same(&self, object: &str, payload: Payload) -> Result<()> {
        self.runtime.block_on(objects::put_same(self.store.as_ref(), object, payload))
    }

    fn read_into(&self, object: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        self.runtime.block_on(self.store.read_into(object, offset, target))
    }

    fn size(&self, object: &str) -> Result<Option<u64>> {
        self.runtime.block_on(self.store.size(object))
    }

    fn elapsed(&self) -> Duration {
        self.env.elapsed()
    }
}
