//! What a ledger says: a pure fold over its entries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use lastgood_format::ledger::{Accepted, Entry, Kind};
use lastgood_format::{Error, Hash, Result, RunName};
use serde::{Deserialize, Serialize};

use crate::policy::failures::Failures;
use crate::policy::orders::Orders;

/// The history of a run up to and with its entry [`History::entries`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    run: RunName,
    entries: u64,
    tail: Option<Hash>,
    attempt: Option<Attempt>,
    /// Every attempt by the name of its incarnation.
    incarnations: BTreeMap<String, u64>,
    checkpoints: Vec<Checkpoint>,
    #[serde(skip)]
    places: Places,
    abandoned: BTreeSet<(u64, u64, u32)>,
    /// What restores may differ in.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    accepted: BTreeSet<Accepted>,
    /// Which steps are saved.
    #[serde(default, skip_serializing_if = "Orders::is_empty")]
    orders: Orders,
    /// How attempts ended.
    #[serde(default, skip_serializing_if = "Failures::is_empty")]
    failures: Failures,
}

/// Where things are in a history. It says nothing that the history does not, so that two are equal whatever stands here.
#[derive(Clone, Debug, Default)]
struct Places {
    /// The entry that changed each checkpoint last, or a later one that says nothing else of it.
    changed: Vec<u64>,
    /// The checkpoint that each save became: attempt, step and generation.
    saves: BTreeMap<(u64, u64, u32), usize>,
}

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Places {}

/// One incarnation of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// Its number, which is also the fencing token; the first is 1.
    pub number: u64,
    /// The ranks that it runs.
    pub world_size: u32,
    /// The checkpoint that all its ranks restore from; `None` to start fresh.
    pub from: Option<Hash>,
    /// Names the incarnation, so that its ranks find it.
    pub incarnation: String,
}

/// What the ledger says about one committed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The checkpoint id: the hash of its manifest.
    pub id: Hash,
    /// The entry that committed it.
    pub entry: u64,
    /// When, by the committer's clock, in RFC 3339.
    pub at: String,
    /// The attempt that saved it.
    pub attempt: u64,
    /// The step.
    pub step: u64,
    /// How often the attempt had saved the step before.
    pub generation: u32,
    /// The ranks that saved it.
    pub world_size: u32,
    /// Its parent.
    pub parent: Option<Hash>,
    /// The bytes of all its shards.
    pub bytes: u64,
    /// The bytes newly written for it.
    pub new_bytes: u64,
    /// How far it is trusted.
    pub standing: Standing,
    /// Why it has that standing, if someone said so.
    pub reason: Option<String>,
    /// True if it was ever marked bad, even if it is good again.
    pub was_bad: bool,
    /// True if it will be collected, or is.
    pub expired: bool,
}

/// How far a checkpoint is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Must not be restored.
    Bad,
    /// Whole and durable; not read back yet.
    Committed,
    /// Read back, every byte right.
    Verified,
    /// One to return to.
    Good,
}

impl Standing {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Committed => "committed",
            Self::Verified => "verified",
            Self::Good => "good",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Standing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Bad, Self::Committed, Self::Verified, Self::Good]
            .into_iter()
            .find(|standing| standing.name() == text)
            .ok_or_else(|| Error::invalid(format!("{text:?} is no standing")))
    }
}

impl Checkpoint {
    /// True if new checkpoints may stand on its chunks: it is neither expired, so that its objects may
    /// be deleted, nor was it ever bad, so that they may be damaged.
    ///
    /// What is not reusable never is again: a rank that sees it writes its part of a save anew, and no
    /// other may commit the save without that part later.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        !self.expired && !self.was_bad
    }

    /// The save that became it.
    fn save(&self) -> (u64, u64, u32) {
        (self.attempt, self.step, self.generation)
    }
}

