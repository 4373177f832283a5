//! The thread that writes saves and sees them through to their commit.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use lastgood_format::index::ShardIndex;
use lastgood_format::key::{self, SaveKey};
use lastgood_format::{Error, ErrorKind, Hash, Result};

use super::arena::{Arena, Segment};
use super::base::Base;
use super::digest::{self, Before, Digesting, Sums, Teller};
use super::earlier::Earlier;
use super::handle::{Promise, SaveHandle, SaveStatus};
use super::keeping::{self, Keeping};
use super::pipeline::{self, Job};
use super::plan::Plan;
use super::shared::{End, Queued, Shared};
use super::{SaveOptions, choice};
use crate::commit::{self, Progress};
use crate::io::{Io, StoreIo};
use crate::journal::rank;
use crate::journal::{Journal, Lane};
use crate::ledger::{Checkpoint, Ledger, Writer, fenced};
use crate::state::World;

/// How long a waiting save sleeps between two looks at the store: short at first, since ranks save
/// together, then rarer.
const POLL_FIRST: Duration = Duration::from_millis(2);
const POLL_LAST: Duration = Duration::from_millis(250);

/// A save whose own part is durable and whose commit is waited for.
#[derive(Debug)]
struct Waiting {
    index: ShardIndex,
    plan: Arc<Plan>,
    handle: Promise,
    /// Kept while the save may have to be written again.
    arena: Option<Arena>,
    deadline: Duration,
    next_rank: u32,
    last: Option<Error>,
    /// It was written again, as another generation, and so out of order.
    rewritten: bool,
}

/// What a look at a waiting save found.
enum Look {
    Waits,
    Committed,
    /// It failed, and its handle says why.
    Over,
}

/// The writing thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) io: StoreIo,
    pub(crate) ledger: Ledger,
    pub(crate) writer: Writer,
    pub(crate) world: World,
    pub(crate) options: SaveOptions,
    pub(crate) journal: Option<Recording>,
    pub(crate) earlier: Earlier,
}

/// Where the worker seals and records.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) journal: Journal,
    /// This rank's lane.
    pub(crate) lane: Lane,
    /// False if nobody wants fingerprints of the state.
    pub(crate) digests: bool,
    pub(crate) teller: Teller,
    /// The fingerprints of the save before.
    pub(crate) before: Option<Arc<Before>>,
}

enum Next {
    Write(Queued),
    Poll,
    End,
}

/// How much nicer than the training the threads are that hash and write: it then gets four times their share of a
/// processor that both want.
const NICER: i32 = 6;

/// Lowers the priority of this thread and of those that it will start. A save may take longer; where it is waited
/// for, nobody else wants the processor.
fn let_training_go_first() {
    // Elsewhere the call would be about the whole process.
    #[cfg(target_os = "linux")]
    if let Ok(nice) = rustix::process::getpriority_process(None) {
        // As good as not done: it is for speed alone.
        let _ = rustix::process::setpriority_process(None, (nice + NICER).min(19));
    }
}

impl Worker {
    /// Writes what is queued until the saver is closed and nothing is left to wait for.
    pub(super) fn run(mut self) {
        let_training_go_first();
        // Dropped last, whether the thread ends or panics: nobody may wait for it after that.
        let _end = End(Arc::clone(&self.shared));
        let mut waiting: Vec<Waiting> = Vec::new();
        let mut poll = POLL_FIRST;
        loop {
            match self.next(&mut waiting, poll) {
                Next::Write(queued) => {
                    poll = POLL_FIRST;
                    if !queued.is_saved {
                        self.digest(queued);
                    } else if let Some(save) = self.write(queued) {
                        waiting.push(save);
                    }
                }
                Next::Poll => poll = (poll * 2).min(POLL_LAST),
                Next::End => break,
            }
            self.look_after(&mut waiting);
        }
    }

