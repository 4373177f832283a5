//! A store that remembers every call and does to it what a test says.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use lastgood_store::{Error, ErrorKind, ObjectMeta, Payload, Put, Result, Store};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Put,
    Get,
    Range,
    /// A range that other processes read as well.
    Shared,
    Size,
    Settle,
    List,
    Delete,
}

/// One call, by its number among all calls.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) n: usize,
    pub(crate) op: Op,
    pub(crate) key: String,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Pass,
    /// Nothing happens, and this is the answer.
    Fail(ErrorKind),
    /// It happens, and the answer is lost.
    Lose,
    /// A put leaves the first half of its bytes, and its answer is lost.
    Tear,
    /// A read gives one wrong bit.
    Flip,
}

type Script = dyn Fn(&Call) -> Act + Send + Sync;

/// The store; clones share everything.
#[derive(Clone)]
pub(crate) struct Tap(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    script: Mutex<Arc<Script>>,
    calls: Mutex<Vec<Call>>,
    bytes_put: AtomicU64,
    held: Mutex<Option<Vec<(String, Payload)>>>,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

impl Tap {
    pub(crate) fn new(store: impl Store) -> Self {
        Self(Arc::new(Inner {
            store: Arc::new(store),
            script: Mutex::new(Arc::new(|_| Act::Pass)),
            calls: Mutex::default(),
            bytes_put: AtomicU64::new(0),
            held: Mutex::default(),
        }))
    }

    /// From here on every call is put to `script`, numbered from 0.
    pub(crate) fn play(&self, script: impl Fn(&Call) -> Act + Send + Sync + 'static) {
        self.0.calls.lock().unwrap().clear();
        *self.0.script.lock().unwrap() = Arc::new(script);
    }

    /// From here on every call passes, numbered from 0.
    pub(crate) fn pass(&self) {
        self.play(|_| Act::Pass);
    }

    /// The calls since the script was set.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.0.calls.lock().unwrap().clone()
    }

    /// From here on it holds what it was given to put, as a client does that would send it again.
    pub(crate) fn hold(&self) {
        *self.0.held.lock().unwrap() = Some(Vec::new());
    }

    /// What it held, by key.
    pub(crate) fn held(&self) -> Vec<(String, Payload)> {
        self.0.held.lock().unwrap().take().unwrap_or_default()
    }

    /// The bytes of all objects that were created through this store.
    pub(crate) fn bytes_put(&self) -> u64 {
        self.0.bytes_put.load(Ordering::Relaxed)
    }

    fn judge(&self, op: Op, key: &str) -> Act {
        let call = {
            let mut calls = self.0.calls.lock().unwrap();
            let call = Call { n: calls.len(), op, key: key.to_owned() };
            calls.push(call.clone());
            call
        };
        let script = Arc::clone(&self.0.script.lock().unwrap());
        script(&call)
    }

    /// The answer of a call without bytes.
    async fn answer<T>(
        &self,
        op: Op,
        key: &str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.judge(op, key) {
            Act::Fail(kind) => Err(Error::new(kind, "planted").with_object(key)),
            Act::Lose | Act::Tear => {
                let _ = call.await;
                Err(Error::unavailable("planted: the answer is lost").with_object(key))
            }
            Act::Pass | Act::Flip => call.await,
        }
    }

    async fn read(
        &self,
        op: Op,
        key: &str,
        call: impl Future<Output = Result<Bytes>> + Send,
    ) -> Result<Bytes> {
        match self.judge(op, key) {
            Act::Fail(kind) => Err(Error::new(kind, "planted").with_object(key)),
            Act::Lose | Act::Tear => Err(Error::unavailable("planted: no answer").with_object(key)),
            Act::Pass => call.await,
            Act::Flip => {
                let mut bytes = call.await?.to_vec();
                let middle = bytes.len() / 2;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 4;
                }
                Ok(bytes.into())
            }
        }
    }
}

#[async_trait]
impl Store for Tap {
    fn location(&self) -> String {
        self.0.store.location()
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        let bytes = payload.len();
        let store = &self.0.store;
        if let Some(held) = self.0.held.lock().unwrap().as_mut() {
            held.push((key.to_owned(), payload.clone()));
        }
        let put = match self.judge(Op::Put, key) {
            Act::Fail(kind) => return Err(Error::new(kind, "planted").with_object(key)),
            Act::Pass | Act::Flip => store.put_if_absent(key, payload).await?,
            Act::Lose => {
                store.put_if_absent(key, payload).await?;
                self.0.bytes_put.fetch_add(bytes, Ordering::Relaxed);
                return Err(Error::unavailable("planted: the answer is lost").with_object(key));
            }
            Act::Tear => {
                let half = payload.to_bytes().slice(..bytes as usize / 2);
                store.put_if_absent(key, half.into()).await?;
                return Err(Error::unavailable("planted: torn").with_object(key));
            }
        };
        if put == Put::Created {
            self.0.bytes_put.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(put)
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        self.read(Op::Get, key, self.0.store.get(key, bytes_max)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.read(Op::Range, key, self.0.store.get_range(key, range)).await
    }

    async fn read_shared_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        let range = offset..offset + target.len() as u64;
        let bytes = self.read(Op::Shared, key, self.0.store.get_range(key, range)).await?;
        target.copy_from_slice(&bytes);
        Ok(())
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.answer(Op::Size, key, self.0.store.size(key)).await
    }

    async fn settle(&self, key: &str) -> Result<()> {
        self.answer(Op::Settle, key, self.0.store.settle(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        self.answer(Op::List, prefix, self.0.store.list(prefix, after)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.answer(Op::Delete, key, self.0.store.delete(key)).await
    }
}

/// A gate that calls wait at until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    open: bool,
    waiting: usize,
}

impl Gate {
    /// Waits until the gate is open.
    pub(crate) fn pass(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.waiting += 1;
        self.0.1.notify_all();
        while !state.open {
            state = self.0.1.wait(state).unwrap();
        }
        state.waiting -= 1;
    }

    pub(crate) fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }

    /// Waits until somebody waits at the gate.
    pub(crate) fn await_waiting(&self) {
        let mut state = self.0.0.lock().unwrap();
        while state.waiting == 0 {
            state = self.0.1.wait(state).unwrap();
        }
    }
}
