//! One rank of one attempt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lastgood::attempt::{self, NewAttempt};
use lastgood::commit::{self, Progress};
use lastgood::ledger::{Ledger, Rules, Writer};
use lastgood::restore::{self, Contents};
use lastgood_format::index::ShardIndex;
use lastgood_format::key::{self, SaveKey};
use lastgood_format::{Error, ErrorKind, Hash, Result, RunName};
use lastgood_store::{Env, Store};

use super::content::{self, Base};
use super::witness::{Told, Witness};

/// How often a rank opens the run before it gives up.
const OPENS_MAX: u32 = 12;

/// What a rank is to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// The run.
    pub run: RunName,
    /// This rank.
    pub rank: u32,
    /// The number of ranks.
    pub world_size: u32,
    /// Names the attempt.
    pub incarnation: String,
    /// The steps that are saved, in order; one may come again.
    pub steps: Vec<u64>,
    /// How long the other ranks' shard indexes are waited for.
    pub commit_wait: Duration,
    /// How long it sleeps between two looks.
    pub poll: Duration,
}

/// How a rank ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// It did what it was told.
    Done {
        /// Saves that were committed.
        committed: u32,
        /// Saves that it gave up.
        given_up: u32,
    },
    /// A newer attempt owns the run.
    Fenced,
    /// It could not begin.
    Failed(Error),
}

/// A rank with what it runs on.
#[derive(Clone, Debug)]
pub struct Rank {
    /// What it is to do.
    pub order: Order,
    /// Its store.
    pub store: Arc<dyn Store>,
    /// Its clock and randomness.
    pub env: Arc<dyn Env>,
    /// The ledger's judge.
    pub rules: Arc<dyn Rules>,
    /// Where it says what it was told.
    pub witness: Witness,
}

struct Running<'r> {
    rank: &'r Rank,
    ledger: Ledger,
    writer: Writer,
    base: Option<Base>,
    generations: BTreeMap<u64, u32>,
}

enum Saved {
    Committed,
    GivenUp,
    Fenced,
}

/// Runs a rank to its end.
pub async fn run(rank: &Rank) -> Ended {
    let mut running = match open(rank).await {
        Ok(running) => running,
        Err(error) if error.kind() == ErrorKind::Fenced => return Ended::Fenced,
        Err(error) => return Ended::Failed(error),
    };
    let (mut committed, mut given_up) = (0, 0);
    for step in &rank.order.steps {
        match running.save(*step).await {
            Saved::Committed => committed += 1,
            Saved::GivenUp => given_up += 1,
            Saved::Fenced => return Ended::Fenced,
        }
    }
    Ended::Done { committed, given_up }
}

async fn open(rank: &Rank) -> Result<Running<'_>> {
    let mut tries = 1;
    loop {
        match try_open(rank).await {
            Err(error) if error.is_retryable() && tries < OPENS_MAX => {
                tries += 1;
                rank.env.sleep(rank.order.poll).await;
            }
            opened => return opened,
        }
    }
}

async fn try_open(rank: &Rank) -> Result<Running<'_>> {
    let Rank { order, witness, .. } = rank;
    let (store, env, rules) = (Arc::clone(&rank.store), Arc::clone(&rank.env), &rank.rules);
    let told_before = witness.count();
    let mut ledger = Ledger::open_with(store, env, order.run.clone(), Arc::clone(rules)).await?;
    let checkpoints = ledger.history().checkpoints().iter().map(|found| found.id).collect();
    witness.note(Told::Opened { told_before, checkpoints });
    let actor = format!("rank {}", order.rank);
    let new = NewAttempt {
        world_size: order.world_size,
        from: restore::choose(ledger.history()).map(|found| found.id),
        incarnation: order.incarnation.clone(),
    };
    let attempt = attempt::start(&mut ledger, &actor, &new).await?;
    let (number, incarnation) = (attempt.number, order.incarnation.clone());
    witness.note(Told::Attempt { number, incarnation });
    let writer = Writer { attempt: number, actor };
    let mut running = Running { rank, ledger, writer, base: None, generations: BTreeMap::new() };
    running.note_tail();
    if let Some(id) = attempt.from {
        running.base = running.restore(&id).await?;
    }
    Ok(running)
}