    fn next(&self, waiting: &mut [Waiting], poll: Duration) -> Next {
        let mut inner = self.shared.lock();
        loop {
            if inner.wanted {
                // Memory for the next save is worth more than being able to write this one again.
                inner.free.extend(waiting.iter_mut().filter_map(|save| save.arena.take()));
                self.shared.changed.notify_all();
            }
            if let Some(queued) = inner.queue.pop_front() {
                return Next::Write(queued);
            }
            if waiting.is_empty() {
                if inner.closing {
                    return Next::End;
                }
                inner = self.shared.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (back, timeout) = self
                .shared
                .changed
                .wait_timeout(inner, poll)
                .unwrap_or_else(PoisonError::into_inner);
            inner = back;
            if timeout.timed_out() {
                return Next::Poll;
            }
        }
    }

    fn write(&mut self, queued: Queued) -> Option<Waiting> {
        let Queued { plan, segments, arena, metadata, witness, handle, .. } = queued;
        let base = self.shared.lock().base.clone();
        let parent = base.as_ref().map(|base| base.checkpoint);
        let base = base.filter(|base| self.is_reusable(base));
        let keeping = Keeping {
            plan: Arc::clone(&plan),
            run: self.ledger.run().clone(),
            save: handle.save(),
            world: self.world,
            chunk_bytes: self.options.chunk_bytes,
            parent,
            metadata: metadata.clone(),
            journal: self.journal.as_ref().map(|recording| recording.journal.clone()),
        };
        let mut slot = None;
        let written = thread::scope(|scope| {
            // A crash while the save is written loses nothing that is in the memory tier by then.
            let kept = scope.spawn(move || keeping.captured(&witness));
            let late = |metadata: &mut BTreeMap<String, String>| {
                let kept = kept.join();
                let (testimony, kept) =
                    kept.unwrap_or_else(|_| Err(Error::internal("a thread panicked")))?;
                metadata.extend(testimony);
                slot = kept;
                Ok(())
            };
            self.write_save(&plan, segments, (base, parent), handle.save(), metadata, late)
        });
        if let (Some(slot), Ok(index)) = (&slot, &written) {
            let told = keeping::hashed(slot, &plan, index);
            told.unwrap_or_else(|error| self.tell_error(error));
        }
        let arena = arena.lock().unwrap_or_else(PoisonError::into_inner).take();
        match written {
            Ok(index) => {
                handle.set(SaveStatus::Durable);
                let deadline = self.io.elapsed() + self.options.commit_wait;
                let next_rank = (self.world.rank + 1) % self.world.size;
                let (last, rewritten) = (None, false);
                Some(Waiting { index, plan, handle, arena, deadline, next_rank, last, rewritten })
            }
            // The call itself failed, and has told its caller why.
            Err(_) if let SaveStatus::Failed(error) = handle.status() => {
                self.record(handle.step(), &error);
                if let Some(arena) = arena {
                    self.shared.give_arena(arena);
                }
                None
            }
            Err(error) => {
                self.fail(&handle, arena, error);
                None
            }
        }
    }

    /// Tells an error that is none of a save.
    fn tell_error(&self, error: Error) {
        if let Some(recording) = &self.journal {
            recording.journal.tell(error);
        }
    }

    fn write_save(
        &mut self,
        plan: &Arc<Plan>,
        segments: Receiver<(usize, Segment)>,
        (base, parent): (Option<Arc<Base>>, Option<Hash>),
        save: SaveKey,
        mut metadata: BTreeMap<String, String>,
        late: impl FnOnce(&mut BTreeMap<String, String>) -> Result<()>,
    ) -> Result<ShardIndex> {
        let rank = self.world.rank;
        let folder = key::run_folder(self.ledger.run());
        let recording = self.journal.as_ref().filter(|recording| recording.digests);
        let digesting = recording
            .map(|recording| Digesting::new(plan, recording.before.clone()))
            .transpose()?;
        let (deltas, segments) =
            self.earlier.deltas(plan, base.as_ref(), self.options.compression, segments);
        let job = Job {
            plan,
            base: base.as_deref(),
            level: self.earlier.level(self.options.compression),
            name: &|i| key::pack_in_run(&save, rank, i),
            folder: &folder,
            digesting: digesting.as_ref(),
            deltas: deltas.as_ref(),
        };
        if let Some(why) = self.earlier.why(self.options.compression) {
            metadata.insert(choice::KEY.to_owned(), why.to_owned());
        }
        let mut written = pipeline::run(&self.io, &job, segments)?;
        self.earlier.measure(&written);
        if let Some(digesting) = &digesting {
            self.tell((plan, digesting), save.step, std::mem::take(&mut written.sums));
        }
        late(&mut metadata)?;
        if let Some(recording) = &self.journal {
            let sealed = rank::seal(&recording.journal, &metadata);
            sealed.map_err(|error| self.or_fenced(error))?;
        }
        let reused = base.map(|base| base.checkpoint).filter(|_| written.reused);
        let index = ShardIndex {
            run: self.ledger.run().clone(),
            save,
            rank,
            world_size: self.world.size,
            parent,
            reuses: reused.into_iter().collect(),
            chunk_bytes: self.options.chunk_bytes,
            components: plan.components.clone(),
            tensors: plan.tensors.clone(),
            shards: plan.shards.clone(),
            chunks: written.chunks,
            bases: written.bases,
            operands: written.operands,
            packs: written.packs,
            metadata,
        };
        self.io.block_on(commit::publish(&self.ledger, &index))?;
        Ok(index)
    }

    /// Records the fingerprints of what was captured for them alone.
    fn digest(&mut self, queued: Queued) {
        let Queued { plan, segments, arena, handle, .. } = queued;
        let step = handle.step();
        let found = Digesting::new(&plan, None).and_then(|digesting| {
            let mut sums = Sums::new();
            for (i, segment) in segments {
                sums.extend(digesting.segment(&plan, i, &segment)?);
            }
            Ok(sums)
        });
        let arena = arena.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(arena) = arena {
            self.shared.give_arena(arena);
        }
        let is_captured = !matches!(handle.status(), SaveStatus::Failed(_));
        if let Some(Recording { journal, lane, teller, .. }) = &mut self.journal
            && is_captured
        {
            let told =
                found.and_then(|sums| teller.tell((journal, *lane), &plan, sums, (step, "whole")));
            told.unwrap_or_else(|error| journal.tell(error));
        }
        handle.set(SaveStatus::Superseded);
    }

    /// Records the fingerprints of a save.
    fn tell(
        &mut self,
        (plan, digesting): (&Arc<Plan>, &Digesting),
        step: u64,
        rows: Vec<(Hash, Sums)>,
    ) {
        let Some(Recording { journal, lane, teller, before, .. }) = &mut self.journal else {
            return;
        };
        let sums = rows.iter().flat_map(|(_, sums)| sums.iter().copied());
        if let Err(error) = teller.tell((journal, *lane), plan, sums, (step, "save")) {
            journal.tell(error);
        }
        *before = Some(digest::remember(plan, digesting, rows));
    }

    /// As far as the ledger was read: what happens to the base after that is noticed at the commit.
    fn is_reusable(&self, base: &Base) -> bool {
        let found = self.ledger.history().checkpoint(&base.checkpoint);
        found.is_some_and(Checkpoint::is_reusable)
    }

    /// Looks after every waiting save, oldest first.
    ///
    /// Every rank writes its saves in order. So when a newer save is a checkpoint and an older one is
    /// not even then, some rank has left the older one out: it is not waited for to the end.
    fn look_after(&mut self, waiting: &mut Vec<Waiting>) {
        let mut overtaken = 0;
        for mut save in std::mem::take(waiting) {
            match self.look(&mut save) {
                Look::Waits => waiting.push(save),
                Look::Committed => overtaken = waiting.len(),
                Look::Over => {}
            }
        }
        if overtaken == 0 {
            return;
        }
        let newest = self.shared.lock().base.clone();
        let newer = waiting.split_off(overtaken);
        waiting.retain_mut(|save| match self.look(save) {
            Look::Waits if save.rewritten => true,
            Look::Waits => {
                self.supersede(save);
                false
            }
            Look::Committed | Look::Over => false,
        });
        waiting.extend(newer);
        // One of the older ones may have been committed after all.
        self.shared.lock().base = newest;
    }

    /// Looks after one waiting save.
    fn look(&mut self, save: &mut Waiting) -> Look {
        let key = save.index.save;
        let advanced = self.io.block_on(commit::advance(
            &mut self.ledger,
            &self.writer,
            &key,
            self.world.size,
            save.next_rank,
        ));
        match advanced {
            Ok(Progress::Committed(id)) => {
                self.succeed(save, id);
                Look::Committed
            }
            Ok(Progress::Waiting(rank)) => {
                save.next_rank = rank;
                // The store answers again: from here on it is the rank that is waited for.
                save.last = None;
                self.expire(save)
            }
            Ok(Progress::LostBase(base)) => self.write_again(save, &base),
            // A conflict is either a base that was lost at this moment, which the next look tells, or an
            // abandoned save, which the next look refuses for good.
            Err(error) if error.is_retryable() || self.lost_race(save, &error) => {
                save.last = Some(error);
                self.expire(save)
            }
            Err(error) => {
                self.fail(&save.handle, save.arena.take(), error);
                Look::Over
            }
        }
    }

    fn lost_race(&self, save: &Waiting, error: &Error) -> bool {
        let key = save.index.save;
        error.kind() == ErrorKind::Conflict
            && !self.ledger.history().is_abandoned(key.attempt, key.step, key.generation)
            && save.last.as_ref().is_none_or(|last| last.kind() != ErrorKind::Conflict)
    }

    /// The base expired or was found bad before the commit: its chunks are written again, as a new
    /// generation, since the shard index that names them cannot be changed. Every rank comes to the
    /// same conclusion.
    fn write_again(&mut self, save: &mut Waiting, base: &Hash) -> Look {
        let Some(arena) = save.arena.take() else {
            let error = Error::new(
                ErrorKind::Conflict,
                format!("it reuses chunks of checkpoint {base}, which is expired or bad"),
            );
            self.fail(&save.handle, None, error.with_remedy("the next save writes them again"));
            return Look::Over;
        };
        let key = save.index.save;
        let again = SaveKey { generation: self.shared.next_generation(key.step), ..key };
        let (full, segments) = channel();
        for segment in arena.filled().into_iter().enumerate() {
            if full.send(segment).is_err() {
                break;
            }
        }
        drop(full);
        let metadata = save.index.metadata.clone();
        let plan = Arc::clone(&save.plan);
        let base = (None, save.index.parent);
        match self.write_save(&plan, segments, base, again, metadata, |_| Ok(())) {
            Ok(index) => {
                save.index = index;
                save.arena = Some(arena);
                save.deadline = self.io.elapsed() + self.options.commit_wait;
                save.rewritten = true;
                Look::Waits
            }
            Err(error) => {
                self.fail(&save.handle, Some(arena), error);
                Look::Over
            }
        }
    }

    fn expire(&mut self, save: &mut Waiting) -> Look {
        if self.io.elapsed() < save.deadline {
            return Look::Waits;
        }
        let key = save.index.save;
        let error = save.last.take().unwrap_or_else(|| {
            Error::unavailable(format!(
                "the save of {key} was not committed: the shard index of rank {} did not come within \
                 {:?}",
                save.next_rank, self.options.commit_wait
            ))
        });
        self.fail(&save.handle, save.arena.take(), error);
        Look::Over
    }

    fn supersede(&self, save: &mut Waiting) {
        self.shared.lock().free.extend(save.arena.take());
        save.handle.set(SaveStatus::Superseded);
        self.shared.changed.notify_all();
    }

    /// A newer attempt on this host seals what this one has left open, which goes on to write other events: what is
    /// wrong then is that it goes on.
    fn or_fenced(&self, error: Error) -> Error {
        let mut ledger = self.ledger.clone();
        if error.kind() != ErrorKind::Conflict || self.io.block_on(ledger.refresh()).is_err() {
            return error;
        }
        let (mine, newest) = (self.writer.attempt, ledger.history().newest_attempt());
        if mine < newest { fenced(mine, newest) } else { error }
    }

    fn succeed(&mut self, save: &mut Waiting, id: Hash) {
        let free = self.earlier.keep(id, &save.plan, save.arena.take(), &self.options);
        let mut inner = self.shared.lock();
        inner.base = Some(Arc::new(Base::new(id, [&save.index])));
        inner.failures_in_a_row = 0;
        inner.predicts = self.earlier.predicts(self.options.compression);
        inner.free.extend(free);
        drop(inner);
        if let Some(Recording { journal, lane, .. }) = &self.journal {
            rank::seen(journal, *lane, &save.index.save, &id);
        }
        save.handle.set_at(self.io.elapsed());
        save.handle.set(SaveStatus::Committed(id));
        self.shared.changed.notify_all();
    }

    fn fail(&self, handle: &SaveHandle, arena: Option<Arena>, error: Error) {
        let error = error.context(format!("save of {}", handle.save()));
        let mut inner = self.shared.lock();
        inner.failures_in_a_row += 1;
        inner.failures.push(error.clone());
        if error.kind() == ErrorKind::Fenced {
            inner.fenced.get_or_insert_with(|| error.clone());
        }
        inner.free.extend(arena);
        drop(inner);
        self.record(handle.step(), &error);
        handle.set(SaveStatus::Failed(error));
        self.shared.changed.notify_all();
    }

    /// Records that the save of `step` has failed.
    fn record(&self, step: u64, error: &Error) {
        if let Some(Recording { journal, lane, .. }) = &self.journal {
            rank::failed(journal, *lane, step, error);
        }
    }
}
