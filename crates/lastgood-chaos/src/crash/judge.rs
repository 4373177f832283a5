//! Judging what a crash left: by the real code, on the disk that holds it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lastgood::ledger::{Rules, Strict};
use lastgood::restore::Contents;
use lastgood::state::{Targets, World};
use lastgood::{Hash, Repository, RunName, RunOptions};
use lastgood_format::{Error, ErrorKind};
use lastgood_store::{Disk, Env, LocalStore, Store};

use super::disk::{ImageDisk, ImageEnv};
use super::scenario::{ROOT, Recording, together};
use super::tree::Tree;
use crate::attack::state::{self, Size, State};
use crate::ranks::{Ended, Order, Rank, Told, Witness, content};
use crate::remembering::Remembering;
use crate::sim::check::{self, Found};
use crate::violation::{Invariant, Violation};

type Judged = Result<(), Violation>;

/// Judges the images of one recording.
#[derive(Debug)]
pub(super) struct Judge<'r> {
    recording: &'r Recording,
    run: RunName,
    rules: Arc<dyn Rules>,
    /// Checkpoints that were read whole, with the bytes of all objects that they stand on.
    read: BTreeMap<Hash, Vec<(String, Bytes)>>,
}

/// One image on its disk.
struct Bench {
    disk: Arc<ImageDisk>,
    store: Arc<dyn Store>,
    env: Arc<dyn Env>,
}

impl Bench {
    fn new(tree: Tree, seed: u64) -> lastgood::Result<Self> {
        let disk = Arc::new(ImageDisk(Mutex::new(tree)));
        let below: Arc<dyn Disk> = Arc::<ImageDisk>::clone(&disk);
        let store = Arc::new(LocalStore::open_on(Path::new(ROOT), below)?);
        Ok(Self { disk, store, env: Arc::new(ImageEnv::new(seed)) })
    }

    /// The bytes of an object, without a copy.
    fn bytes(&self, key: &str) -> Option<Bytes> {
        self.disk.bytes(&Path::new(ROOT).join(key))
    }
}

fn stuck(error: impl std::fmt::Display) -> Violation {
    Violation::new(Invariant::LiveRanksGetThrough, error.to_string())
}

impl<'r> Judge<'r> {
    pub(super) fn new(recording: &'r Recording) -> lastgood::Result<Self> {
        let run = recording.scenario.run()?;
        let rules = Remembering::over(Arc::new(Strict));
        Ok(Self { recording, run, rules, read: BTreeMap::new() })
    }

    /// Everything that had been told is there, every checkpoint reads back, there is one history, and the
    /// next attempt gets through and saves the step again that was being saved.
    pub(super) fn judge(&mut self, tree: Tree, told: usize, seed: u64) -> Judged {
        let bench = Bench::new(tree, seed).map_err(stuck)?;
        let found = self.look(&bench)?;
        check::check_told(&found, &self.recording.told[..told])?;
        let again = match self.recording.scenario.is_engine {
            true => self.engine_again(&bench, &found)?,
            false => self.tiny_again(&bench, seed)?,
        };
        let found = self.look(&bench)?;
        check::check_told(&found, &again)
    }

    fn look(&mut self, bench: &Bench) -> Result<Found, Violation> {
        let rules = Arc::clone(&self.rules);
        let (store, env) = (Arc::clone(&bench.store), Arc::clone(&bench.env));
        let found = check::read(store, env, &self.run, rules)?;
        check::check_entries(&found)?;
        for checkpoint in found.ledger.history().checkpoints() {
            self.check_checkpoint(bench, &found, &checkpoint.id).map_err(|error| {
                let name = format!("step {} of attempt {}", checkpoint.step, checkpoint.attempt);
                Violation::new(Invariant::CommittedIsReadable, format!("{name}: {error}"))
            })?;
        }
        Ok(found)
    }

