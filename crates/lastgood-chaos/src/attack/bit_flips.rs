//! Every single-bit flip of a small repository, one at a time.
//!
//! The repository holds several small checkpoints, so that each flip can be judged by reading only
//! what stands on the flipped object: for an object of a checkpoint, that checkpoint (and those that
//! reuse its packs); for the ledger and the descriptor, everything.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::thread;

use crate::failure::{Context, Result, bail};
use lastgood::ledger::{Ledger, Rules, Strict};
use lastgood::restore::Contents;
use lastgood::save::{Compression, SaveOptions};
use lastgood::state::{Targets, World};
use lastgood::{ErrorKind, Hash, Repository, RunOptions};
use lastgood_format::key;
use lastgood_store::{MemoryStore, SystemEnv};

use super::state::{self, Size, State};
use crate::remembering::Remembering;

const RANKS: u32 = 2;

/// What became of the flips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The size of the repository.
    pub bytes: u64,
    /// Bits that were flipped.
    pub flips: u64,
    /// Flips that `verify` reported and a restore refused or walked back from.
    pub reported: u64,
    /// Flips in objects that no checkpoint stands on, which changed nothing.
    pub unused: u64,
}

/// Flips every bit of a repository of about `bytes` bytes.
///
/// # Errors
/// If a flip goes unseen, hands out a wrong byte, or if the repository cannot be made.
pub fn run(bytes: u64) -> Result<Report> {
    let store = make(bytes)?;
    let keys = store.keys();
    let total: u64 = keys.iter().filter_map(|key| store.peek(key)).map(|b| b.len() as u64).sum();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let reports: Vec<Result<Report>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|i| {
                let (store, keys) = (store.fork(), &keys);
                scope.spawn(move || Flipper::new(store)?.flip_share(keys, i, threads))
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a flip made lastgood panic")))
            .collect()
    });
    let mut sum = Report { bytes: total, ..Report::default() };
    for report in reports {
        let report = report?;
        sum.flips += report.flips;
        sum.reported += report.reported;
        sum.unused += report.unused;
    }
    Ok(sum)
}

/// A repository with checkpoints of two ranks, with raw, compressed, zero and reused chunks and deltas, and the
/// leavings of an uncommitted save.
fn make(bytes: u64) -> Result<MemoryStore> {
    let store = MemoryStore::default();
    let repository = open(&store)?;
    let mut step = 0;
    while store.keys().iter().filter_map(|key| store.peek(key)).map(|b| b.len() as u64).sum::<u64>()
        < bytes
    {
        // The second one is made of deltas of the first.
        save_all(&repository, step + 1..step + 3)?;
        step += 2;
    }
    leave_unfinished(&repository)?;
    Ok(store)
}

fn open(store: &MemoryStore) -> Result<Repository> {
    Ok(Repository::create(Arc::new(store.clone()), Arc::new(SystemEnv::default()))?)
}

fn options() -> RunOptions {
    let compression = Compression::Delta { chain: 4 };
    let save = SaveOptions { compression, ..SaveOptions::default() };
    RunOptions { save, ..RunOptions::default() }
}

fn save_all(repository: &Repository, steps: Range<u64>) -> Result<()> {
    let mut runs = Vec::new();
    for rank in 0..RANKS {
        let world = World { rank, size: RANKS };
        let mut run = state::open(repository, world, &format!("flips {steps:?}"), options())?;
        state::restore_and_check(&mut run, Size::SMALL)?;
        runs.push(run);
    }
    for step in steps {
        let saves = runs.iter_mut().map(|run| state::save(run, step, Size::SMALL));
        for handle in saves.collect::<Result<Vec<_>, _>>()? {
            handle.wait()?;
        }
    }
    for run in runs {
        run.close()?;
    }
    Ok(())
}

/// One rank of two saves; the other never does.
fn leave_unfinished(repository: &Repository) -> Result<()> {
    let mut options = options();
    options.save.commit_wait = std::time::Duration::from_millis(10);
    let world = World { rank: 0, size: RANKS };
    let mut run = state::open(repository, world, "unfinished", options)?;
    let handle = state::save(&mut run, 1_000_000, Size::SMALL)?;
    match handle.wait() {
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            run.take_failures();
            Ok(())
        }
        other => bail!("a save of one of two ranks ended with {other:?}"),
    }
}

struct Flipper {
    store: MemoryStore,
    repository: Repository,
    /// Read before anything is flipped; judges flips outside of the ledger.
    ledger: Ledger,
    /// The checkpoints that stand on each object.
    users: BTreeMap<String, Vec<(Hash, u64)>>,
    all: Vec<(Hash, u64)>,
    /// What each step must restore to.
    expected: BTreeMap<u64, State>,
    contents: BTreeMap<Hash, Contents>,
    blank: State,
    /// Memory that is restored into.
    state: State,
    /// Entries of the ledger that are whole are decoded once.
    rules: Arc<dyn Rules>,
    report: Report,
}

