//! What is recorded: ranks of one attempt after another, through the real local store, ledger and commit
//! code, and, in some recordings, through the real engine.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use lastgood::save::SaveOptions;
use lastgood::state::World;
use lastgood::{Error, Repository, Result, Run, RunName, RunOptions};
use lastgood_format::key::SaveKey;
use lastgood_store::{Disk, Env, LocalStore, Store};

use super::disk::{Recorder, RecordingDisk, RecordingEnv, Step};
use crate::attack::state::{self, Size};
use crate::failure;
use crate::random::{Random, join};
use crate::ranks::{Order, Rank, Told, Witness, run};
use crate::setting::Setting;
use crate::sim::check::at_once;

/// Where the store is, on a disk that does not exist.
pub(super) const ROOT: &str = "/store";

/// Of so many recordings one is of the real engine.
const ENGINE_EVERY: u64 = 16;

/// One attempt.
#[derive(Clone, Debug)]
struct Act {
    world_size: u32,
    steps: Vec<u64>,
    /// The turn in which it begins.
    begin: u64,
}

/// What one seed stands for.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    seed: u64,
    acts: Vec<Act>,
    sync_turns: u64,
    pub(super) is_engine: bool,
}

/// What happened.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) scenario: Scenario,
    pub(super) steps: Vec<Step>,
    pub(super) files: Arc<Vec<Bytes>>,
    pub(super) told: Vec<Told>,
}

impl Scenario {
    pub(super) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0xc4a5);
        let is_engine = seed % ENGINE_EVERY == ENGINE_EVERY - 1;
        let mut acts = vec![act(&mut random, 0, is_engine)];
        for _ in 0..random.between(1, 2) {
            // Soon enough to meet the one before in the middle of its saves, or after it.
            let begin = random.between(200, if is_engine { 600 } else { 1_500 });
            acts.push(act(&mut random, begin, is_engine));
        }
        let sync_turns = [0, 8, 30, 60][random.below(4) as usize];
        Self { seed, acts, sync_turns, is_engine }
    }

    /// The run that is written.
    pub(super) fn run(&self) -> Result<RunName> {
        if self.is_engine { Ok(state::run_name()) } else { "run".parse() }
    }

    /// The step that the last attempt saves last, and the ranks that do.
    pub(super) fn last(&self) -> (u64, u32) {
        let last = self.acts.last();
        last.map_or((1, 1), |act| (act.steps.last().copied().unwrap_or(1), act.world_size))
    }

    /// Plays it, and writes down what it does to the disk.
    pub(super) fn record(self, setting: &Setting) -> failure::Result<Recording> {
        let players = self.acts.iter().map(|act| act.world_size as usize).sum();
        let witness = Witness::default();
        let recorder =
            Arc::new(Recorder::new(self.seed, players, witness.clone(), self.sync_turns));
        thread::scope(|scope| {
            let mut who = 0;
            let mut ranks = Vec::new();
            for (i, act) in self.acts.iter().enumerate() {
                for rank in 0..act.world_size {
                    let player = Player {
                        recorder: Arc::clone(&recorder),
                        who,
                        scenario: &self,
                        act: i,
                        rank,
                        setting,
                    };
                    ranks.push(scope.spawn(move || player.play()));
                    who += 1;
                }
            }
            let panicked = ranks.into_iter().filter_map(|rank| rank.join().err()).count();
            failure::ensure!(panicked == 0, "{panicked} ranks panicked");
            Ok(())
        })?;
        let (steps, files) = recorder.take();
        Ok(Recording { scenario: self, steps, files, told: witness.take() })
    }
}

fn act(random: &mut Random, begin: u64, is_engine: bool) -> Act {
    let first = random.between(1, 2);
    let steps = match random.below(3) {
        // The second save reuses chunks of the first.
        0 => vec![first, first + 1],
        // The last one is saved again.
        1 => vec![first, first],
        _ => vec![first, first + 1, first],
    };
    let world_size = random.between(1, if is_engine { 2 } else { 6 }) as u32;
    Act { world_size, steps, begin }
}

/// One rank on its way.
struct Player<'p> {
    recorder: Arc<Recorder>,
    who: usize,
    scenario: &'p Scenario,
    act: usize,
    rank: u32,
    setting: &'p Setting,
}

impl Drop for Player<'_> {
    /// The others go on, whatever became of this one.
    fn drop(&mut self) {
        self.recorder.turns.leave(self.who);
    }
}