    /// Reads every byte of a checkpoint, unless all objects that it stands on have the bytes that they had
    /// when it was read before.
    fn check_checkpoint(
        &mut self,
        bench: &Bench,
        found: &Found,
        id: &Hash,
    ) -> lastgood::Result<()> {
        if let Some(objects) = self.read.get(id) {
            let is_same = |(key, bytes): &(String, Bytes)| bench.bytes(key).as_ref() == Some(bytes);
            if objects.iter().all(is_same) {
                return Ok(());
            }
        }
        let contents = check::at_once(Contents::load(&found.ledger, id))?;
        if self.recording.scenario.is_engine {
            restore_engine(bench, &contents)?;
        } else {
            check::at_once(content::verify(bench.store.as_ref(), &contents))?;
        }
        let objects = content::objects_of(&contents)?;
        let with_bytes = |key: String| {
            let bytes = bench.bytes(&key).ok_or_else(|| Error::corrupt("the object is gone"))?;
            Ok((key, bytes))
        };
        let objects: lastgood::Result<Vec<_>> = objects.into_iter().map(with_bytes).collect();
        self.read.insert(*id, objects?);
        Ok(())
    }

    /// A new attempt saves the last step again. Gives what it was told.
    fn tiny_again(&self, bench: &Bench, seed: u64) -> Result<Vec<Told>, Violation> {
        let (step, ranks) = self.recording.scenario.last();
        let witness = Witness::default();
        let world_size = if seed.is_multiple_of(4) { ranks } else { 1 };
        let ranks: Vec<Rank> = (0..world_size)
            .map(|rank| Rank {
                order: Order {
                    run: self.run.clone(),
                    rank,
                    world_size,
                    incarnation: "after".into(),
                    steps: vec![step],
                    commit_wait: Duration::from_secs(10),
                    poll: Duration::from_millis(2),
                },
                store: Arc::clone(&bench.store),
                env: Arc::clone(&bench.env),
                rules: Arc::clone(&self.rules),
                witness: witness.clone(),
            })
            .collect();
        let ended = together(&ranks).map_err(stuck)?;
        let told = witness.take();
        check_collisions(&told)?;
        match ended.iter().find(|how| !matches!(how, Ended::Done { committed: 1, given_up: 0 })) {
            Some(how) => Err(stuck(format!("a rank of the next attempt ended with {how:?}"))),
            None => Ok(told),
        }
    }

    fn engine_again(&self, bench: &Bench, found: &Found) -> Result<Vec<Told>, Violation> {
        let newest = lastgood::restore::choose(found.ledger.history()).map(|found| found.step);
        let (step, _) = self.recording.scenario.last();
        self.save_engine(bench, newest, step).map_err(|error| match error.kind() {
            ErrorKind::Conflict => Violation::new(Invariant::SavingAgainIsFree, error.to_string()),
            ErrorKind::Diverged | ErrorKind::Corrupt => {
                Violation::new(Invariant::CommittedIsReadable, error.to_string())
            }
            _ => stuck(error),
        })
    }

    fn save_engine(
        &self,
        bench: &Bench,
        newest: Option<u64>,
        step: u64,
    ) -> lastgood::Result<Vec<Told>> {
        let repository = Repository::create(Arc::clone(&bench.store), Arc::clone(&bench.env))?;
        let mut run = state::open(&repository, World::ALONE, "after", RunOptions::default())?;
        let restored = state::restore_and_check(&mut run, Size::SMALL)?.map(|found| found.step);
        if restored != newest {
            let text = format!("expected step {newest:?}, restored {restored:?}");
            return Err(Error::new(ErrorKind::Diverged, text));
        }
        let number = run.attempt().number;
        let id = state::save(&mut run, step, Size::SMALL)?.wait()?;
        run.close()?;
        let save = lastgood_format::key::SaveKey { attempt: number, step, generation: 0 };
        let attempt = Told::Attempt { number, incarnation: "after".into() };
        Ok(vec![attempt, Told::Committed { save, id }])
    }
}

fn check_collisions(told: &[Told]) -> Judged {
    for told in told {
        if let Told::Collided { save, error } = told {
            let detail = format!("{save}: {error}");
            return Err(Violation::new(Invariant::SavingAgainIsFree, detail));
        }
    }
    Ok(())
}

fn restore_engine(bench: &Bench, contents: &Contents) -> lastgood::Result<()> {
    let repository = Repository::open(Arc::clone(&bench.store), Arc::clone(&bench.env))?;
    repository.verify_packs(contents, &|_, _| {})?;
    let mut state = State::blank(World::ALONE, Size::SMALL);
    let mut targets = Targets::new(World::ALONE);
    state.targets(&mut targets)?;
    let restored = repository.restore(contents, targets)?;
    state::check(&state, restored.step, Size::SMALL)
}
