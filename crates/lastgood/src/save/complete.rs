//! Completing a save whose ranks are gone, out of the memory that they have left.
//!
//! Whoever held their memory does it, before the next attempt begins: it goes on as the attempt that has ended. A save
//! of which every rank's part is in the store needs only its commit. Any other is written as the next generation of
//! its step, since its ranks may have put some of its packs, and as they chose to encode them.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;

use lastgood_format::index::ShardIndex;
use lastgood_format::key::{self, SaveKey};
use lastgood_format::{Error, Hash, Result, RunName};

use super::arena::Segment;
use super::base::Base;
use super::pipeline::{self, Job};
use super::plan::{Plan, Row};
use crate::commit::{self, Progress};
use crate::io::StoreIo;
use crate::ledger::{Ledger, Writer};
use crate::repository::Repository;
use crate::restore::Contents;
use crate::tier::{Left, State, Tier};

/// A save that was completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The checkpoint that it is now.
    pub checkpoint: Hash,
    /// Its step.
    pub step: u64,
    /// The bytes that were written for it.
    pub bytes: u64,
}

/// Completes the newest save of `run` that is whole in `memories`, one for each rank, and is no checkpoint yet. `None`
/// if there is none, or the run has a checkpoint that is as new.
///
/// The ranks of the newest attempt must have ended, which the tiers prove by being here, and no other may have begun.
///
/// # Errors
/// `Corrupt` if the memory is not what its rank has hashed; `Fenced` if another attempt has begun; `Unavailable`,
/// `Overloaded`, `Denied`, `Conflict` from the store. Nothing is lost that was there before.
pub fn complete(
    repository: &Repository,
    run: &RunName,
    memories: &[Tier],
) -> Result<Option<Completed>> {
    let mut ledger = repository.ledger(run)?;
    let attempt = ledger.history().newest_attempt();
    let done = ledger.history().checkpoints().iter().filter(|c| c.attempt == attempt);
    let done = done.map(|c| (c.step, c.generation)).max();
    let mut found: BTreeMap<(u64, u32), BTreeMap<u32, Left>> = BTreeMap::new();
    for left in memories.iter().flat_map(Tier::left) {
        let ShardIndex { save, rank, .. } = left.table;
        let at = (save.step, save.generation);
        if left.table.run == *run && save.attempt == attempt && Some(at) > done {
            found.entry(at).or_default().insert(rank, left);
        }
    }
    for ((step, generation), ranks) in found.into_iter().rev() {
        let size = ranks.values().next().map_or(0, |left| left.table.world_size);
        let is_whole = ranks.len() == size as usize
            && ranks.values().all(|left| left.table.world_size == size)
            && !ledger.history().is_abandoned(attempt, step, generation);
        if is_whole {
            let save = SaveKey { attempt, step, generation };
            let mut completing =
                Completing { io: repository.io(), ledger: &mut ledger, save, size };
            return completing.run(ranks).map(Some);
        }
    }
    Ok(None)
}

struct Completing<'c> {
    io: &'c StoreIo,
    ledger: &'c mut Ledger,
    save: SaveKey,
    /// The number of ranks.
    size: u32,
}

