//! One rank's handle of a run: restore, save, close.

mod mark;
mod options;

use std::fmt;
use std::sync::Arc;

use lastgood_format::ledger::Kind;
use lastgood_format::{Error, ErrorKind, Hash, Result, RunName};
pub use mark::mark;
pub use options::{Heartbeat, RunOptions};

use crate::attempt::{self, NewAttempt};
use crate::io::StoreIo;
use crate::journal::rank::{self, RankJournal};
use crate::journal::{Journal, JournalOptions, StepRecord, Value};
use crate::ledger::{Attempt, Decision, History, Ledger, Standing, Writer};
use crate::replay::Due;
use crate::replay::mode::Replaying;
use crate::repository::Repository;
use crate::restore::{self, Contents, Restored, Selector};
use crate::save::{Base, Mode, Recording, SaveHandle, Saver, Shared, Teller, Worker};
use crate::state::{Capture, Targets, World};

/// One rank of one attempt of a run.
///
/// Opening it starts an attempt, or joins the one of its incarnation, and fences every earlier one.
#[derive(Debug)]
pub struct Run {
    io: StoreIo,
    ledger: Ledger,
    attempt: Attempt,
    /// What the next restore begins with: the attempt's checkpoint, until it is found damaged.
    next: Option<Hash>,
    writer: Writer,
    world: World,
    heartbeat: OptionalHeartbeat,
    saver: Saver,
    // After the saver: what it still saves is recorded.
    journal: Option<RankJournal>,
    replaying: Option<Replaying>,
}

struct OptionalHeartbeat(Option<Heartbeat>);

impl fmt::Debug for OptionalHeartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "heartbeat" } else { "no heartbeat" })
    }
}

impl Run {
    /// Opens `run` in `repository` as one rank of its newest attempt.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`, `Corrupt`; `Invalid` if the rank is not below the world size, if several
    /// ranks have no incarnation, or if an option is out of its range; `Incompatible` if the attempt has another world size.
    pub fn open(repository: &Repository, run: &RunName, options: RunOptions) -> Result<Self> {
        let world = options.world;
        if world.rank >= world.size {
            return Err(Error::invalid(format!("rank {} of {}", world.rank, world.size)));
        }
        if world.size > 1 && options.incarnation.is_none() {
            return Err(Error::invalid(format!("{} ranks and no incarnation", world.size)).with_remedy(
                "give all ranks of one start the same name, new for every start: each would fence the \
                 others otherwise",
            ));
        }
        options.save.check()?;
        options.journal.as_ref().map_or(Ok(()), |journal| journal.check(world))?;
        let replaying = options.replay.as_ref().map(Replaying::open).transpose()?;
        // A replay reads its source, and writes only where it is told to.
        let (repository, run) = match &options.replay {
            Some(replay) => (&replay.into, &replay.plan.into.run),
            None => (repository, run),
        };
        let journal = options
            .journal
            .clone()
            .or_else(|| options.replay.is_some().then(JournalOptions::default));
        let io = repository.io().clone();
        let mut ledger = repository.ledger(run)?;
        let actor = format!("rank {}", world.rank);
        let incarnation = options
            .incarnation
            .unwrap_or_else(|| format!("{:016x}{:016x}", io.env.random(), io.env.random()));
        let new = NewAttempt {
            world_size: world.size,
            from: restore::choose_id(ledger.history()),
            incarnation,
        };
        let attempt = io.block_on(attempt::start(&mut ledger, &actor, &new))?;
        let writer = Writer { attempt: attempt.number, actor };
        let wants_digests = journal.as_ref().is_some_and(|journal| journal.digests);
        let journal = match &journal {
            Some(journal) => {
                let who = (world, &attempt);
                Some(RankJournal::open(repository, run, who, journal, &options.environment)?)
            }
            None => None,
        };
        let worker = Worker {
            shared: Arc::new(Shared::new(&options.save)),
            io: io.clone(),
            ledger: ledger.clone(),
            writer: writer.clone(),
            world,
            options: options.save.clone(),
            sink_speed: None,
            journal: journal.as_ref().map(|journal| Recording {
                journal: journal.journal().clone(),
                lane: journal.own(),
                digests: wants_digests,
                teller: Teller::default(),
                before: None,
            }),
        };
        let saver = Saver::start(worker, options.save)?;
        let heartbeat = OptionalHeartbeat(options.heartbeat);
        let next = attempt.from;
        Ok(Self { io, ledger, attempt, next, writer, world, heartbeat, saver, journal, replaying })
    }

