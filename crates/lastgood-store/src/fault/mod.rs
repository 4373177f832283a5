//! A store that misbehaves as it is told.

mod plan;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use plan::{Call, Drawn};

pub use plan::{Fault, FaultPlan, FaultRates, Operation};

use crate::{Env, Error, ErrorKind, Hedges, ObjectMeta, Payload, Put, Result, Store, Transfers};

/// How many of the newest objects are remembered, for listings to leave out.
const NEWEST_MAX: usize = 1000;

/// A fault that was injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// What the call asked for.
    pub operation: Operation,
    /// The key of the call, or the prefix of a listing.
    pub key: String,
    /// Which call it was of those of this operation on this key, counted from 1.
    pub number: u64,
    /// What went wrong.
    pub fault: Fault,
}

/// The faults of one or several [`FaultStore`]s, and the record of those that were injected. Clones
/// share both.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    plan: FaultPlan,
    stopped: bool,
    /// Calls so far, of each operation on each key.
    calls: BTreeMap<(Operation, String), u64>,
    /// The keys of the newest objects, the newest last.
    newest: Vec<String>,
    injected: Vec<Injected>,
}

impl Faults {
    /// The faults of `plan`.
    #[must_use]
    pub fn new(plan: FaultPlan) -> Self {
        Self(Arc::new(Mutex::new(State {
            plan,
            stopped: false,
            calls: BTreeMap::new(),
            newest: Vec::new(),
            injected: Vec::new(),
        })))
    }

    /// Plans `fault` for the call that is call `number` from now, counted from 1, of those of
    /// `operation` whose key begins with `prefix`.
    pub fn at(&self, operation: Operation, prefix: &str, number: u64, fault: Fault) {
        self.lock().plan.calls.push(Call::new(operation, prefix, number, fault));
    }

    /// Gives the store room for `bytes` more bytes, or for any number.
    pub fn set_bytes_left(&self, bytes: Option<u64>) {
        self.lock().plan.bytes_left = bytes;
    }

    /// Injects nothing from now on.
    pub fn stop(&self) {
        self.lock().stopped = true;
    }

    /// What was injected so far, in order.
    #[must_use]
    pub fn injected(&self) -> Vec<Injected> {
        self.lock().injected.clone()
    }

    /// How many calls there were so far, on all keys.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls.values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts a call, decides what goes wrong in it, and records that.
    fn decide(&mut self, operation: Operation, key: &str) -> Drawn {
        let number = self.calls.entry((operation, key.to_owned())).or_default();
        *number += 1;
        let number = *number;
        let mut drawn = plan::draw(self.plan.seed, &self.plan.rates, operation, key, number);
        for call in &mut self.plan.calls {
            match call.meets(operation, key) {
                Some(Fault::Delay(delay)) => drawn.delay = Some(delay),
                Some(fault) => drawn.fault = Some(fault),
                None => {}
            }
        }
        if self.stopped {
            return Drawn { delay: None, fault: None, ..drawn };
        }
        for fault in drawn.delay.map(Fault::Delay).into_iter().chain(drawn.fault) {
            self.injected.push(Injected { operation, key: key.to_owned(), number, fault });
        }
        drawn
    }

    fn note_created(&mut self, key: &str) {
        if self.newest.len() == NEWEST_MAX {
            self.newest.remove(0);
        }
        self.newest.push(key.to_owned());
    }
}

/// `inner` with [`Faults`].
///
/// Which faults there are depends on the plan, on the operation, on the key, and on how many calls of
/// this operation there were on this key: the same seed and the same calls give the same faults, in
/// whichever order several threads make them.
#[derive(Clone, Debug)]
pub struct FaultStore<S> {
    inner: S,
    faults: Faults,
    env: Arc<dyn Env>,
}

impl<S: Store> FaultStore<S> {
    /// `inner` with `faults`; delays are slept through `env`.
    #[must_use]
    pub fn new(inner: S, faults: &Faults, env: Arc<dyn Env>) -> Self {
        Self { inner, faults: faults.clone(), env }
    }

    /// The store without faults.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The way to the store: it may be long, and it may end before the store.
    async fn go(&self, operation: Operation, key: &str) -> Result<Drawn> {
        let drawn = self.faults.lock().decide(operation, key);
        if let Some(delay) = drawn.delay {
            self.env.sleep(delay).await;
        }
        match drawn.fault {
            Some(Fault::Refused) => Err(unavailable("the call was refused", key)),
            _ => Ok(drawn),
        }
    }

    /// Takes room for `bytes` bytes, unless there is none.
    fn reserve(&self, bytes: u64) -> bool {
        let mut state = self.faults.lock();
        match &mut state.plan.bytes_left {
            None => true,
            Some(left) => left.checked_sub(bytes).map(|rest| *left = rest).is_some(),
        }
    }

