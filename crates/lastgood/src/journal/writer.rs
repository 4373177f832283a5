//! The threads of a journal: one syncs what was appended, in groups; one seals what waits for too long.

use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use lastgood_format::journal::tail::Owner;
use lastgood_format::journal::{Cut, Kind, Lane, Value, segment};
use lastgood_format::{Error, ErrorKind, Result};
use lastgood_store::{Disk, RealDisk};

use super::lanes::{self, Event, Lanes};
use super::recover::{self, Recovered};
use super::tail::Tail;
use crate::io::StoreIo;
use crate::process::Process;

/// How often the thread that seals looks at the clock.
const LOOK: Duration = Duration::from_millis(500);

/// Names an append: [`Journal::wait`] waits until it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Debug)]
struct State {
    lanes: Lanes,
    /// Encoded frames that are not in the open segment yet.
    pending: Vec<u8>,
    appended: u64,
    durable: u64,
    /// Why the last group did not become durable; cleared by one that did.
    stuck: Option<Error>,
    failures: Vec<Error>,
    recovered: Option<Recovered>,
    /// True once it was tried to recover what earlier attempts have left.
    has_recovered: bool,
    closing: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the thread that syncs: something was appended, or the journal is closed.
    appended: Condvar,
    /// Wakes who waits for an event to become durable.
    durable: Condvar,
    /// Wakes the threads that look now and then.
    closed: Condvar,
    /// Wakes who waits for what earlier attempts have left.
    recovered: Condvar,
    /// What the journal says of itself stands here.
    own: Lane,
    /// Held while segments are put: one at a time, so that each continues the one before.
    sealing: Mutex<()>,
    tail: Mutex<Tail>,
    folder: PathBuf,
    io: StoreIo,
}

/// The lanes of one process in one attempt. Clones are the same journal.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    process: Process,
}

