//! The memory that ranks capture in, which outlives them.

use std::thread;
use std::time::{Duration, Instant};

use lastgood::save::complete;
use lastgood::tier::Tier;
use lastgood::{Error, ErrorKind, Repository, Result, RunName};
use lastgood_store::SharedMemory;

use super::{Event, Job};

/// How long processes that a rank has started may keep its memory after its end.
const TAKEN_MAX: Duration = Duration::from_secs(2);

/// One for each place, or none.
#[derive(Debug)]
pub(super) struct Memories(Vec<SharedMemory>);

impl Memories {
    pub(super) fn new(job: &Job) -> Result<Self> {
        let places = if job.memory { job.ranks } else { 0 };
        let memory = |place| SharedMemory::create(&format!("lastgood {} {place}", job.run));
        (0..places).map(memory).collect::<Result<_>>().map(Self)
    }

    /// The path of the memory of `place`.
    pub(super) fn path(&self, place: u32) -> Option<String> {
        self.0.get(place as usize).map(SharedMemory::path)
    }

    /// Completes what the ranks have left, and tells of it. Whatever comes of it, the next attempt may begin.
    pub(super) fn complete(
        &self,
        repository: &Repository,
        run: &RunName,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        if self.0.is_empty() {
            return;
        }
        match self.take().and_then(|tiers| complete(repository, run, &tiers)) {
            Ok(None) => {}
            Ok(Some(completed)) => on_event(Event::Completed(completed)),
            Err(error) => on_event(Event::NotCompleted(&error)),
        }
    }

    /// Takes the memory of all ranks, which have ended. What they have started may take a moment longer.
    fn take(&self) -> Result<Vec<Tier>> {
        let until = Instant::now() + TAKEN_MAX;
        let take = |memory: &SharedMemory| loop {
            match Tier::open(&memory.path()) {
                Err(error) if is_taken(&error) && Instant::now() < until => {
                    thread::sleep(super::attempt::POLL);
                }
                opened => break opened,
            }
        };
        self.0.iter().map(take).collect()
    }
}

fn is_taken(error: &Error) -> bool {
    error.kind() == ErrorKind::Conflict
}
