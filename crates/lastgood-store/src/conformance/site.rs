//! Where a check works, and how it says what it found.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::{Open, Options};
use crate::{Env, Error, ErrorKind, ObjectMeta, Payload, Put, Result, Store};

/// What a store did instead of what it must do.
#[derive(Debug)]
pub(super) struct Broken(pub(super) String);

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self(format!("unexpected error: {error:?}"))
    }
}

/// Says what a store did instead, if the condition does not hold.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::conformance::site::Broken(format!($($text)+)));
        }
    };
}
pub(super) use ensure;

/// A folder of the store for one check.
pub(super) struct Site<'a> {
    open: &'a Open<'a>,
    pub(super) env: &'a dyn Env,
    pub(super) options: &'a Options,
    pub(super) store: Arc<dyn Store>,
    /// The same store as another process sees it.
    pub(super) other: Arc<dyn Store>,
    folder: &'static str,
}

impl<'a> Site<'a> {
    pub(super) fn new(
        open: &'a Open<'a>,
        env: &'a dyn Env,
        options: &'a Options,
        folder: &'static str,
    ) -> Result<Self> {
        Ok(Self { open, env, options, store: open()?, other: open()?, folder })
    }

    /// A key of this check's own.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// Creates an object, which must not exist.
    pub(super) async fn create(&self, name: &str, bytes: impl Into<Bytes>) -> Result<(), Broken> {
        self.create_of(name, bytes.into().into()).await
    }

    pub(super) async fn create_of(&self, name: &str, payload: Payload) -> Result<(), Broken> {
        let put = self.store.put_if_absent(&self.key(name), payload).await?;
        ensure!(put == Put::Created, "a put of a new key ({name:.80}) answered {put:?}");
        Ok(())
    }

    /// The object must have exactly these bytes, to both processes.
    pub(super) async fn expect(&self, name: &str, bytes: &[u8]) -> Result<(), Broken> {
        let key = self.key(name);
        for store in [&self.store, &self.other] {
            let size = store.size(&key).await?;
            ensure!(
                size == Some(bytes.len() as u64),
                "{name:.80} has {} bytes, its size is {size:?}",
                bytes.len()
            );
            let found = store.get(&key, bytes.len() as u64).await?;
            ensure!(found == bytes, "{name:.80} has other bytes: {}", difference(bytes, &found));
        }
        Ok(())
    }

    /// A listing must have exactly these names below the check's folder. Since it may be stale,
    /// objects may be missing for a while.
    pub(super) async fn expect_listed(
        &self,
        prefix: &str,
        after: Option<&str>,
        names: &[&str],
    ) -> Result<(), Broken> {
        let expected: Vec<String> = names.iter().map(|name| self.key(name)).collect();
        let (prefix, after) = (self.key(prefix), after.map(|after| self.key(after)));
        let found = self.listed(&prefix, after.as_deref(), expected.len()).await?;
        let found: Vec<&str> = found.iter().map(|object| object.key.as_str()).collect();
        ensure!(
            found == expected,
            "list({prefix:?}, {after:?}) has {found:?}, {expected:?} is expected"
        );
        Ok(())
    }

    /// A listing, once it has `count` objects or has been stale for too long.
    pub(super) async fn listed(
        &self,
        prefix: &str,
        after: Option<&str>,
        count: usize,
    ) -> Result<Vec<ObjectMeta>> {
        let begin = self.env.elapsed();
        loop {
            let found = self.store.list(prefix, after).await?;
            let late = self.env.elapsed().saturating_sub(begin) >= self.options.stale_max;
            if found.len() >= count || late {
                return Ok(found);
            }
            self.env.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Does `work` in so many threads at once, each as another process with its own runtime. `work` is
    /// told which one it is, and all begin together.
    pub(super) fn in_threads<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize, Arc<dyn Store>, &tokio::runtime::Runtime) -> T + Sync,
    ) -> Result<Vec<T>, Broken> {
        let (barrier, failed) = (Barrier::new(count), AtomicBool::new(false));
        let (open, work, barrier, failed) = (self.open, &work, &barrier, &failed);
        let begin = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Broken(format!("no runtime: {error}")))?;
            let store = runtime.block_on(async { open() })?;
            Ok::<_, Broken>((runtime, store))
        };
        let one = move |number| {
            let begun = begin();
            failed.fetch_or(begun.is_err(), Ordering::AcqRel);
            barrier.wait();
            let (runtime, store) = begun?;
            // Nobody works alone: the others might wait for whoever is missing.
            ensure!(!failed.load(Ordering::Acquire), "another thread could not begin");
            Ok(work(number, store, &runtime))
        };
        thread::scope(|scope| {
            let threads: Vec<_> =
                (0..count).map(|number| scope.spawn(move || one(number))).collect();
            let ended = threads.into_iter().map(|thread| thread.join());
            ended
                .map(|end| end.unwrap_or_else(|_| Err(Broken("a thread panicked".into()))))
                .collect()
        })
    }
}

/// The call must fail with an error of this kind.
pub(super) fn expect_error<T: Debug>(
    kind: ErrorKind,
    what: impl FnOnce() -> String,
    result: Result<T>,
) -> Result<(), Broken> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => Err(Broken(format!("{} failed as {error:?}, {kind:?} is expected", what()))),
        Ok(done) => {
            let done: String = format!("{done:?}").chars().take(80).collect();
            Err(Broken(format!("{} gave {done}, {kind:?} is expected", what())))
        }
    }
}

/// Bytes that look like nothing else.
pub(super) fn pattern(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 8);
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < count {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

fn difference(expected: &[u8], found: &[u8]) -> String {
    let at = expected.iter().zip(found).position(|(a, b)| a != b);
    let (expected, found) = (expected.len(), found.len());
    match at {
        Some(at) => format!("the first difference of {expected} and {found} bytes is at {at}"),
        None => format!("{expected} are expected, {found} were read"),
    }
}
