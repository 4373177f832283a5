//! Going through the points of recordings, and through the states of each point.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::disk::Step;
use super::judge::Judge;
use super::replay::Replay;
use super::scenario::{Recording, Scenario, seed_at};
use super::states::States;
use crate::failure::{Failure, Result, bail};
use crate::random::hash_bytes;
use crate::setting::Setting;
use crate::violation::Violation;

/// How many recordings may be begun after one that has not ended.
const AHEAD_MAX: u64 = 1_000;

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Recordings.
    pub recordings: u64,
    /// Those of the real engine.
    pub engine: u64,
    /// Points at which the power may go.
    pub points: u64,
    /// Points of which every state was tried.
    pub exhaustive: u64,
    /// States.
    pub states: u64,
    /// Those of points of which every state was tried.
    pub exhaustive_states: u64,
    /// Different disks, each in its recording.
    pub images: u64,
    /// Different disks in what a reader can see, or with more that had been told: each was judged.
    pub judged: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.recordings += other.recordings;
        self.engine += other.engine;
        self.points += other.points;
        self.exhaustive += other.exhaustive;
        self.states += other.states;
        self.exhaustive_states += other.exhaustive_states;
        self.images += other.images;
        self.judged += other.judged;
    }
}

/// A state that breaks a promise.
#[derive(Clone, Debug)]
pub struct Found {
    /// The recording.
    pub recording: u64,
    /// After how many operations the power went.
    pub point: usize,
    /// The number of the state at that point.
    pub state: u64,
    /// The promise.
    pub violation: Violation,
}

/// What became of all recordings.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was tried.
    pub counts: Counts,
    /// The first state of each recording that breaks a promise.
    pub found: Vec<Found>,
}

/// Tries recordings from number 0 until at least so many states were tried.
///
/// # Errors
/// If a recording cannot be made.
pub fn enumerate(states: u64, setting: &Setting) -> Result<Report> {
    let work = Mutex::new(Work { setting, states, next: 0, done: BTreeMap::new() });
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| share(&work))).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| bail!("judging a crash panicked"))
        })
    })?;
    let work = work.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut report = Report::default();
    for (counts, found) in work.done.into_values() {
        if report.counts.states < states {
            report.counts.add(&counts);
        }
        report.found.extend(found);
    }
    Ok(report)
}

/// What all threads share.
struct Work<'s> {
    setting: &'s Setting,
    states: u64,
    next: u64,
    done: BTreeMap<u64, (Counts, Option<Found>)>,
}

impl Work<'_> {
    /// The next recording, if those before it are not enough.
    fn next(&mut self) -> Option<u64> {
        let in_row = self.done.iter().zip(0..).take_while(|((number, _), i)| **number == *i);
        let states: u64 = in_row.map(|((_, (counts, _)), _)| counts.states).sum();
        // Nobody goes far ahead of a recording that takes long.
        let first_open = self.done.keys().zip(0..).find(|(number, i)| **number != *i);
        let is_far = first_open.is_some_and(|(_, i)| self.next > i + AHEAD_MAX);
        if states >= self.states || is_far {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

fn share(work: &Mutex<Work<'_>>) -> Result<()> {
    let lock =
        || -> MutexGuard<'_, Work<'_>> { work.lock().unwrap_or_else(PoisonError::into_inner) };
    loop {
        let (number, setting) = {
            let mut work = lock();
            let Some(number) = work.next() else { return Ok(()) };
            (number, work.setting)
        };
        let done = recording(number, setting)?;
        lock().done.insert(number, done);
    }
}

/// Tries one recording, up to the first state that breaks a promise.
///
/// # Errors
/// If the recording cannot be made.
pub fn recording(number: u64, setting: &Setting) -> Result<(Counts, Option<Found>)> {
    let recording = Scenario::of(number).record(setting)?;
    let engine = u64::from(recording.scenario.is_engine);
    let mut counts = Counts { recordings: 1, engine, ..Counts::default() };
    let mut walk = Walk::new(&recording, number)?;
    for point in 0..=recording.steps.len() {
        let found = walk.try_point(point, &mut counts);
        if found.is_some() {
            return Ok((counts, found));
        }
        if let Some(step) = recording.steps.get(point) {
            walk.replay.go_on(step);
        }
    }
    Ok((counts, None))
}

struct Walk<'r> {
    recording: &'r Recording,
    number: u64,
    replay: Replay,
    judge: Judge<'r>,
    /// Hashes of the files.
    contents: Vec<u64>,
    images: BTreeSet<u64>,
    judged: BTreeSet<(u64, usize)>,
}

impl<'r> Walk<'r> {
    fn new(recording: &'r Recording, number: u64) -> Result<Self> {
        Ok(Self {
            recording,
            number,
            replay: Replay::new(&recording.files),
            judge: Judge::new(recording)?,
            contents: recording.files.iter().map(|bytes| hash_bytes(bytes)).collect(),
            images: BTreeSet::new(),
            judged: BTreeSet::new(),
        })
    }

    /// What had been told when the power goes before the step that comes next.
    fn told(&self, point: usize) -> usize {
        let next: Option<&Step> = self.recording.steps.get(point);
        next.map_or(self.recording.told.len(), |step| step.told)
    }

    fn try_point(&mut self, point: usize, counts: &mut Counts) -> Option<Found> {
        let told = self.told(point);
        let states = States::of(&self.replay, &self.contents, seed_at(self.number, point));
        counts.points += 1;
        if states.is_exhaustive() {
            counts.exhaustive += 1;
            counts.exhaustive_states += states.len();
        }
        for state in 0..states.len() {
            let image = states.image(state);
            counts.states += 1;
            counts.images += u64::from(self.images.insert(image.all));
            if !self.judged.insert((image.seen, told)) {
                continue;
            }
            counts.judged += 1;
            if let Err(violation) = self.judge.judge(image.tree, told, image.seen) {
                let recording = self.number;
                return Some(Found { recording, point, state, violation });
            }
        }
        None
    }
}

impl Found {
    /// How the state came about, for a person.
    ///
    /// # Errors
    /// If the recording cannot be made again.
    pub fn explain(&self, setting: &Setting) -> Result<String> {
        let recording = Scenario::of(self.recording).record(setting)?;
        let begin = self.point.saturating_sub(20);
        let steps = recording.steps.get(begin..self.point);
        let steps = steps.ok_or_else(|| Failure::new("the recording is another one"))?;
        let lines = steps
            .iter()
            .zip(begin..)
            .map(|(step, i)| format!("  {i:5}  player {}  {:?}\n", step.who, step.op));
        Ok(lines.collect())
    }
}