impl Journal {
    /// Begins the lanes of `owner`'s attempt, those that `first` are of, with these events. What earlier attempts
    /// have left in `folder` is sealed behind it, and `own` says what was not.
    pub(crate) fn start(
        io: StoreIo,
        owner: Owner,
        (first, own): (&[Event], Lane),
        folder: PathBuf,
        seal_after: Duration,
    ) -> Result<Self> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let stem = format!("{:016x}", io.env.random());
        let mut state = State {
            lanes: Lanes::new(owner.clone(), first.iter().map(|event| event.lane)),
            pending: Vec::new(),
            appended: 0,
            durable: 0,
            stuck: None,
            failures: Vec::new(),
            recovered: None,
            has_recovered: false,
            closing: false,
        };
        for event in first {
            state.append(event, io.env.now())?;
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            appended: Condvar::new(),
            durable: Condvar::new(),
            closed: Condvar::new(),
            recovered: Condvar::new(),
            own,
            sealing: Mutex::new(()),
            tail: Mutex::new(Tail::new(Arc::clone(&disk), folder.clone(), owner, &stem)),
            folder,
            io,
        });
        let (syncing, sealing) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            spawn("lastgood-journal", move || syncing.sync_groups())?,
            spawn("lastgood-seal", move || sealing.seal_now_and_then(&*disk, seal_after))?,
        ];
        Ok(Self { shared, threads: Arc::new(Mutex::new(threads)), process: Process::this() })
    }

    /// Appends an event to its lane. It is durable a moment later; [`Journal::wait`] waits for that.
    ///
    /// # Errors
    /// `Invalid` if the lane is not of this process or the event too large; `Overloaded` if the store has not
    /// answered for so long that too much waits; `Closed` after [`Journal::close`] and in a forked child.
    pub fn append(&self, event: &Event) -> Result<Ticket> {
        self.process.check()?;
        let now = self.shared.io.env.now();
        let mut state = self.shared.lock();
        if state.closing {
            return Err(Error::new(ErrorKind::Closed, "the journal is closed"));
        }
        let ticket = state.append(event, now)?;
        drop(state);
        self.shared.appended.notify_one();
        Ok(ticket)
    }

    /// Waits until what `ticket` names is durable on the local disk.
    ///
    /// # Errors
    /// What keeps it from becoming so; `Closed` in a forked child.
    pub fn wait(&self, ticket: Ticket) -> Result<()> {
        self.process.check()?;
        let waits = |state: &mut State| state.durable < ticket.0 && state.stuck.is_none();
        let state = self.shared.durable.wait_while(self.shared.lock(), waits);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        match &state.stuck {
            Some(error) if state.durable < ticket.0 => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Where all lanes of this process are now.
    #[must_use]
    pub fn cut(&self) -> Cut {
        self.shared.lock().lanes.cut()
    }

    /// Puts everything before `upto` into the repository.
    ///
    /// # Errors
    /// `Conflict` if another process wrote as this one; `Unavailable`, `Overloaded`, `Denied`.
    pub fn seal(&self, upto: &Cut) -> Result<()> {
        self.process.check()?;
        self.shared.seal(upto)
    }

    /// What could not be made durable or sealed, since it was last asked for, and damage that was found in what earlier
    /// attempts have left. Events of this one are kept until they are sealed.
    pub fn take_failures(&self) -> Vec<Error> {
        mem::take(&mut self.shared.lock().failures)
    }

    /// Keeps an error of this journal that ends nothing, until [`Journal::take_failures`].
    pub(crate) fn tell(&self, error: Error) {
        self.shared.lock().tell(error);
    }

    /// What was recovered of earlier attempts, once that is done.
    #[must_use]
    pub fn recovered(&self) -> Option<Recovered> {
        self.shared.lock().recovered.clone()
    }

    /// Waits until what earlier attempts have left on this disk is in the repository.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be put there, which the failures of this journal say more of.
    pub(crate) fn wait_recovered(&self) -> Result<()> {
        let waits = |state: &mut State| !state.has_recovered;
        let state = self.shared.recovered.wait_while(self.shared.lock(), waits);
        match state.unwrap_or_else(PoisonError::into_inner).recovered {
            Some(_) => Ok(()),
            None => Err(Error::unavailable(
                "what an earlier attempt has left of its journal is not in the store",
            )
            .with_object(self.shared.folder.display().to_string())),
        }
    }

    /// Seals everything and ends the threads. A second call does nothing.
    ///
    /// # Errors
    /// `Unavailable` and what else kept events from being sealed, if nobody was told of it; they stay in the open
    /// segment. `Corrupt` if those of an earlier attempt were damaged, and nobody was told.
    pub fn close(&self) -> Result<()> {
        self.process.check()?;
        self.shared.lock().closing = true;
        self.shared.appended.notify_all();
        self.shared.closed.notify_all();
        let threads = mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if threads.into_iter().any(|thread| thread.join().is_err()) {
            return Err(Error::internal("a thread of the journal panicked"));
        }
        // What a thread said of its last work.
        self.shared.sync_group();
        self.shared.release();
        self.take_failures().into_iter().next().map_or(Ok(()), Err)
    }
}

/// What an event says of a failure of this rank: of the save of `step`, or of the journal.
pub(crate) fn fault(what: &str, step: Option<u64>, error: &Error) -> Value {
    let step = step.map(|step| ("step", step.into()));
    let object = error.object().map(|object| ("object", object.into()));
    let members = [
        ("what", what.into()),
        ("error", error.kind().name().into()),
        ("cause", error.to_string().into()),
    ];
    Value::map(members.into_iter().chain(step).chain(object))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|e| Error::new(ErrorKind::Overloaded, format!("no thread for the journal: {e}")))
}

impl State {
    fn append(&mut self, event: &Event, now: SystemTime) -> Result<Ticket> {
        self.pending.extend_from_slice(self.lanes.append(event, now)?);
        self.appended += 1;
        Ok(Ticket(self.appended))
    }

    /// Keeps an error, unless the last one that was kept says the same.
    fn tell(&mut self, error: Error) {
        let is_news = self
            .failures
            .last()
            .is_none_or(|last| (last.kind(), last.object()) != (error.kind(), error.object()));
        if is_news {
            self.failures.push(error);
        }
    }