impl History {
    /// The history of a run without entries.
    #[must_use]
    pub fn new(run: RunName) -> Self {
        Self {
            run,
            entries: 0,
            tail: None,
            attempt: None,
            incarnations: BTreeMap::new(),
            checkpoints: Vec::new(),
            places: Places::default(),
            abandoned: BTreeSet::new(),
            accepted: BTreeSet::new(),
            orders: Orders::default(),
            failures: Failures::default(),
        }
    }

    /// This history, but of checkpoints only those that changed after entry `n`.
    pub(super) fn since(&self, n: u64) -> Self {
        let changed = |(checkpoint, at): (&Checkpoint, &u64)| (*at > n).then(|| checkpoint.clone());
        Self {
            run: self.run.clone(),
            entries: self.entries,
            tail: self.tail,
            attempt: self.attempt.clone(),
            incarnations: self.incarnations.clone(),
            checkpoints: self
                .checkpoints
                .iter()
                .zip(&self.places.changed)
                .filter_map(changed)
                .collect(),
            places: Places::default(),
            abandoned: self.abandoned.clone(),
            accepted: self.accepted.clone(),
            orders: self.orders.clone(),
            failures: self.failures.clone(),
        }
    }

    /// This history, of which only the checkpoints are known that changed after `earlier`, as a whole one.
    pub(super) fn after(mut self, earlier: Option<Self>) -> Self {
        let (mut all, mut changed) = earlier
            .map_or_else(Default::default, |known| (known.checkpoints, known.places.changed));
        for checkpoint in self.checkpoints {
            match all.binary_search_by_key(&checkpoint.entry, |known| known.entry) {
                Ok(i) => (all[i], changed[i]) = (checkpoint, self.entries),
                Err(i) => {
                    all.insert(i, checkpoint);
                    changed.insert(i, self.entries);
                }
            }
        }
        let saves = all.iter().enumerate().map(|(i, checkpoint)| (checkpoint.save(), i)).collect();
        (self.checkpoints, self.places) = (all, Places { changed, saves });
        self
    }

    /// The run.
    #[must_use]
    pub fn run(&self) -> &RunName {
        &self.run
    }

    /// The number of entries, which is the number of the last one.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The hash of the last entry's stored bytes.
    #[must_use]
    pub fn tail(&self) -> Option<Hash> {
        self.tail
    }

    /// The newest attempt, if one was started.
    #[must_use]
    pub fn attempt(&self) -> Option<&Attempt> {
        self.attempt.as_ref()
    }

    /// The number of the newest attempt; 0 before the first.
    #[must_use]
    pub fn newest_attempt(&self) -> u64 {
        self.attempt.as_ref().map_or(0, |attempt| attempt.number)
    }

    /// The attempt that an incarnation started, which need not be the newest.
    #[must_use]
    pub fn attempt_of(&self, incarnation: &str) -> Option<u64> {
        self.incarnations.get(incarnation).copied()
    }

    /// Every committed checkpoint, in the order of commit.
    #[must_use]
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    /// A checkpoint by its id.
    #[must_use]
    pub fn checkpoint(&self, id: &Hash) -> Option<&Checkpoint> {
        self.checkpoints.iter().rev().find(|checkpoint| checkpoint.id == *id)
    }

    /// The checkpoint that a save became.
    #[must_use]
    pub fn committed(&self, attempt: u64, step: u64, generation: u32) -> Option<&Checkpoint> {
        self.places.saves.get(&(attempt, step, generation)).map(|i| &self.checkpoints[*i])
    }

    /// True if the save was given up, so that it can never be committed.
    #[must_use]
    pub fn is_abandoned(&self, attempt: u64, step: u64, generation: u32) -> bool {
        self.abandoned.contains(&(attempt, step, generation))
    }

    /// What a person accepted that restores differ in.
    #[must_use]
    pub fn accepted(&self) -> &BTreeSet<Accepted> {
        &self.accepted
    }

    /// Which steps every rank saves beside those of its policy.
    #[must_use]
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// The history without what only estimates are made of, which heads that were written before it was counted lack.
    pub(crate) fn facts(&self) -> Self {
        Self { failures: Failures::default(), ..self.clone() }
    }

