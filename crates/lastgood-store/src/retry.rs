//! Trying again, within a budget and a deadline.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Env, Error, ErrorKind, Hedges, ObjectMeta, Payload, Put, Result, Store, Transfers};

/// How calls are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The most tries of one call. Default 6.
    pub tries_max: u32,
    /// The wait after the first failure; it doubles, with jitter. Default 50 ms.
    pub backoff_first: Duration,
    /// The longest wait. Default 5 s.
    pub backoff_max: Duration,
    /// No try begins later than this after the first. Default 2 min.
    pub deadline: Duration,
    /// Retries that may be spent at once, over all calls; a tenth of one is earned back by each call
    /// that succeeds, so that a store in trouble is not buried under retries. Default 64.
    pub budget: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            tries_max: 6,
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            deadline: Duration::from_secs(120),
            budget: 64,
        }
    }
}

/// A store whose calls are tried again when they fail in a way that may pass.
///
/// A put whose answer was lost and that finds the object there on the next try may have created it
/// itself: it reads the object back and answers [`Put::Created`] if the bytes are its own, [`Put::Exists`]
/// if two reads agree that they are not, and otherwise that nobody knows (`Unavailable`). Callers whose
/// bytes may equal somebody else's must put a write id into them.
#[derive(Debug)]
pub struct RetryStore<S> {
    inner: S,
    env: Arc<dyn Env>,
    policy: RetryPolicy,
    /// Tenths of retries left.
    tokens: Mutex<u32>,
}

impl<S: Store> RetryStore<S> {
    /// `inner` under the default policy.
    #[must_use]
    pub fn new(inner: S, env: Arc<dyn Env>) -> Self {
        Self::with_policy(inner, env, RetryPolicy::default())
    }

    /// `inner` under `policy`.
    #[must_use]
    pub fn with_policy(inner: S, env: Arc<dyn Env>, policy: RetryPolicy) -> Self {
        let tokens = Mutex::new(policy.budget.saturating_mul(10));
        Self { inner, env, policy, tokens }
    }

    /// Takes what one retry costs from the budget.
    fn spend(&self) -> bool {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        match tokens.checked_sub(10) {
            Some(left) => {
                *tokens = left;
                true
            }
            None => false,
        }
    }

    fn earn(&self) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        *tokens = (*tokens + 1).min(self.policy.budget.saturating_mul(10));
    }

    /// Waits before try `tries + 1`; false if there is none.
    async fn again(&self, tries: u32, begin: Duration, error: &Error) -> bool {
        if !error.is_retryable() || tries >= self.policy.tries_max {
            return false;
        }
        let wait = self.wait(tries);
        let next = self.env.elapsed().saturating_sub(begin).saturating_add(wait);
        if next > self.policy.deadline || !self.spend() {
            return false;
        }
        self.env.sleep(wait).await;
        true
    }

    /// How long to wait after `tries` failures.
    fn wait(&self, tries: u32) -> Duration {
        let doubled = self.policy.backoff_first.saturating_mul(1 << (tries - 1).min(16));
        let longest = doubled.min(self.policy.backoff_max);
        // Full jitter: clients that failed together do not come back together.
        let share = (self.env.random() >> 11) as f64 / (1u64 << 53) as f64;
        longest.mul_f64(0.1 + 0.9 * share)
    }

    /// Whose is an object that is there after a try of which nobody knows what became of it?
    ///
    /// One read is not trusted to say that it is somebody else's: it may be damaged on the way, and a
    /// creator must not be told that it did not create.
    async fn whose(&self, key: &str, payload: &Payload) -> Result<Put> {
        const READS_MAX: u32 = 4;
        let own = payload.to_bytes();
        let mut last = None;
        for _ in 0..READS_MAX {
            match self.get(key, payload.len()).await {
                Ok(stored) if stored == own => return Ok(Put::Created),
                Ok(stored) if last.as_ref() == Some(&stored) => return Ok(Put::Exists),
                Ok(stored) => last = Some(stored),
                // It is larger than what was put.
                Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Put::Exists),
                Err(error) => return Err(unknown(key, &error.to_string())),
            }
        }
        Err(unknown(key, "every read of it gives other bytes"))
    }
}

fn unknown(key: &str, reason: &str) -> Error {
    Error::unavailable(format!(
        "the answer to a put was lost; whose the object is that is there now cannot be told: {reason}"
    ))
    .with_object(key)
    .with_remedy("put it again: whoever can read the object learns whose it is")
}

macro_rules! retry {
    ($self:ident, $call:expr) => {{
        let begin = $self.env.elapsed();
        let mut tries = 1;
        loop {
            match $call.await {
                Ok(done) => {
                    $self.earn();
                    return Ok(done);
                }
                Err(error) if $self.again(tries, begin, &error).await => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }};
}

#[async_trait]
impl<S: Store> Store for RetryStore<S> {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn transfers(&self) -> Transfers {
        self.inner.transfers()
    }

    fn hedges(&self) -> Hedges {
        self.inner.hedges()
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        let begin = self.env.elapsed();
        let mut tries = 1;
        loop {
            match self.inner.put_if_absent(key, payload.clone()).await {
                Ok(Put::Exists) if tries > 1 => return self.whose(key, &payload).await,
                Ok(put) => {
                    self.earn();
                    return Ok(put);
                }
                Err(error) if self.again(tries, begin, &error).await => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        retry!(self, self.inner.get(key, bytes_max))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        retry!(self, self.inner.get_range(key, range.clone()))
    }

    async fn read_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        retry!(self, self.inner.read_into(key, offset, target))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        retry!(self, self.inner.size(key))
    }

    async fn settle(&self, key: &str) -> Result<()> {
        retry!(self, self.inner.settle(key))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        retry!(self, self.inner.list(prefix, after))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        retry!(self, self.inner.delete(key))
    }
}