impl Running<'_> {
    fn note_tail(&self) {
        let history = self.ledger.history();
        let (entries, tail) = (history.entries(), history.tail());
        self.rank.witness.note(Told::Tail { entries, tail });
    }

    async fn restore(&self, id: &Hash) -> Result<Option<Base>> {
        let read = match Contents::load(&self.ledger, id).await {
            Ok(contents) => {
                let verified = content::verify(self.ledger.store().as_ref(), &contents).await;
                verified.map(|()| contents)
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(contents) => {
                Ok(contents.indexes().first().and_then(|index| content::base_of(*id, index)))
            }
            Err(error) if error.is_retryable() => Err(error),
            Err(error) => {
                self.rank.witness.note(Told::Unreadable { id: *id, error });
                Ok(None)
            }
        }
    }

    fn next_key(&mut self, step: u64) -> SaveKey {
        let generation = self.generations.entry(step).or_insert(0);
        *generation += 1;
        SaveKey { attempt: self.writer.attempt, step, generation: *generation - 1 }
    }

    async fn save(&mut self, step: u64) -> Saved {
        let mut base = self.base.clone();
        // The base can expire once: the part that is written again reuses nothing.
        for _ in 0..2 {
            let save = self.next_key(step);
            let index = match self.write(save, base.as_ref()).await {
                Ok(index) => index,
                Err(error) => {
                    if error.kind() == ErrorKind::Conflict {
                        self.rank.witness.note(Told::Collided { save, error });
                    }
                    return Saved::GivenUp;
                }
            };
            match self.see_through(&index).await {
                Ok(Progress::Committed(id)) => {
                    self.base = content::base_of(id, &index);
                    return Saved::Committed;
                }
                Ok(Progress::LostBase(_)) => {
                    self.rank.witness.note_lost_base();
                    base = None;
                }
                Ok(Progress::Waiting(_)) => return Saved::GivenUp,
                Err(error) if error.kind() == ErrorKind::Fenced => return Saved::Fenced,
                Err(_) => return Saved::GivenUp,
            }
            self.base = None;
        }
        Saved::GivenUp
    }

    /// Puts the pack, then the shard index, as the engine's packer and writing thread do.
    async fn write(&self, save: SaveKey, base: Option<&Base>) -> Result<ShardIndex> {
        let Order { run, rank, world_size, .. } = &self.rank.order;
        let parent = self.base.as_ref().map(|base| base.id);
        let part = content::part(run, save, *rank, *world_size, base, parent);
        let object = key::in_run(run, &part.pack)?;
        let store = self.ledger.store().as_ref();
        lastgood::objects::put_same(store, &object, part.stored.into()).await?;
        commit::publish(&self.ledger, &part.index).await?;
        Ok(part.index)
    }

    /// Asks for the commit until it is there, is refused, or has been waited for long enough.
    async fn see_through(&mut self, index: &ShardIndex) -> Result<Progress> {
        let Order { world_size, commit_wait, poll, .. } = self.rank.order;
        let deadline = self.rank.env.elapsed() + commit_wait;
        let mut next_rank = (index.rank + 1) % world_size;
        let mut conflicts = 0;
        loop {
            let advanced =
                commit::advance(&mut self.ledger, &self.writer, &index.save, world_size, next_rank)
                    .await;
            if advanced.is_ok() {
                self.note_tail();
            }
            let last = match advanced {
                Ok(Progress::Committed(id)) => {
                    self.rank.witness.note(Told::Committed { save: index.save, id });
                    return Ok(Progress::Committed(id));
                }
                Ok(Progress::Waiting(rank)) => {
                    self.rank.witness.note_wait();
                    next_rank = rank;
                    Ok(Progress::Waiting(rank))
                }
                Ok(lost @ Progress::LostBase(_)) => return Ok(lost),
                Err(error) if error.is_retryable() => Err(error),
                // The base expired at this moment: the next look tells.
                Err(error) if error.kind() == ErrorKind::Conflict && conflicts == 0 => {
                    conflicts += 1;
                    Err(error)
                }
                Err(error) => return Err(error),
            };
            if self.rank.env.elapsed() >= deadline {
                return last;
            }
            self.rank.env.sleep(poll).await;
        }
    }
}