    fn release(&self, bytes: u64) {
        if let Some(left) = &mut self.faults.lock().plan.bytes_left {
            *left = left.saturating_add(bytes);
        }
    }

    /// A put that meets no end of space finds out what is there like any other.
    async fn create(&self, key: &str, payload: Payload) -> Result<Put> {
        let bytes = payload.len();
        if !self.reserve(bytes) {
            return match self.inner.size(key).await? {
                Some(_) => self.inner.put_if_absent(key, payload).await,
                None => Err(full(key)),
            };
        }
        let put = self.inner.put_if_absent(key, payload).await;
        match put {
            Ok(Put::Created) => self.faults.lock().note_created(key),
            _ => self.release(bytes),
        }
        put
    }

    fn stale(&self, mut found: Vec<ObjectMeta>, count: usize) -> Vec<ObjectMeta> {
        let state = self.faults.lock();
        let hidden = &state.newest[state.newest.len().saturating_sub(count)..];
        found.retain(|object| !hidden.contains(&object.key));
        found
    }
}

/// The answer on its way back: it may get lost.
fn answer<T>(drawn: &Drawn, key: &str, done: Result<T>) -> Result<T> {
    match drawn.fault {
        Some(Fault::LostAnswer) => done.and(Err(unavailable("the answer was lost", key))),
        _ => done,
    }
}

fn damaged(drawn: &Drawn, bytes: Bytes) -> Bytes {
    if bytes.is_empty() {
        return bytes;
    }
    let at = drawn.bits as usize % bytes.len();
    match drawn.fault {
        Some(Fault::CutAnswer) => bytes.slice(..at),
        Some(Fault::FlippedBit) => {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1 << (drawn.bits >> 32 & 7);
            flipped.into()
        }
        _ => bytes,
    }
}

fn torn(drawn: &Drawn, payload: &Payload) -> Payload {
    let bytes = payload.to_bytes();
    let kept = if bytes.is_empty() { 0 } else { drawn.bits as usize % bytes.len() };
    bytes.slice(..kept).into()
}

fn unavailable(what: &str, key: &str) -> Error {
    Error::unavailable(format!("injected fault: {what}")).with_object(key)
}

fn full(key: &str) -> Error {
    Error::new(ErrorKind::Overloaded, "injected fault: no space is left").with_object(key)
}

#[async_trait]
impl<S: Store> Store for FaultStore<S> {
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
        let drawn = self.go(Operation::Put, key).await?;
        match drawn.fault {
            Some(Fault::FullDisk) => Err(full(key)),
            Some(Fault::TornWrite) => {
                self.create(key, torn(&drawn, &payload)).await?;
                Err(unavailable("the write was torn", key))
            }
            _ => answer(&drawn, key, self.create(key, payload).await),
        }
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        let drawn = self.go(Operation::Read, key).await?;
        let read = self.inner.get(key, bytes_max).await;
        answer(&drawn, key, read.map(|bytes| damaged(&drawn, bytes)))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let drawn = self.go(Operation::Read, key).await?;
        let read = self.inner.get_range(key, range).await;
        answer(&drawn, key, read.map(|bytes| damaged(&drawn, bytes)))
    }

    async fn read_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        let drawn = self.go(Operation::Read, key).await?;
        let read = self.inner.read_into(key, offset, target).await;
        match drawn.fault {
            // A reader into memory finds out that bytes are missing.
            Some(Fault::CutAnswer) if !target.is_empty() => read
                .and(Err(
                    Error::corrupt("injected fault: the answer was cut short").with_object(key)
                )),
            Some(Fault::FlippedBit) if !target.is_empty() => {
                let at = drawn.bits as usize % target.len();
                target[at] ^= 1 << (drawn.bits >> 32 & 7);
                read
            }
            _ => answer(&drawn, key, read),
        }
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let drawn = self.go(Operation::Size, key).await?;
        answer(&drawn, key, self.inner.size(key).await)
    }

    async fn settle(&self, key: &str) -> Result<()> {
        let drawn = self.go(Operation::Settle, key).await?;
        answer(&drawn, key, self.inner.settle(key).await)
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        let drawn = self.go(Operation::List, prefix).await?;
        let found = self.inner.list(prefix, after).await;
        let found = match drawn.fault {
            Some(Fault::StaleList(count)) => found.map(|found| self.stale(found, count)),
            _ => found,
        };
        answer(&drawn, prefix, found)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let drawn = self.go(Operation::Delete, key).await?;
        answer(&drawn, key, self.inner.delete(key).await)
    }
}
