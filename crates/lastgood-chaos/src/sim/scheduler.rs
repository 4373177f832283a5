//! Tasks, virtual time and events, all in one thread and in an order that the seed decides.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::coverage::{Feature, Features};
use super::objects::Objects;
use super::trace::Trace;
use crate::random::Random;

/// A task: one rank, an operator, a reader.
pub(super) type Task = usize;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What happens next.
#[derive(Debug)]
pub(super) enum Event {
    /// A task goes on.
    Wake(Task),
    /// A put whose caller was told nothing, or is gone, arrives.
    LatePut { key: String, bytes: Bytes },
    /// The story goes on.
    Alarm(usize),
}

/// Everything that tasks share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) objects: Objects,
    pub(super) trace: Trace,
    /// Reads that were damaged on the way, each of which is right the next time.
    pub(super) damaged: BTreeSet<(Task, String)>,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    /// Tasks that die at their next pause.
    doomed: Vec<Task>,
    pub(super) crashes: u64,
    pub(super) features: Features,
}

impl State {
    pub(super) fn at(&mut self, time: u64, event: Event) {
        self.events.insert((time.max(self.now), self.next_event), event);
        self.next_event += 1;
    }

    /// Ends a task where it stands: it is never polled again.
    pub(super) fn crash(&mut self, task: Task) {
        self.crashes += 1;
        self.doomed.push(task);
    }
}

/// A handle to the state.
#[derive(Clone, Debug)]
pub(super) struct Sim(Arc<Mutex<State>>);

impl Sim {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets others go on for so many microseconds.
    pub(super) fn pause(&self, task: Task, micros: u64) -> Pause<'_> {
        Pause { sim: self, task, micros, asked: false }
    }

    /// Never returns: the task is dropped.
    pub(super) async fn die(&self, task: Task) {
        self.lock().crash(task);
        std::future::pending::<()>().await;
    }
}

/// A scheduling point.
pub(super) struct Pause<'s> {
    sim: &'s Sim,
    task: Task,
    micros: u64,
    asked: bool,
}

impl Future for Pause<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.asked {
            return Poll::Ready(());
        }
        self.asked = true;
        let mut state = self.sim.lock();
        let at = state.now + self.micros;
        state.at(at, Event::Wake(self.task));
        Poll::Pending
    }
}

/// Runs tasks, one event at a time.
pub(super) struct Scheduler {
    pub(super) sim: Sim,
    tasks: BTreeMap<Task, Work>,
    next_task: Task,
    pub(super) events_done: u64,
}

impl Scheduler {
    pub(super) fn new(random: Random, trace: Trace) -> Self {
        let state = State {
            now: 0,
            random,
            objects: Objects::default(),
            trace,
            damaged: BTreeSet::new(),
            events: BTreeMap::new(),
            next_event: 0,
            doomed: Vec::new(),
            crashes: 0,
            features: Features::default(),
        };
        let sim = Sim(Arc::new(Mutex::new(state)));
        Self { sim, tasks: BTreeMap::new(), next_task: 0, events_done: 0 }
    }

    /// Starts a task after so many microseconds.
    pub(super) fn spawn(&mut self, after: u64, work: impl Future<Output = ()> + Send + 'static) {
        let task = self.next_task;
        self.next_task += 1;
        self.tasks.insert(task, Box::pin(work));
        let mut state = self.sim.lock();
        let at = state.now + after;
        state.at(at, Event::Wake(task));
    }

    /// The number of the task that is started next.
    pub(super) fn next_task(&self) -> Task {
        self.next_task
    }

    /// True if the task has neither ended nor crashed.
    pub(super) fn is_alive(&self, task: Task) -> bool {
        self.tasks.contains_key(&task)
    }

    /// Ends every task where it stands.
    pub(super) fn kill_all(&mut self) {
        self.tasks.clear();
    }

    /// Lets the next event happen. Gives the alarm if it is one, and `None` if nothing is left.
    pub(super) fn turn(&mut self) -> Option<Option<usize>> {
        let event = {
            let mut state = self.sim.lock();
            let ((time, _), event) = state.events.pop_first()?;
            state.now = time;
            event
        };
        self.events_done += 1;
        match event {
            Event::Wake(task) => self.poll(task),
            Event::LatePut { key, bytes } => {
                let mut state = self.sim.lock();
                let State { now, objects, trace, features, .. } = &mut *state;
                let created = objects.create(&key, bytes, *now);
                trace.note(*now, usize::MAX, "late put", &key, &created);
                features.note_if(Feature::LateEntry, created && key.contains("/ledger/0"));
            }
            Event::Alarm(alarm) => return Some(Some(alarm)),
        }
        Some(None)
    }

    fn poll(&mut self, task: Task) {
        let Some(work) = self.tasks.get_mut(&task) else { return };
        let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let doomed = {
            let mut state = self.sim.lock();
            let doomed = state.doomed.contains(&task);
            state.doomed.retain(|other| *other != task);
            doomed
        };
        if polled.is_ready() || doomed {
            self.tasks.remove(&task);
        }
    }
}
