//! A store with lastgood data in it.

use std::sync::Arc;

use lastgood_format::descriptor::Descriptor;
use lastgood_format::{Error, ErrorKind, Hash, Result, RunName, key};
use lastgood_store::{Env, Store};

use crate::io::StoreIo;
use crate::journal::read::JournalReader;
use crate::ledger::Ledger;
use crate::objects;
use crate::restore::{self, Contents, Restored, VerifiedPacks};
use crate::state::Targets;
use crate::tier::Tier;

/// A repository: any number of runs in one store.
///
/// The methods of this crate that are not `async` block; call them from a thread that is not itself
/// driving asynchronous work.
#[derive(Clone, Debug)]
pub struct Repository {
    io: StoreIo,
    descriptor: Descriptor,
}

impl Repository {
    /// Opens the repository in `store`, or makes the store one if it has no descriptor.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`; `Corrupt` if the descriptor is damaged; `Incompatible` if a newer
    /// lastgood wrote it.
    pub fn create(store: Arc<dyn Store>, env: Arc<dyn Env>) -> Result<Self> {
        let io = StoreIo::new(store, env)?;
        let descriptor = io.block_on(find_or_create(&io))?;
        Ok(Self { io, descriptor })
    }

    /// Opens the repository in `store`.
    ///
    /// # Errors
    /// As [`Repository::create`]; `NotFound` if the store is no repository.
    pub fn open(store: Arc<dyn Store>, env: Arc<dyn Env>) -> Result<Self> {
        let io = StoreIo::new(store, env)?;
        let descriptor = io.block_on(find(&io))?.ok_or_else(|| {
            Error::not_found(format!("{} holds no lastgood repository", io.store.location()))
                .with_remedy("check --store; the first save or `lastgood import` creates one")
        })?;
        Ok(Self { io, descriptor })
    }

