//! What a run does differently in a replay.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use lastgood_format::journal::{Kind, Lane, Value};
use lastgood_format::{Error, Hash, Result};

use super::external::{Reads, read_of};
use super::{Plan, Replay};
use crate::io::StoreIo;
use crate::journal::read::Filter;
use crate::ledger::Ledger;
use crate::replay::window;
use crate::repository::Repository;
use crate::restore::Contents;

/// What is due after a step of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// The state is to be digested.
    Digest,
    /// The state is to be saved.
    Save,
}

/// The replay that a run is.
#[derive(Debug)]
pub(crate) struct Replaying {
    plan: Plan,
    source: Repository,
    ledger: Ledger,
    /// What was read from outside, by lane and key.
    external: Mutex<BTreeMap<(Lane, String), Reads>>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    step: u64,
    digested: BTreeSet<u64>,
}

impl Replaying {
    /// Reads what the replay of `replay` needs of its source.
    pub(crate) fn open(replay: &Replay) -> Result<Self> {
        let Replay { plan, source, .. } = replay;
        let ledger = source.existing(&plan.source.run)?;
        let external = source.block_on(async {
            let kinds = vec![Kind::EXTERNAL_READ];
            let filter = Filter { steps: Some(0..=plan.to), kinds, ..Filter::default() };
            let cut = window::cut_of(&ledger, plan.from.as_ref()).await?;
            let mut events = window::events(source, &ledger, plan.to, filter).await?;
            let mut external: BTreeMap<(Lane, String), Reads> = BTreeMap::new();
            while let Some(frame) = events.next().await? {
                let Some((key, read)) = read_of(&frame)? else { continue };
                let of_key = external.entry((frame.lane, key)).or_default();
                match frame.step < plan.from_step || window::is_before(&cut, &frame) {
                    true => of_key.before = Some(read),
                    false => of_key.next.push_back(read),
                }
            }
            Ok(external)
        })?;
        let progress = Progress { step: plan.from_step, digested: BTreeSet::new() };
        Ok(Self {
            plan: plan.clone(),
            source: source.clone(),
            ledger,
            external: Mutex::new(external),
            progress: Mutex::new(progress),
        })
    }

    /// The way to the source's store.
    pub(crate) fn io(&self) -> &StoreIo {
        self.source.io()
    }

    /// The source.
    pub(crate) fn source(&self) -> &Repository {
        &self.source
    }

    /// The source's ledger.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// True if it ends once it has looked whether it could restore.
    pub(crate) fn only_looks(&self) -> bool {
        self.plan.preflight
    }

    /// The checkpoint that the replay begins with.
    pub(crate) fn contents(&self) -> Result<Option<Contents>> {
        let load = |id: Hash| self.source.block_on(Contents::load(&self.ledger, &id));
        self.plan.from.map(load).transpose()
    }

    /// The id of the source's checkpoint of `step`, for a save that is left out.
    pub(crate) fn id_of(&self, step: u64) -> Hash {
        let checkpoints = self.ledger.history().checkpoints().iter().rev();
        let found = checkpoints.filter(|checkpoint| checkpoint.step == step).map(|c| c.id).next();
        found.unwrap_or_else(|| Hash::of(b""))
    }

    /// The next value that was read from outside under `key`.
    pub(crate) fn external(&self, lane: Lane, key: &str) -> Result<Value> {
        let mut external = self.external.lock().unwrap_or_else(PoisonError::into_inner);
        let reads = external.get_mut(&(lane, key.to_owned()));
        let next = reads.and_then(|reads| reads.next.pop_front().or_else(|| reads.before.clone()));
        next.ok_or_else(|| {
            Error::new(
                lastgood_format::ErrorKind::Diverged,
                format!("{key:?} is read from outside, and no such read is recorded here"),
            )
            .with_remedy("the program reads more than it did, or in another order")
        })
    }

    /// Notes that a step is done.
    pub(crate) fn reached(&self, step: u64) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).step = step;
    }

    /// What is due after `step`, and has not been done.
    pub(crate) fn due(&self, step: u64) -> Due {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let is_last = step == self.plan.to;
        match (is_last || self.plan.digests.contains(&step)) && !progress.digested.contains(&step) {
            true if is_last && self.plan.save => Due::Save,
            true => Due::Digest,
            false => Due::Nothing,
        }
    }

    /// As [`Replaying::due`]; the first call for a step is answered, later ones have nothing left to do.
    pub(crate) fn take_due(&self, step: u64) -> Due {
        let due = self.due(step);
        if due != Due::Nothing {
            self.progress.lock().unwrap_or_else(PoisonError::into_inner).digested.insert(step);
        }
        due
    }

    /// True once the last step is done.
    pub(crate) fn is_over(&self) -> bool {
        self.only_looks()
            || self.progress.lock().unwrap_or_else(PoisonError::into_inner).step >= self.plan.to
    }
}
