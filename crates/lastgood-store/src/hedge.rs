//! Asking a second time for what a store is slow to give.
//!
//! An object store answers most reads alike, and a few of them very late: a restore of a thousand reads would wait for
//! the slowest of them. A second request for the same bytes is answered by another server (Dean and Barroso, "The Tail
//! at Scale", 2013). Reads alone: a put that is made twice would have to be settled.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Env, Error, ObjectMeta, Payload, Put, Result, Store, Transfers};

/// When a read is asked for a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgePolicy {
    /// When it has taken this many times as long as the median of the latest reads of about its size. Default 4.
    pub multiple: u32,
    /// But never before this. Default 50 ms.
    pub wait_min: Duration,
    /// So many reads of about its size must have been answered before. Default 8.
    pub known_min: usize,
    /// Second requests for each 100 reads, in the long run: where everything is slow, they would make it slower.
    /// Default 5.
    pub percent: u32,
    /// Second requests that may be made at once, if none were for a while; the first reads have one. Default 4.
    pub burst: u32,
}

impl Default for HedgePolicy {
    fn default() -> Self {
        Self {
            multiple: 4,
            wait_min: Duration::from_millis(50),
            known_min: 8,
            percent: 5,
            burst: 4,
        }
    }
}

/// How often a store was asked a second time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hedges {
    /// Second requests.
    pub asked: u64,
    /// Those of them that were answered before the first ones.
    pub won: u64,
}

/// A store whose slow reads are asked for a second time; the first answer is taken.
///
/// What the other request still brings is thrown away with it: it never reaches the memory of the caller.
#[derive(Debug)]
pub struct HedgedStore<S> {
    inner: S,
    env: Arc<dyn Env>,
    policy: HedgePolicy,
    state: Mutex<State>,
}

/// The latest reads of a size that are remembered.
const KNOWN_MAX: usize = 64;

/// What a second request costs of what each read earns.
const COST: u32 = 100;

#[derive(Debug)]
struct State {
    /// How long the latest reads took, by the length of their size in bits.
    took: [VecDeque<Duration>; 64],
    /// What is left for second requests.
    earned: u32,
    hedges: Hedges,
}

/// Which request was answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    First,
    Second,
}

impl<S: Store> HedgedStore<S> {
    /// `inner` under the default policy.
    #[must_use]
    pub fn new(inner: S, env: Arc<dyn Env>) -> Self {
        Self::with_policy(inner, env, HedgePolicy::default())
    }

    /// `inner` under `policy`.
    #[must_use]
    pub fn with_policy(inner: S, env: Arc<dyn Env>, policy: HedgePolicy) -> Self {
        let took = std::array::from_fn(|_| VecDeque::new());
        let state = State { took, earned: COST, hedges: Hedges::default() };
        Self { inner, env, policy, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to wait for the answer to a read of `bytes` bytes; `None` where too little is known.
    fn patience(&self, bytes: u64) -> Option<Duration> {
        let state = self.lock();
        let took = &state.took[class(bytes)];
        if took.is_empty() || took.len() < self.policy.known_min {
            return None;
        }
        let mut sorted: Vec<Duration> = took.iter().copied().collect();
        let middle = sorted.len() / 2;
        let (_, median, _) = sorted.select_nth_unstable(middle);
        Some(median.saturating_mul(self.policy.multiple).max(self.policy.wait_min))
    }

    /// Takes what a second request costs.
    fn spend(&self) -> bool {
        let mut state = self.lock();
        match state.earned.checked_sub(COST) {
            Some(left) => {
                state.earned = left;
                state.hedges.asked += 1;
                true
            }
            None => false,
        }
    }

    /// A read was answered, as long after the call as the caller waited.
    fn note(&self, bytes: u64, took: Duration, answer: Answer) {
        let mut state = self.lock();
        let earned = state.earned.saturating_add(self.policy.percent);
        state.earned = earned.min(self.policy.burst.saturating_mul(COST));
        state.hedges.won += u64::from(answer == Answer::Second);
        let known = &mut state.took[class(bytes)];
        if known.len() == KNOWN_MAX {
            known.pop_front();
        }
        known.push_back(took);
    }

    /// The answer to `first`, or to `second` if that is made and comes before.
    async fn race<T, F: Future<Output = Result<T>>>(
        &self,
        bytes: u64,
        first: impl Future<Output = Result<T>>,
        second: impl FnOnce() -> F,
    ) -> Result<T> {
        let begin = self.env.elapsed();
        let mut first = pin!(first);
        let note = |answer| self.note(bytes, self.env.elapsed().saturating_sub(begin), answer);
        let early = match self.patience(bytes) {
            None => Some(first.as_mut().await),
            Some(patience) => tokio::select! {
                biased;
                done = &mut first => Some(done),
                () = self.env.sleep(patience) => None,
            },
        };
        if let Some(done) = early {
            return done.inspect(|_| note(Answer::First));
        }
        if !self.spend() {
            return first.await.inspect(|_| note(Answer::First));
        }
        let mut second = pin!(second());
        let (done, answer) = tokio::select! {
            biased;
            done = &mut first => (done, Answer::First),
            done = &mut second => (done, Answer::Second),
        };
        match done {
            // The other may still be answered.
            Err(error) if error.is_retryable() => {
                let (done, answer) = match answer {
                    Answer::First => (second.await, Answer::Second),
                    Answer::Second => (first.await, Answer::First),
                };
                done.inspect(|_| note(answer))
            }
            done => done.inspect(|_| note(answer)),
        }
    }
}

/// The length of a number of bytes in bits, up to the longest that a class is kept of.
fn class(bytes: u64) -> usize {
    (u64::BITS - bytes.leading_zeros()).min(63) as usize
}

#[async_trait]
impl<S: Store> Store for HedgedStore<S> {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn transfers(&self) -> Transfers {
        self.inner.transfers()
    }

    fn hedges(&self) -> Hedges {
        self.lock().hedges
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        self.inner.put_if_absent(key, payload).await
    }

    /// Whole objects are a class of their own: how large they are is not known before.
    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        let get = || self.inner.get(key, bytes_max);
        self.race(0, get(), get).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let bytes = range.end.saturating_sub(range.start);
        let get = || self.inner.get_range(key, range.clone());
        self.race(bytes, get(), get).await
    }

    async fn read_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        let bytes = target.len() as u64;
        let range = offset..offset.saturating_add(bytes);
        // The first request fills the target itself; it is gone, answered or not, before the target is touched again.
        let second = {
            let first = async { self.inner.read_into(key, offset, target).await.map(|()| None) };
            let second = || async { self.inner.get_range(key, range.clone()).await.map(Some) };
            self.race(bytes, first, second).await?
        };
        match second {
            None => Ok(()),
            Some(found) if found.len() == target.len() => {
                target.copy_from_slice(&found);
                Ok(())
            }
            Some(found) => Err(Error::corrupt(format!(
                "expected {bytes} bytes at {offset}, found {}",
                found.len()
            ))
            .with_object(key)),
        }
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