    fn fail(&mut self, folder: &Path, error: &io::Error) {
        let what = format!("events of the journal are not on the disk: {}", folder.display());
        let error = Error::unavailable(format!("{what}: {error}"))
            .with_remedy("they are kept in memory until they are in the store");
        if self.stuck.is_none() {
            self.failures.push(error.clone());
        }
        self.stuck = Some(error);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what the journal itself has to say, also while it is being closed. That it cannot is no failure:
    /// whoever must know is told.
    fn note(&self, kind: Kind, value: Value) {
        let event = Event { lane: self.own, kind, step: 0, value };
        let appended = self.lock().append(&event, self.io.env.now());
        if appended.is_ok() {
            self.appended.notify_one();
        }
    }

    /// Syncs what was appended, in groups, until the journal is closed.
    fn sync_groups(&self) {
        loop {
            let waits = |state: &mut State| state.pending.is_empty() && !state.closing;
            let state = self.appended.wait_while(self.lock(), waits);
            if state.unwrap_or_else(PoisonError::into_inner).pending.is_empty() {
                return;
            }
            self.sync_group();
            let state = self.lock();
            if state.stuck.is_some() {
                let waits = |state: &mut State| !state.closing;
                let waited = self.closed.wait_timeout_while(state, LOOK, waits);
                if waited.unwrap_or_else(PoisonError::into_inner).0.closing {
                    return;
                }
            }
        }
    }

    /// Syncs what was appended, everything that came meanwhile at once.
    fn sync_group(&self) {
        // Held all the time: the groups stand in the file in their order.
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        let frames = mem::take(&mut state.pending);
        if frames.is_empty() {
            return;
        }
        let (counts, ticket) = (state.lanes.counts(), state.appended);
        drop(state);
        let written = tail.append(&frames, &counts);
        let mut state = self.lock();
        match written {
            Ok(()) => {
                state.durable = state.durable.max(ticket);
                state.stuck = None;
            }
            Err(error) => {
                state.pending.splice(0..0, frames);
                state.fail(&self.folder, &error);
            }
        }
        drop(state);
        self.durable.notify_all();
    }

    /// Recovers what earlier attempts have left, and then seals what waits for too long, until the journal is
    /// closed; and then the rest.
    fn seal_now_and_then(&self, disk: &dyn Disk, seal_after: Duration) {
        self.recover(disk);
        let mut last = self.io.env.elapsed();
        // Why nothing was sealed the last time.
        let mut failed = None;
        loop {
            let waits = |state: &mut State| !state.closing;
            let waited = self.closed.wait_timeout_while(self.lock(), LOOK, waits);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let is_full = state.lanes.open_bytes_max() >= segment::FRAMES_BYTES;
            let (is_closing, upto) = (state.closing, state.lanes.cut());
            drop(state);
            let now = self.io.env.elapsed();
            if !(is_closing || is_full || now.saturating_sub(last) >= seal_after) {
                continue;
            }
            last = now;
            let sealed = self.seal(&upto);
            if let Err(error) = &sealed {
                // As long as it goes on, it is one failure: its events wait with the others.
                if failed != Some(error.kind()) {
                    self.note(Kind::FAULT, fault("seal", None, error));
                }
                let error = error.clone();
                self.lock().tell(error.context("events of the journal are not in the store"));
            }
            failed = sealed.err().map(|error| error.kind());
            if is_closing {
                return;
            }
        }
    }

    /// What was not recovered is recorded, and told if it is more than a crash may leave.
    fn recover(&self, disk: &dyn Disk) {
        let owner = self.lock().lanes.owner().clone();
        let store = self.io.store.as_ref();
        let mut recovered = Recovered::default();
        let all = recover::recover(disk, &self.folder, store, &owner, &mut recovered);
        let all = self.io.block_on(all);
        for notice in &recovered.notices {
            self.note(Kind::TAIL_CUT, notice.value());
            if let Some(error) = notice.error() {
                self.lock().tell(error);
            }
        }
        match all {
            Ok(()) => self.lock().recovered = Some(recovered),
            Err(error) => {
                self.note(Kind::FAULT, fault("recover", None, &error));
                let error = error.context("the journal of an earlier attempt is not recovered yet");
                self.lock().tell(error);
            }
        }
        self.lock().has_recovered = true;
        self.recovered.notify_all();
    }

    fn seal(&self, upto: &Cut) -> Result<()> {
        let _one = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        let (owner, pieces) = {
            let state = self.lock();
            (state.lanes.owner().clone(), state.lanes.to_seal(upto))
        };
        for piece in pieces {
            self.io.block_on(lanes::seal(self.io.store.as_ref(), &owner, &piece))?;
            self.lock().lanes.sealed(piece.lane, piece.end);
        }
        self.release();
        Ok(())
    }

    /// Removes the open segments whose frames are all sealed.
    fn release(&self) {
        let mut state = self.lock();
        if state.lanes.open_bytes() == 0 {
            // What is in the store needs no place on the disk any more, whatever keeps it from there.
            state.pending.clear();
            state.durable = state.appended;
            state.stuck = None;
        }
        let counts = state.lanes.sealed_counts();
        drop(state);
        self.durable.notify_all();
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).release(&counts);
    }
}