    /// The id that the repository got when it was created: 32 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.descriptor.repository
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.io.store
    }

    /// The clock and randomness.
    #[must_use]
    pub fn env(&self) -> &Arc<dyn Env> {
        &self.io.env
    }

    /// The ledger of `run`, read to its tail.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn ledger(&self, run: &RunName) -> Result<Ledger> {
        let (store, env) = (Arc::clone(&self.io.store), Arc::clone(&self.io.env));
        self.io.block_on(Ledger::open(store, env, run.clone()))
    }

    /// The ledger of a run that exists.
    ///
    /// # Errors
    /// As [`Ledger::open`]; `NotFound` if the run has no entry.
    pub fn existing(&self, run: &RunName) -> Result<Ledger> {
        let ledger = self.ledger(run)?;
        match ledger.history().entries() {
            0 => Err(Error::not_found(format!("{} has no run {run}", self.io.store.location()))
                .with_remedy("`lastgood ls` without --run lists the runs")),
            _ => Ok(ledger),
        }
    }

    /// The names of the runs, sorted.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub fn runs(&self) -> Result<Vec<RunName>> {
        self.io.block_on(async {
            let mut runs: Vec<RunName> = Vec::new();
            loop {
                // Everything of a run begins with its folder, and `0` is the character after `/`.
                let after = runs.last().map(|run| format!("{}{run}0", key::RUNS));
                let page = self.io.store.list(key::RUNS, after.as_deref()).await?;
                let found = page.iter().filter_map(|object| {
                    object.key.strip_prefix(key::RUNS)?.split('/').next()?.parse().ok()
                });
                let before = runs.len();
                runs.extend(found);
                runs.sort_unstable();
                runs.dedup();
                if runs.len() == before {
                    return Ok(runs);
                }
            }
        })
    }

    /// The sealed journal of `run`; empty if it has none.
    ///
    /// # Errors
    /// As [`JournalReader::open`].
    pub fn journal(&self, run: &RunName) -> Result<JournalReader> {
        self.io.block_on(self.journal_reader(run))
    }

    /// As [`Repository::journal`], for asynchronous code.
    ///
    /// # Errors
    /// As [`JournalReader::open`].
    pub async fn journal_reader(&self, run: &RunName) -> Result<JournalReader> {
        JournalReader::open(Arc::clone(&self.io.store), self.id(), run).await
    }

    /// What checkpoint `id` of the ledger's run holds.
    ///
    /// # Errors
    /// As [`Contents::load`].
    pub fn contents(&self, ledger: &Ledger, id: &Hash) -> Result<Contents> {
        self.io.block_on(Contents::load(ledger, id))
    }

    /// Restores what `contents` tells of into `targets`, outside of any attempt: nothing is written,
    /// not even that the checkpoint is bad.
    ///
    /// # Errors
    /// As [`Run::restore_at`](crate::Run::restore_at).
    pub fn restore(&self, contents: &Contents, targets: Targets<'_>) -> Result<Restored> {
        self.restore_with(contents, targets, None)
    }

    /// As [`Repository::restore`], but what `tier` has of it is not read from the store.
    ///
    /// # Errors
    /// As [`Repository::restore`].
    pub fn restore_with(
        &self,
        contents: &Contents,
        targets: Targets<'_>,
        tier: Option<&Tier>,
    ) -> Result<Restored> {
        restore::restore_from(&self.io, contents, targets, tier)
    }

    /// Reads and verifies every byte of the packs that `contents` stands on, and gives how many they
    /// are; `progress` is told the bytes so far and in all. Manifest and shard indexes were verified
    /// when they were read into `contents`.
    ///
    /// # Errors
    /// `Corrupt` naming the first object that is damaged or missing; `Unavailable`, `Denied`.
    pub fn verify_packs(
        &self,
        contents: &Contents,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<u64> {
        restore::verify_all(&self.io, contents, &VerifiedPacks::default(), progress)
    }

    /// As [`Repository::verify_packs`], of the pack with the key `object` alone.
    ///
    /// # Errors
    /// As [`Repository::verify_packs`]; `NotFound` if the checkpoint does not stand on that pack.
    pub fn verify_pack(&self, contents: &Contents, object: &str) -> Result<u64> {
        restore::verify_one(&self.io, contents, object)
    }

    /// Reads and verifies every byte that checkpoint `id` of the ledger's run stands on: manifest,
    /// shard indexes and packs.
    ///
    /// # Errors
    /// As [`Repository::contents`] and [`Repository::verify_packs`].
    pub fn verify(
        &self,
        ledger: &Ledger,
        id: &Hash,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<u64> {
        self.verify_packs(&self.contents(ledger, id)?, progress)
    }

    /// As [`Repository::verify`], for one of several checkpoints: packs that are `known` from another one are
    /// not read again, and the others are known from then on. What the checkpoint names is checked against
    /// each of them.
    ///
    /// # Errors
    /// As [`Repository::verify`].
    pub fn verify_next(
        &self,
        ledger: &Ledger,
        id: &Hash,
        known: &VerifiedPacks,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<u64> {
        restore::verify_all(&self.io, &self.contents(ledger, id)?, known, progress)
    }

    /// True in the process that opened it. A forked child has to open its own: here every call that reads or
    /// writes is `Closed`.
    #[must_use]
    pub fn is_of_this_process(&self) -> bool {
        self.io.is_of_this_process()
    }

    /// Runs asynchronous work of this crate to its end.
    ///
    /// # Errors
    /// Those of `work`; `Closed` in a forked child of the process that opened the repository.
    pub fn block_on<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.io.block_on(work)
    }

    pub(crate) fn io(&self) -> &StoreIo {
        &self.io
    }
}

async fn find(io: &StoreIo) -> Result<Option<Descriptor>> {
    match io.store.get(key::DESCRIPTOR, Descriptor::BYTES_MAX).await {
        Ok(stored) => {
            Descriptor::decode(&stored).map(Some).map_err(|e| e.with_object(key::DESCRIPTOR))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn find_or_create(io: &StoreIo) -> Result<Descriptor> {
    if let Some(descriptor) = find(io).await? {
        return Ok(descriptor);
    }
    let id = u128::from(io.env.random()) << 64 | u128::from(io.env.random());
    let stored = Descriptor::new(id).encode()?;
    match objects::put_same(io.store.as_ref(), key::DESCRIPTOR, stored.into()).await {
        Ok(()) => {}
        // Another process made the store a repository at the same moment: its descriptor counts.
        Err(error) if error.kind() == ErrorKind::Conflict => {}
        Err(error) => return Err(error),
    }
    find(io).await?.ok_or_else(|| Error::unavailable("the descriptor is not there after its put"))
}
