//! The thread that reads the ledger for a rank's pace, and writes what it decides. It decides nothing itself.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lastgood_format::ledger::Kind;
use lastgood_format::{Error, ErrorKind, Result};

use super::pace::Last;
use crate::io::StoreIo;
use crate::ledger::{Appended, Decision, Ledger, Writer};
use crate::policy::pace::{Pace, Want};
use crate::policy::{Explanation, Policy};
use crate::process::Process;
use crate::save::SaveHandle;
use crate::state::World;

/// How often the ledger is read: a look costs a request, which is nothing on this disk, and elsewhere little.
const LOOK_LOCAL: Duration = Duration::from_millis(200);
const LOOK_REMOTE: Duration = Duration::from_secs(2);
/// How often a rank that ends looks for its last save, and for a request to end later.
const LOOK_LAST: Duration = Duration::from_millis(50);

/// The pace of a rank, and the thread that reads the ledger for it.
#[derive(Debug)]
pub(super) struct Watch {
    io: StoreIo,
    shared: Arc<Shared>,
    /// Where the thread begins to read; taken when it starts.
    start: Option<(Ledger, Writer, Duration)>,
    thread: Option<JoinHandle<()>>,
    process: Process,
    /// Saves that are under way.
    flying: Vec<SaveHandle>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    pace: Pace,
    /// There is something to be told at once.
    pressed: bool,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// The thread starts with the first step.
    pub(super) fn new(
        (io, ledger, writer): (&StoreIo, &Ledger, &Writer),
        policy: Policy,
        world: World,
    ) -> Self {
        let is_local = ledger.store().location().starts_with("file:");
        let look = if is_local { LOOK_LOCAL } else { LOOK_REMOTE };
        let pace = Pace::new(policy, world, look, io.env.elapsed());
        let start = pace.listens().then(|| (ledger.clone(), writer.clone(), look));
        let inner = Inner { pace, pressed: false, closing: false };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new() });
        let (thread, flying) = (None, Vec::new());
        Self { io: io.clone(), shared, start, thread, process: Process::this(), flying }
    }

    pub(super) fn restored(&self, step: u64) {
        self.shared.lock().pace.restored(step, self.io.env.elapsed());
    }

    /// A save was called at `began`.
    pub(super) fn saved(&mut self, began: Duration, handle: &SaveHandle) {
        let now = self.io.env.elapsed();
        self.shared.lock().pace.saved(handle.step(), began, now);
        self.flying.push(handle.clone());
    }

    /// What is wanted at the end of `step`.
    pub(super) fn step(&mut self, step: u64) -> Result<Want> {
        self.process.check()?;
        self.start()?;
        let now = self.io.env.elapsed();
        let mut inner = self.shared.lock();
        let mut measured = false;
        self.flying.retain(|save| match save.end() {
            None => true,
            Some(at) => {
                inner.pace.meter().saved(save.step(), at);
                measured = true;
                false
            }
        });
        let want = inner.pace.step(step, now);
        inner.pressed |= measured;
        Ok(want)
    }

    pub(super) fn notice(&self) -> bool {
        let mut inner = self.shared.lock();
        let heard = inner.pace.notice(self.io.env.elapsed());
        inner.pressed = true;
        self.shared.changed.notify_all();
        heard
    }

    /// Waits for the save of `step`, the last one.
    pub(super) fn wait_last(&self, step: u64, save: &SaveHandle) -> Result<Last> {
        while save.wait_timeout(LOOK_LAST)?.is_none() {
            let inner = self.shared.lock();
            if inner.pace.orders().ends_after(Some(step)) {
                return Ok(Last::GoesOn);
            }
            if inner.pace.deadline().is_some_and(|deadline| deadline <= self.io.env.elapsed()) {
                return Ok(Last::Late);
            }
        }
        Ok(Last::Done)
    }

    pub(super) fn explain(&self) -> Option<Explanation> {
        self.shared.lock().pace.explain(self.io.env.elapsed())
    }

    /// True if the attempt says in the ledger how it ends.
    pub(super) fn tells(&self) -> bool {
        self.shared.lock().pace.tells()
    }

    fn start(&mut self) -> Result<()> {
        let Some((mut ledger, writer, look)) = self.start.take() else { return Ok(()) };
        // What the attempt begins with holds for its first step too.
        self.io.block_on(ledger.refresh())?;
        self.shared.lock().pace.read(ledger.history());
        let (io, shared) = (self.io.clone(), Arc::clone(&self.shared));
        let spawned = std::thread::Builder::new()
            .name("lastgood-pace".into())
            .spawn(move || watch(&io, &shared, ledger, &writer, look));
        let thread = spawned.map_err(|e| {
            Error::new(ErrorKind::Overloaded, format!("no thread to read the ledger: {e}"))
        })?;
        self.thread = Some(thread);
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if !self.process.is_this() {
            std::mem::forget(thread);
            return;
        }
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        // It has nothing to say.
        let _ = thread.join();
    }
}

/// Reads until the run is closed, or belongs to a newer attempt.
fn watch(io: &StoreIo, shared: &Shared, mut ledger: Ledger, writer: &Writer, look: Duration) {
    let mut read = ledger.history().entries();
    loop {
        let inner = shared.lock();
        let waits = |inner: &mut Inner| !inner.closing && !inner.pressed;
        let waited = shared.changed.wait_timeout_while(inner, look, waits);
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if inner.closing {
            return;
        }
        inner.pressed = false;
        drop(inner);
        // What cannot be read or written now can be later; saves tell of a store that fails.
        if io.block_on(ledger.refresh()).is_err() {
            continue;
        }
        if ledger.history().newest_attempt() > writer.attempt {
            return;
        }
        let mut inner = shared.lock();
        if ledger.history().entries() > read {
            read = ledger.history().entries();
            inner.pace.read(ledger.history());
        }
        let told = inner.pace.tell(io.env.elapsed());
        drop(inner);
        if let Some(kind) = told {
            // What it has read and written is seen at once.
            shared.lock().pressed |= append(io, &mut ledger, (writer, &kind));
        }
    }
}

/// Appends `kind` unless the ledger has moved. False if nobody knows.
fn append(io: &StoreIo, ledger: &mut Ledger, (writer, kind): (&Writer, &Kind)) -> bool {
    let read = ledger.history().entries();
    // Whatever somebody else has written meanwhile may be an answer too: it is looked at again then.
    let appended = io.block_on(ledger.append(writer, |history| {
        Ok(match history.entries() == read {
            true => Decision::Append(kind.clone()),
            false => Decision::Nothing,
        })
    }));
    matches!(appended, Ok(Appended::Committed(_) | Appended::Nothing))
}