impl Flipper {
    fn new(store: MemoryStore) -> Result<Self> {
        let repository = open(&store)?;
        let ledger = repository.existing(&state::run_name())?;
        let folder = key::run_folder(ledger.run());
        let mut users: BTreeMap<String, Vec<(Hash, u64)>> = BTreeMap::new();
        let mut all = Vec::new();
        let mut tables = BTreeMap::new();
        for checkpoint in ledger.history().checkpoints() {
            let contents = repository.contents(&ledger, &checkpoint.id)?;
            repository.verify_packs(&contents, &|_, _| {})?;
            let mut objects: BTreeSet<String> = BTreeSet::new();
            objects.insert(key::manifest(ledger.run(), &checkpoint.id));
            for (entry, index) in contents.manifest().indexes.iter().zip(contents.indexes()) {
                objects.insert(format!("{folder}{}", entry.object));
                objects.extend(index.packs.iter().map(|pack| format!("{folder}{}", pack.object)));
            }
            for object in objects {
                users.entry(object).or_default().push((checkpoint.id, checkpoint.step));
            }
            all.push((checkpoint.id, checkpoint.step));
            tables.insert(checkpoint.id, contents);
        }
        let at = |(_, step): &(Hash, u64)| (*step, State::at(*step, World::ALONE, Size::SMALL));
        let expected = all.iter().map(at).collect();
        let blank = State::blank(World::ALONE, Size::SMALL);
        let report = Report::default();
        Ok(Self {
            store,
            repository,
            ledger,
            users,
            all,
            expected,
            contents: tables,
            state: blank.clone(),
            blank,
            rules: Remembering::over(Arc::new(Strict)),
            report,
        })
    }

    /// Flips the bits of every `of`-th byte from `first`.
    fn flip_share(mut self, keys: &[String], first: usize, of: usize) -> Result<Report> {
        for key in keys {
            let bytes = self.store.peek(key).map_or(0, |bytes| bytes.len());
            for at in (first..bytes).step_by(of) {
                for bit in 0..8 {
                    self.store.tamper(key, |bytes| bytes[at] ^= 1 << bit);
                    let judged = self.judge(key, bit);
                    self.store.tamper(key, |bytes| bytes[at] ^= 1 << bit);
                    judged.with_context(|| format!("bit {bit} of byte {at} of {key}"))?;
                    self.report.flips += 1;
                }
            }
        }
        Ok(self.report)
    }

    fn judge(&mut self, key: &str, bit: u32) -> Result<()> {
        if key == key::DESCRIPTOR {
            return match open(&self.store) {
                Err(_) => self.reported(),
                Ok(_) => bail!("a damaged descriptor was accepted"),
            };
        }
        let in_ledger = key.contains("/ledger/");
        let users = if in_ledger {
            self.all.clone()
        } else {
            self.users.get(key).cloned().unwrap_or_default()
        };
        if users.is_empty() {
            self.report.unused += 1;
            return Ok(());
        }
        if in_ledger {
            return self.judge_ledger();
        }
        // Of many checkpoints that stand on one pack, the first and the last are enough.
        let ends = [users.first(), users.last().filter(|_| users.len() > 1)];
        for (id, step) in ends.into_iter().flatten().copied() {
            if key.ends_with(".pack") {
                self.judge_pack(key, bit, &id, step)?;
            } else {
                self.judge_tables(&id, step)?;
            }
        }
        self.reported()
    }

    /// Manifest, shard indexes and the other packs are whole, so they need not be read again for each flip in
    /// a pack: every pack is for the first bit of each byte. A restore that reads the flipped bit is refused;
    /// one that does not gives the right bytes.
    fn judge_pack(&mut self, key: &str, bit: u32, id: &Hash, step: u64) -> Result<()> {
        let Some(contents) = self.contents.get(id) else { bail!("there is no checkpoint {id}") };
        let verified = match bit {
            0 => self.repository.verify_packs(contents, &|_, _| {}),
            _ => self.repository.verify_pack(contents, key),
        };
        match verified {
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            other => bail!("verify of step {step} said {other:?}"),
        }
        self.state.clone_from(&self.blank);
        let mut targets = Targets::new(World::ALONE);
        self.state.targets(&mut targets)?;
        match self.repository.restore(contents, targets) {
            Ok(_) if self.expected.get(&step) == Some(&self.state) => Ok(()),
            Ok(_) => bail!("restore of step {step} handed out wrong bytes"),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(()),
            Err(error) => bail!("restore of step {step} said {error:?}"),
        }
    }

    /// Verify and restore begin with the same reading of manifest and shard indexes, and every bit of
    /// those is under a hash.
    fn judge_tables(&self, id: &Hash, step: u64) -> Result<()> {
        match self.repository.contents(&self.ledger, id) {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(()),
            other => bail!("reading the tables of step {step} said {other:?}"),
        }
    }

    fn judge_ledger(&mut self) -> Result<()> {
        let (store, env) = (self.repository.store(), self.repository.env());
        let (store, env) = (Arc::clone(store), Arc::clone(env));
        let opened = Ledger::open_with(store, env, state::run_name(), Arc::clone(&self.rules));
        match self.repository.block_on(async { opened.await?.audit().await }) {
            Err(error) if error.kind() == ErrorKind::Corrupt => self.reported(),
            other => bail!("the ledger's audit said {other:?}"),
        }
    }

    fn reported(&mut self) -> Result<()> {
        self.report.reported += 1;
        Ok(())
    }
}
