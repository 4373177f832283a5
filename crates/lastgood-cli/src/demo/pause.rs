//! A store that stops a rank in the middle of a save, for the demo to kill it there.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use lastgood::Result;
use lastgood_store::{ObjectMeta, Payload, Put, Store};

use super::message::Message;

/// Where a rank stops: before put number `put` from the first one of the save of step `step`, or of the
/// first one after it that is written: a save that a newer one supersedes has no puts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) step: u64,
    pub(crate) put: u32,
}

impl std::fmt::Display for Pause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.step, self.put)
    }
}

impl FromStr for Pause {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (step, put) = text.split_once(':').context("expected STEP:PUT")?;
        Ok(Self { step: step.parse()?, put: put.parse()? })
    }
}

/// The store below, until the pause is reached; a put that reaches it never returns.
#[derive(Debug)]
pub(crate) struct PauseStore {
    inner: Arc<dyn Store>,
    pause: Pause,
    /// The puts since the save began.
    puts: AtomicU32,
}

impl PauseStore {
    pub(crate) fn new(inner: Arc<dyn Store>, pause: Pause) -> Self {
        Self { inner, pause, puts: AtomicU32::new(0) }
    }

    /// True from the first put of the save on.
    fn is_inside(&self, key: &str) -> bool {
        self.puts.load(Ordering::SeqCst) > 0
            || step_of(key).is_some_and(|step| step >= self.pause.step)
    }

    async fn wait_for_the_end(&self, key: &str) {
        let step = step_of(key).unwrap_or(self.pause.step);
        let message = Message::Paused { step, object: key.to_owned() };
        // Nobody reads it only if nobody is left to kill this process.
        if message.send().is_ok() {
            std::future::pending::<()>().await;
        }
    }
}

/// The step of the save that an object belongs to, if its name says so.
fn step_of(key: &str) -> Option<u64> {
    let folder = key.strip_prefix("runs/")?.split('/').nth(3)?;
    folder.get(..12)?.parse().ok()
}

#[async_trait]
impl Store for PauseStore {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        if self.is_inside(key) && self.puts.fetch_add(1, Ordering::SeqCst) == self.pause.put {
            self.wait_for_the_end(key).await;
        }
        self.inner.put_if_absent(key, payload).await
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        self.inner.get(key, bytes_max).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_range(key, range).await
    }

    async fn read_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        self.inner.read_into(key, offset, target).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.inner.size(key).await
    }

    async fn settle(&self, key: &str) -> Result<()> {
        self.inner.settle(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key).await
    }
}

#[cfg(test)]
mod tests;