    /// The attempt that this process is part of.
    #[must_use]
    pub fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// This rank among all.
    #[must_use]
    pub fn world(&self) -> World {
        self.world
    }

    /// What the ledger says, as far as this handle has read it.
    #[must_use]
    pub fn history(&self) -> &History {
        self.ledger.history()
    }

    /// Restores the attempt's checkpoint into what `declare` names, and gives what was restored, or
    /// `None` for a fresh run. All ranks of an attempt restore the same one; a rank alone the newest.
    ///
    /// If it is damaged, it is marked bad. A rank alone then goes back to the next one by itself; a
    /// rank among several ends with `Corrupt`, and the next attempt goes back, since all ranks must
    /// go back together. So it is with one that was marked bad or expired since the attempt started.
    ///
    /// # Errors
    /// `NotFound` and `Incompatible` if names, dtypes or shapes differ; `Corrupt`, also if the run has
    /// checkpoints and all are bad: it is not fresh; `Unavailable`; `Denied`. The memory of the targets is unspecified after an error.
    pub fn restore<S: ?Sized>(
        &mut self,
        state: &mut S,
        declare: impl for<'a> Fn(&'a mut S, &mut Targets<'a>) -> Result<()>,
    ) -> Result<Option<Restored>> {
        let mut notices = Vec::new();
        while let Some(contents) = self.candidate(&mut notices)? {
            let mut targets = Targets::new(self.world);
            declare(state, &mut targets)?;
            match self.read(&contents, targets) {
                Ok(restored) => {
                    self.build_on(&contents);
                    return Ok(Some(Restored { notices, ..restored }));
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.reject(&contents.id(), error, &mut notices)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The checkpoint that [`Run::restore`] would take now, for a caller that must look into it before it can
    /// name targets; `None` for a fresh run. Its targets are filled by [`Run::read`]; if that finds it
    /// damaged, [`Run::reject`] comes before the next call. `notices` is told what a person should know.
    ///
    /// # Errors
    /// As [`Run::restore`], but for those of the targets.
    pub fn candidate(&mut self, notices: &mut Vec<String>) -> Result<Option<Contents>> {
        if let Some(replaying) = &self.replaying {
            return replaying.contents();
        }
        self.io.block_on(self.ledger.refresh())?;
        let stands = self.next.is_none_or(|id| self.refusal(&id).is_none());
        if self.world.size == 1 && stands {
            // Nobody has to agree: what was committed since the attempt began counts too.
            self.next = restore::choose_id(self.ledger.history()).or(self.next);
        }
        while let Some(id) = self.next {
            let error = match self.refusal(&id) {
                Some(error) => error,
                None => match self.io.block_on(Contents::load(&self.ledger, &id)) {
                    Ok(contents) => {
                        self.note_standing(&id, notices);
                        return Ok(Some(contents));
                    }
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        self.mark_bad(&id, error)?
                    }
                    Err(error) => return Err(error),
                },
            };
            self.go_back(&id, error, notices)?;
        }
        self.check_fresh(notices)?;
        Ok(None)
    }

    /// Reads what `contents` tells of into `targets`. Damage is an error and changes no standing.
    ///
    /// # Errors
    /// `NotFound` and `Incompatible` if names, dtypes or shapes differ; `Corrupt`, `Unavailable`, `Denied`. The
    /// memory of the targets is unspecified after an error.
    pub fn read(&self, contents: &Contents, targets: Targets<'_>) -> Result<Restored> {
        let io = self.replaying.as_ref().map_or(&self.io, Replaying::io);
        restore::restore_from(io, contents, targets)
    }

    /// Marks the damaged checkpoint `id` bad, so that [`Run::candidate`] goes back to the one before it.
    ///
    /// # Errors
    /// `error` itself if there are several ranks, which go back together in the next attempt; as [`mark`].
    pub fn reject(&mut self, id: &Hash, error: Error, notices: &mut Vec<String>) -> Result<()> {
        if self.replaying.is_some() {
            return Err(error.context("the checkpoint that the replay begins with"));
        }
        let error = self.mark_bad(id, error)?;
        self.go_back(id, error, notices)
    }

    /// The state is that of `contents` now: the next save may reuse its chunks, and names it its parent.
    pub fn build_on(&self, contents: &Contents) {
        // The chunks of a replay's source are in another repository.
        if self.replaying.is_none() {
            self.saver.set_base(base_of(contents));
        }
        if let Some(journal) = &self.journal {
            rank::tell(journal, journal.restored(&contents.id(), contents.manifest().step));
        }
    }

    fn mark_bad(&mut self, id: &Hash, error: Error) -> Result<Error> {
        self.mark(id, Standing::Bad, &error.to_string())?;
        Ok(error.context(format!("checkpoint {id} is marked bad")))
    }

    fn go_back(&mut self, id: &Hash, error: Error, notices: &mut Vec<String>) -> Result<()> {
        if self.world.size > 1 {
            return Err(error.with_remedy(
                "start the next attempt: all ranks go back to the checkpoint before it together",
            ));
        }
        notices.push(format!("skipped checkpoint {}: {error}", id.short()));
        self.next = restore::choose_id(self.ledger.history());
        Ok(())
    }

    /// Why a checkpoint that was there when the attempt started is none to restore any more.
    fn refusal(&self, id: &Hash) -> Option<Error> {
        let found = self.ledger.history().checkpoint(id)?;
        if found.standing == Standing::Bad {
            let reason = found.reason.as_deref().unwrap_or("for no reason that was given");
            return Some(Error::corrupt(format!("checkpoint {id} was marked bad: {reason}")));
        }
        found.expired.then(|| Error::corrupt(format!("checkpoint {id} has expired")))
    }

    /// A run that has checkpoints, none of which can be restored, must not begin again as if it never
    /// had any.
    fn check_fresh(&self, notices: &[String]) -> Result<()> {
        let history = self.ledger.history();
        if notices.is_empty()
            && (history.checkpoints().is_empty() || restore::choose_id(history).is_some())
        {
            return Ok(());
        }
        let lost: Vec<String> = history
            .checkpoints()
            .iter()
            .rev()
            .map(|checkpoint| match &checkpoint.reason {
                Some(reason) => format!("{}: {reason}", checkpoint.id.short()),
                None => checkpoint.id.short().to_string(),
            })
            .collect();
        Err(Error::corrupt(format!("no checkpoint is left to restore: {}", lost.join("; ")))
            .with_remedy("`lastgood mark` overrules a bad one; a new run name begins afresh"))
    }

    /// Restores the checkpoint that `selector` names, whatever the attempt began with. Damage is an
    /// error here: nothing else was asked for.
    ///
    /// # Errors
    /// As [`Run::restore`]; `NotFound` if there is no such checkpoint.
    pub fn restore_at(&mut self, selector: &Selector, targets: Targets<'_>) -> Result<Restored> {
        let contents = self.find(selector)?;
        let restored = self.read(&contents, targets)?;
        self.build_on(&contents);
        Ok(restored)
    }

    /// The checkpoint that `selector` names.
    ///
    /// # Errors
    /// `NotFound` if there is no such checkpoint; those of [`Contents::load`].
    pub fn find(&mut self, selector: &Selector) -> Result<Contents> {
        if let Some(replaying) = &self.replaying
            && let Some(contents) = replaying.contents()?
        {
            return Ok(contents);
        }
        self.io.block_on(self.ledger.refresh())?;
        let id = restore::resolve(self.ledger.history(), selector)?.id;
        self.io.block_on(Contents::load(&self.ledger, &id))
    }

    fn note_standing(&self, id: &Hash, notices: &mut Vec<String>) {
        if let Some(checkpoint) = self.ledger.history().checkpoint(id)
            && checkpoint.standing == Standing::Verified
            && !self.ledger.history().checkpoints().iter().any(|c| c.standing == Standing::Good)
        {
            notices.push(format!("no checkpoint is marked good; took verified {}", id.short()));
        }
    }

    /// Captures what `declare` names as the state at `step`, and saves it. With [`Mode::Async`] it
    /// returns as soon as the state is copied.
    ///
    /// # Errors
    /// `Invalid` if something cannot be captured; `Overloaded` if it does not fit the arena; `Fenced`
    /// once a save before failed so, and `Closed` if the thread that saves is gone; with
    /// [`Mode::Sync`] whatever the save failed with. A failed save does not harm the run or the
    /// checkpoints before it.
    pub fn save<'a>(
        &mut self,
        step: u64,
        mode: Mode,
        declare: impl FnOnce(&mut Capture<'a>) -> Result<()>,
    ) -> Result<SaveHandle> {
        let due = self.replaying.as_ref().map(|replaying| replaying.take_due(step));
        let mut capture = Capture::new(self.world);
        match due {
            None | Some(Due::Save) => {
                declare(&mut capture)?;
                self.saver.save(step, &capture, mode, self.journal.as_ref())
            }
            Some(Due::Digest) => {
                declare(&mut capture)?;
                self.saver.digest(step, &capture)?;
                Ok(self.left_out(step))
            }
            Some(Due::Nothing) => Ok(self.left_out(step)),
        }
    }

    /// As [`Run::save`] with [`Mode::Async`], but returns before the state is copied: a thread copies it while
    /// nobody may change it. [`SaveHandle::wait_captured`] says when it may be changed again.
    ///
    /// # Errors
    /// As [`Run::save`]; what the copying itself fails with (`Overloaded`, those of a source) is told by the
    /// handle.
    pub fn save_overlapped(
        &mut self,
        step: u64,
        declare: impl FnOnce(&mut Capture<'static>) -> Result<()>,
    ) -> Result<SaveHandle> {
        if self.replaying.is_some() {
            return self.save(step, Mode::Async, |capture| declare(capture));
        }
        let mut capture = Capture::new(self.world);
        declare(&mut capture)?;
        self.saver.save_overlapped(step, capture, self.journal.as_ref())
    }

    /// The save that a replay leaves out: as if it were the source's checkpoint.
    fn left_out(&self, step: u64) -> SaveHandle {
        let id = self.replaying.as_ref().map_or(Hash::of(b""), |replaying| replaying.id_of(step));
        SaveHandle::committed(self.attempt.number, step, id)
    }

    /// What is due after `step` beside what the program saves by itself: in a replay, the state of some steps is
    /// digested or saved, which [`Run::save`] does when it is called for them. Otherwise nothing.
    #[must_use]
    pub fn due(&self, step: u64) -> Due {
        self.replaying.as_ref().map_or(Due::Nothing, |replaying| replaying.due(step))
    }

    /// False once a replay has reached its last step: the program then closes the run and ends.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        !self.replaying.as_ref().is_some_and(Replaying::is_over)
    }

    /// Captures what `declare` names as the state at `step`, for its fingerprints alone: they are recorded in the
    /// journal, tensor by tensor, once a thread has found them. Unlike with a save, each rank tells of all that it
    /// holds, of what other ranks hold alike too.
    ///
    /// # Errors
    /// `Invalid` if the run has no journal, or something cannot be captured; `Overloaded` if it does not fit the
    /// arena; `Closed`.
    pub fn digest<'a>(
        &mut self,
        step: u64,
        declare: impl FnOnce(&mut Capture<'a>) -> Result<()>,
    ) -> Result<()> {
        if self.journal.is_none() {
            return Err(rank::missing());
        }
        let mut capture = Capture::new(World { rank: self.world.rank, size: 1 });
        declare(&mut capture)?;
        self.saver.digest(step, &capture)
    }

    /// Reads the ledger to its tail.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`, `Corrupt`.
    pub fn refresh(&mut self) -> Result<&History> {
        self.io.block_on(self.ledger.refresh())?;
        Ok(self.ledger.history())
    }

    /// Says that a step is done: tells the supervisor, if there is one, and records it, if there is a journal. A
    /// journal that cannot be written ends no training: [`Run::take_failures`] tells.
    pub fn step(&self, done: impl Into<StepRecord>) {
        let record = done.into();
        if let Some(heartbeat) = &self.heartbeat.0 {
            heartbeat(record.step());
        }
        if let Some(journal) = &self.journal {
            rank::tell(journal, journal.step(&record));
        }
        if let Some(replaying) = &self.replaying {
            replaying.reached(record.step());
        }
    }

    /// Records an event of the caller's own kind.
    ///
    /// # Errors
    /// `Invalid` if the run has no journal or the event is too large; `Overloaded`.
    pub fn event(&self, name: &str, data: Value) -> Result<()> {
        self.journal.as_ref().ok_or_else(rank::missing)?.event(name, data)
    }

    /// Records what was read from outside of the run, which a replay cannot read again, and gives what to go on
    /// with: the same, or in a replay what was recorded.
    ///
    /// # Errors
    /// As [`Run::event`]; `Diverged` in a replay that reads what is not recorded.
    pub fn read_external(&self, name: &str, value: Value) -> Result<Value> {
        let journal = self.journal.as_ref().ok_or_else(rank::missing)?;
        let value = match &self.replaying {
            Some(replaying) => replaying.external(journal.own(), name)?,
            None => value,
        };
        self.journal.as_ref().ok_or_else(rank::missing)?.external(name, value.clone())?;
        Ok(value)
    }

    /// The journal, if the run has one.
    #[must_use]
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref().map(RankJournal::journal)
    }

    /// The failures of saves, and of the journal, since they were last asked for.
    pub fn take_failures(&mut self) -> Vec<Error> {
        let mut failures = self.saver.take_failures();
        failures.extend(self.journal.iter().flat_map(|journal| journal.journal().take_failures()));
        failures
    }

    /// Gives a checkpoint a standing, with the reason.
    ///
    /// # Errors
    /// As [`mark`].
    pub fn mark(&mut self, id: &Hash, standing: Standing, reason: &str) -> Result<()> {
        let Self { io, ledger, writer, .. } = self;
        io.block_on(mark(ledger, writer, id, standing, reason))
    }

    /// Takes a checkpoint off the list, for good: no selector but its id names it any more, no new save
    /// stands on its chunks, and a collection may delete what only it needs.
    ///
    /// # Errors
    /// `NotFound` if there is no such checkpoint; `Fenced`; `Unavailable`, `Denied`.
    pub fn expire(&mut self, id: &Hash, reason: &str) -> Result<()> {
        let Self { io, ledger, writer, .. } = self;
        let (checkpoint, reason) = (*id, reason.to_owned());
        io.block_on(attempt::settle(ledger, writer, |history| {
            match history.checkpoint(&checkpoint) {
                None => Err(Error::not_found(format!("there is no checkpoint {checkpoint}"))),
                Some(found) if found.expired => Ok(Decision::Nothing),
                Some(_) => {
                    let reason = reason.clone();
                    Ok(Decision::Append(Kind::CheckpointExpired { checkpoint, reason }))
                }
            }
        }))
    }

    /// Waits for every save that is under way.
    ///
    /// # Errors
    /// The failures of saves that nobody has asked for, of the kind of the last one: `Unavailable`,
    /// `Overloaded`, `Denied`, `Fenced`, `Conflict`.
    pub fn close(mut self) -> Result<()> {
        let saved = self.saver.close();
        let sealed = self.journal.as_ref().map_or(Ok(()), |journal| journal.journal().close());
        saved.and(sealed)
    }
}

/// Every chunk of the restored checkpoint may be reused, whichever rank wrote it.
fn base_of(contents: &Contents) -> Base {
    Base::new(contents.id(), contents.indexes())
}