impl Player<'_> {
    fn play(self) {
        let act = &self.scenario.acts[self.act];
        self.recorder.turns.take(self.who, act.begin);
        // What fails is not told, and what is told is judged.
        let _ = match self.scenario.is_engine {
            true => self.engine(act),
            false => self.tiny(act),
        };
    }

    fn env(&self) -> Arc<dyn Env> {
        let env = RecordingEnv::new(Arc::clone(&self.recorder), self.who, self.scenario.seed);
        (self.setting.env)(Arc::new(env))
    }

    fn store(&self) -> Result<Arc<dyn Store>> {
        let disk = RecordingDisk::new(Arc::clone(&self.recorder), self.who);
        let disk: Arc<dyn Disk> = (self.setting.disk)(Arc::new(disk));
        Ok((self.setting.store)(Arc::new(LocalStore::open_on(Path::new(ROOT), disk)?)))
    }

    fn incarnation(&self) -> String {
        format!("incarnation {}", self.act)
    }

    fn tiny(&self, act: &Act) -> Result<()> {
        let rank = Rank {
            order: Order {
                run: self.scenario.run()?,
                rank: self.rank,
                world_size: act.world_size,
                incarnation: self.incarnation(),
                steps: act.steps.clone(),
                commit_wait: Duration::from_millis(200),
                poll: Duration::from_millis(2),
            },
            store: self.store()?,
            env: self.env(),
            rules: Arc::clone(&self.setting.rules),
            witness: self.recorder.witness.clone(),
        };
        at_once(async { Ok(run(&rank).await) })?;
        Ok(())
    }

    fn engine(&self, act: &Act) -> Result<()> {
        let repository = Repository::create(self.store()?, self.env())?;
        let save =
            SaveOptions { commit_wait: Duration::from_millis(200), ..SaveOptions::default() };
        let options = RunOptions { save, ..RunOptions::default() };
        let world = World { rank: self.rank, size: act.world_size };
        let mut run = state::open(&repository, world, &self.incarnation(), options)?;
        let witness = &self.recorder.witness;
        let number = run.attempt().number;
        witness.note(Told::Attempt { number, incarnation: self.incarnation() });
        let (entries, tail) = (run.history().entries(), run.history().tail());
        witness.note(Told::Tail { entries, tail });
        let restored = state::restore_and_check(&mut run, Size::SMALL);
        if let (Err(error), Some(id)) = (&restored, run.attempt().from)
            && !error.is_retryable()
        {
            witness.note(Told::Unreadable { id, error: error.clone() });
        }
        let saved = restored.and_then(|_| self.save_all(&mut run, act));
        // What failed was seen, and is not to be said again.
        let closed = run.close();
        saved.and(closed)
    }

    fn save_all(&self, run: &mut Run, act: &Act) -> Result<()> {
        let attempt = run.attempt().number;
        for (i, step) in act.steps.iter().enumerate() {
            let before = act.steps[..i].iter().filter(|other| *other == step).count();
            let save = SaveKey { attempt, step: *step, generation: before as u32 };
            let id = state::save(run, *step, Size::SMALL)?.wait()?;
            self.recorder.witness.note(Told::Committed { save, id });
        }
        Ok(())
    }
}

/// Runs several ranks of one attempt in one thread, over a disk that never waits.
pub(super) fn together(ranks: &[Rank]) -> Result<Vec<crate::ranks::Ended>> {
    const ROUNDS_MAX: u32 = 20_000;
    let mut all: Vec<_> = ranks.iter().map(|rank| Box::pin(run(rank))).collect();
    let mut ended: Vec<Option<crate::ranks::Ended>> = vec![None; ranks.len()];
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..ROUNDS_MAX {
        for (rank, ended) in all.iter_mut().zip(&mut ended).filter(|(_, ended)| ended.is_none()) {
            if let std::task::Poll::Ready(how) = rank.as_mut().poll(&mut context) {
                *ended = Some(how);
            }
        }
        if ended.iter().all(Option::is_some) {
            return Ok(ended.into_iter().flatten().collect());
        }
    }
    Err(Error::unavailable(format!("{ROUNDS_MAX} looks were not enough")))
}

/// The seed of what is drawn at one point of one recording.
pub(super) fn seed_at(recording: u64, point: usize) -> u64 {
    join(recording, point as u64)
}