impl Completing<'_> {
    fn run(&mut self, ranks: BTreeMap<u32, Left>) -> Result<Completed> {
        let step = self.save.step;
        if let Progress::Committed(checkpoint) = self.advance()? {
            return Ok(Completed { checkpoint, step, bytes: 0 });
        }
        let parent = ranks.values().find_map(|left| left.table.parent);
        // Without the parent's chunks everything is written, which is slower and comes to the same.
        let contents = parent.and_then(|parent| self.reusable(&parent));
        let base = contents.map(|contents| Base::new(contents.id(), contents.indexes()));
        for base in [base.as_ref(), None] {
            self.save.generation = self.next_generation()?;
            let mut bytes = 0;
            for left in ranks.values() {
                bytes += self.write(left, base)?;
            }
            match self.advance()? {
                Progress::Committed(checkpoint) => {
                    return Ok(Completed { checkpoint, step, bytes });
                }
                Progress::LostBase(_) if base.is_some() => {}
                Progress::LostBase(_) | Progress::Waiting(_) => break,
            }
        }
        Err(Error::internal(format!(
            "the save of {} is written and cannot be committed",
            self.save
        )))
    }

    fn advance(&mut self) -> Result<Progress> {
        let writer = Writer { attempt: self.save.attempt, actor: "supervisor".into() };
        self.io.block_on(commit::advance(self.ledger, &writer, &self.save, self.size, 0))
    }

    /// The checkpoint `id`, if chunks of it may be reused.
    fn reusable(&self, id: &Hash) -> Option<Contents> {
        self.ledger.history().checkpoint(id).filter(|found| found.is_reusable())?;
        self.io.block_on(Contents::load(self.ledger, id)).ok()
    }

    /// The first generation after the save's own of which nothing was written.
    fn next_generation(&self) -> Result<u32> {
        let mut generation = self.save.generation;
        loop {
            generation = generation
                .checked_add(1)
                .ok_or_else(|| Error::internal("there is no generation left"))?;
            let save = SaveKey { generation, ..self.save };
            let mut is_new = true;
            for rank in 0..self.size {
                let index = key::in_run(self.ledger.run(), &key::index_in_run(&save, rank))?;
                let pack = key::in_run(self.ledger.run(), &key::pack_in_run(&save, rank, 0))?;
                for object in [index, pack] {
                    is_new &= self.io.block_on(self.ledger.store().size(&object))?.is_none();
                }
            }
            if is_new {
                return Ok(generation);
            }
        }
    }

    /// Writes the part of one rank, and gives the bytes that were put.
    fn write(&self, left: &Left, base: Option<&Base>) -> Result<u64> {
        let ShardIndex { rank, .. } = left.table;
        let plan = plan_of(left);
        let (full, segments) = channel();
        for (i, bytes) in plan.segments.iter().enumerate() {
            let segment = match bytes {
                0 => Segment::default(),
                bytes => Segment::shared(left.segment(i, *bytes)?),
            };
            // The other end is in this very function.
            full.send((i, segment)).unwrap_or_default();
        }
        drop(full);
        let save = self.save;
        let job = Job {
            plan: &plan,
            base,
            level: None,
            name: &|i| key::pack_in_run(&save, rank, i),
            folder: &key::run_folder(self.ledger.run()),
            digesting: None,
            deltas: None,
        };
        let written = pipeline::run(self.io, &job, segments)?;
        let hashes = written.chunks.iter().zip(&left.table.chunks);
        if left.state == State::Hashed && hashes.clone().any(|(a, b)| a.hash != b.hash) {
            return Err(Error::corrupt(format!(
                "the memory of rank {rank} is not what it has captured at step {}",
                save.step
            ))
            .with_remedy(
                "look at the machine's memory; the checkpoints before it are not touched",
            ));
        }
        let reused = base.map(|base| base.checkpoint).filter(|_| written.reused);
        let index = ShardIndex {
            save,
            reuses: reused.into_iter().collect(),
            chunks: written.chunks,
            bases: written.bases,
            operands: written.operands,
            packs: written.packs,
            ..left.table.clone()
        };
        self.io.block_on(commit::publish(self.ledger, &index))?;
        Ok(written.put_bytes)
    }
}

/// The tables and rows of what is left, to be written again.
fn plan_of(left: &Left) -> Plan {
    let mut plan = Plan {
        components: left.table.components.clone(),
        tensors: left.table.tensors.clone(),
        shards: left.table.shards.clone(),
        ..Plan::default()
    };
    for (chunk, (segment, offset)) in left.table.chunks.iter().zip(&left.places) {
        let bytes = chunk.decoded_bytes as usize;
        plan.rows.push(Row { segment: *segment, offset: *offset, bytes, width: 1 });
        if plan.segments.len() <= *segment {
            plan.segments.resize(segment + 1, 0);
        }
        plan.segments[*segment] = plan.segments[*segment].max(offset + bytes);
    }
    plan
}