    /// How the attempts ended, for estimates.
    #[must_use]
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Adds the next entry, whose stored bytes hash to `hash`.
    ///
    /// # Errors
    /// `Corrupt` if it does not follow the last entry.
    pub fn apply(&mut self, entry: &Entry, hash: Hash) -> Result<()> {
        if entry.n != self.entries + 1 || entry.prev != self.tail {
            return Err(Error::corrupt(format!(
                "ledger entry {} does not follow entry {}: its predecessor should hash to {}, \
                 which hashes to {}",
                entry.n,
                self.entries,
                show(entry.prev),
                show(self.tail),
            )));
        }
        self.entries = entry.n;
        self.tail = Some(hash);
        self.fold(entry);
        Ok(())
    }

    fn fold(&mut self, entry: &Entry) {
        self.orders.fold(entry);
        self.failures.fold(entry, self.newest_attempt());
        match &entry.kind {
            Kind::AttemptStarted { number, world_size, from, incarnation } => {
                self.incarnations.insert(incarnation.clone(), *number);
                self.attempt = Some(Attempt {
                    number: *number,
                    world_size: *world_size,
                    from: *from,
                    incarnation: incarnation.clone(),
                });
            }
            Kind::CheckpointCommitted { .. } => self.fold_commit(entry),
            Kind::CheckpointVerified { checkpoint, reason } => {
                self.mark(checkpoint, Standing::Verified, reason);
            }
            Kind::CheckpointGood { checkpoint, reason } => {
                self.mark(checkpoint, Standing::Good, reason);
            }
            Kind::CheckpointBad { checkpoint, reason } => {
                self.mark(checkpoint, Standing::Bad, reason);
            }
            Kind::CheckpointExpired { checkpoint, .. } => {
                if let Some(found) = self.find_mut(checkpoint) {
                    found.expired = true;
                }
            }
            Kind::SaveAbandoned { saved_by, step, generation, .. } => {
                self.abandoned.insert((*saved_by, *step, *generation));
            }
            Kind::PreflightAccepted { differences, .. } => {
                self.accepted.extend(differences.iter().cloned());
            }
            _ => {}
        }
    }

    fn fold_commit(&mut self, entry: &Entry) {
        let Kind::CheckpointCommitted {
            checkpoint,
            step,
            generation,
            world_size,
            parent,
            reuses: _,
            bytes,
            new_bytes,
        } = &entry.kind
        else {
            return;
        };
        self.checkpoints.push(Checkpoint {
            id: *checkpoint,
            entry: entry.n,
            at: entry.at_text(),
            attempt: entry.attempt,
            step: *step,
            generation: *generation,
            world_size: *world_size,
            parent: *parent,
            bytes: *bytes,
            new_bytes: *new_bytes,
            standing: Standing::Committed,
            reason: None,
            was_bad: false,
            expired: false,
        });
        self.places.changed.push(entry.n);
        let save = (entry.attempt, *step, *generation);
        self.places.saves.insert(save, self.checkpoints.len() - 1);
    }

    /// A checkpoint that was good or bad does not become merely verified.
    fn mark(&mut self, id: &Hash, standing: Standing, reason: &str) {
        if let Some(found) = self.find_mut(id) {
            if standing == Standing::Verified && found.standing != Standing::Committed {
                return;
            }
            found.standing = standing;
            found.was_bad |= standing == Standing::Bad;
            found.reason = Some(reason.to_owned());
        }
    }

    fn find_mut(&mut self, id: &Hash) -> Option<&mut Checkpoint> {
        let i = self.checkpoints.iter().rposition(|checkpoint| checkpoint.id == *id)?;
        self.places.changed[i] = self.entries;
        Some(&mut self.checkpoints[i])
    }
}

fn show(hash: Option<Hash>) -> String {
    hash.map_or_else(|| "nothing".to_owned(), |hash| hash.to_string())
}
