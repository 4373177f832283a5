//! One rank's handle of a run: restore, save, close.

mod mark;
mod options;
mod pace;
mod recover;
mod watch;

use std::fmt;
use std::sync::Arc;

use lastgood_format::ledger::Kind;
use lastgood_format::{Error, Hash, Result, RunName};
pub use mark::mark;
pub use options::{Heartbeat, RunOptions};
pub use pace::Last;

use crate::attempt::{self, NewAttempt};
use crate::io::StoreIo;
use crate::journal::rank::{self, RankJournal};
use crate::journal::{Journal, JournalOptions, Kind as JournalKind, StepRecord, Value};
use crate::ledger::{Attempt, Decision, History, Ledger, Standing, Writer};
use crate::policy::{Policy, failures};
use crate::preflight::{Environment, PreflightOptions};
use crate::replay::mode::Replaying;
use crate::replay::resume::{Came, Resuming};
use crate::replay::{Due, Resume};
use crate::repository::Repository;
use crate::restore;
use crate::save::{Earlier, Mode, Recording, SaveHandle, Saver, Shared, Teller, Worker};
use crate::state::{Capture, World};
use crate::tier::Tier;
use watch::Watch;

/// One rank of one attempt of a run.
///
/// Opening it starts an attempt, or joins the one of its incarnation, and fences every earlier one.
#[derive(Debug)]
pub struct Run {
    io: StoreIo,
    repository: Repository,
    ledger: Ledger,
    attempt: Attempt,
    /// What the next restore begins with: the attempt's checkpoint, until it is found damaged.
    next: Option<Hash>,
    writer: Writer,
    world: World,
    heartbeat: OptionalHeartbeat,
    environment: Environment,
    preflight: PreflightOptions,
    saver: Saver,
    tier: Option<Tier>,
    // After the saver: what it still saves is recorded.
    journal: Option<RankJournal>,
    replaying: Option<Replaying>,
    resuming: Option<Resuming>,
    watch: Option<Watch>,
    policy: Option<Policy>,
    /// The ledger says how the attempt has ended.
    has_ended: bool,
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
        check(&options)?;
        let replaying = options.replay.as_ref().map(Replaying::open).transpose()?;
        // A replay reads its source, and writes only where it is told to.
        let (repository, run) = match &options.replay {
            Some(replay) => (&replay.into, &replay.plan.into.run),
            None => (repository, run),
        };
        let wanted =
            options.journal.or_else(|| options.replay.is_some().then(JournalOptions::default));
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
        let journal = match &wanted {
            Some(journal) => {
                let who = (world, &attempt);
                Some(RankJournal::open(repository, run, who, journal, &options.environment)?)
            }
            None => None,
        };
        let recording = recording(journal.as_ref(), wanted.as_ref());
        let tier = options.tier.filter(|_| replaying.is_none());
        let worker = Worker {
            shared: Arc::new(Shared::new(&options.save, tier.as_ref())),
            io: io.clone(),
            ledger: ledger.clone(),
            writer: writer.clone(),
            world,
            options: options.save.clone(),
            journal: recording,
            earlier: Earlier::new(tier.as_ref(), &options.save),
        };
        let saver = Saver::start(worker, options.save)?;
        let resuming = match (&journal, options.resume) {
            (Some(journal), Resume::Replay) if replaying.is_none() => {
                Some(resume(journal, (repository, &ledger), &attempt)?)
            }
            _ => None,
        };
        let mut run = Self {
            io,
            repository: repository.clone(),
            ledger,
            next: attempt.from,
            attempt,
            writer,
            world,
            heartbeat: OptionalHeartbeat(options.heartbeat),
            environment: options.environment,
            preflight: options.preflight,
            saver,
            tier,
            journal,
            replaying,
            resuming,
            watch: None,
            policy: None,
            has_ended: false,
        };
        options.policy.map_or(Ok(()), |policy| run.follow(policy))?;
        Ok(run)
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

    /// Captures what `declare` names as the state at `step`, and saves it. With [`Mode::Async`] it
    /// returns as soon as the state is copied.
    ///
    /// # Errors
    /// `Invalid` if something cannot be captured; `Overloaded` if it does not fit the arena; `Fenced`
    /// once a save before failed so, and `Closed` if the thread that saves is gone; with
    /// [`Mode::Sync`] whatever the save failed with; `Corrupt` as [`Run::check_memory`]. A failed save does not harm the run or the
    /// checkpoints before it.
    pub fn save<'a>(
        &mut self,
        step: u64,
        mode: Mode,
        declare: impl FnOnce(&mut Capture<'a>) -> Result<()>,
    ) -> Result<SaveHandle> {
        self.check_resume()?;
        self.check_memory()?;
        let due = self.replaying.as_ref().map(|replaying| replaying.take_due(step));
        let mut capture = Capture::new(self.world);
        match due {
            None | Some(Due::Save) => {
                let began = self.io.env.elapsed();
                declare(&mut capture)?;
                let saved = self.saver.save(step, &capture, mode, self.journal.as_ref());
                self.note_saved(began, saved)
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
        self.check_resume()?;
        self.check_memory()?;
        let began = self.io.env.elapsed();
        let mut capture = Capture::new(self.world);
        declare(&mut capture)?;
        let saved = self.saver.save_overlapped(step, capture, self.journal.as_ref());
        self.note_saved(began, saved)
    }

    /// True if saves are smaller where [`Capture::update`] tells what optimizers did.
    #[must_use]
    pub fn predicts(&self) -> bool {
        self.saver.predicts()
    }

    /// The steps that are to be done again before the run is live, with [`Resume::Replay`]: the attempt that recorded
    /// them, the step before the first, and the last one. `None` if there are none, or no more.
    #[must_use]
    pub fn todo(&self) -> Option<(u64, u64, u64)> {
        self.resuming.as_ref().and_then(Resuming::todo)
    }

    /// What a person is told of [`Run::todo`].
    #[must_use]
    pub fn resume_notice(&self) -> Option<String> {
        let (attempt, from_step, to) = self.todo()?;
        Some(format!(
            "attempt {attempt} recorded steps {} to {to} after it: they are done again and compared",
            from_step + 1
        ))
    }

    /// The state is that of no checkpoint: nothing of what was recorded is to be done again.
    pub fn go_live(&self) {
        if let Some(resuming) = &self.resuming {
            resuming.go_live();
        }
    }

    /// Fails once a step that was done again came to something else than was recorded.
    ///
    /// # Errors
    /// `Diverged`, naming the first difference.
    pub fn check_resume(&self) -> Result<()> {
        self.resuming.as_ref().map_or(Ok(()), Resuming::check)
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

    /// False once a replay has reached its last step, or a step that was done again came to something else than was
    /// recorded: the program then closes the run and ends.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        !self.replaying.as_ref().is_some_and(Replaying::is_over) && self.check_resume().is_ok()
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
        if let Err(error) = self.check_memory() {
            // It is not said that a step was done which came of damage.
            self.journal.iter().for_each(|journal| rank::tell(journal, Err(error.clone())));
            return;
        }
        if let Some(heartbeat) = &self.heartbeat.0 {
            heartbeat(record.step());
        }
        if let Some(journal) = &self.journal {
            rank::tell(journal, journal.step(&record));
        }
        if let Some(replaying) = &self.replaying {
            replaying.reached(record.step());
        }
        if let (Some(journal), Some(resuming)) = (&self.journal, &self.resuming) {
            match resuming.done(&record) {
                Came::Alike => {}
                Came::ToItsEnd(value) => {
                    rank::tell(journal, journal.resume(JournalKind::RESUMED, value))
                }
                Came::Apart(value, error) => {
                    rank::tell(journal, journal.resume(JournalKind::DIVERGED, value));
                    rank::tell(journal, Err(error));
                }
            }
        }
    }

    /// Records an event of the caller's own kind.
    ///
    /// # Errors
    /// `Invalid` if the run has no journal or the event is too large; `Overloaded`.
    pub fn event(&self, name: &str, data: Value) -> Result<()> {
        self.check_memory()?;
        let journal = self.journal.as_ref().ok_or_else(rank::missing)?;
        let told = journal.event(name, data)?;
        self.happened(JournalKind::EVENT, told);
        Ok(())
    }

    /// Something happened that a run which goes on by a replay must do again.
    fn happened(&self, kind: JournalKind, value: Value) {
        if let Some(resuming) = &self.resuming {
            resuming.happened(kind, value);
        }
    }

    /// Records what was read from outside of the run, which a replay cannot read again, and gives what to go on
    /// with: the same, or in a replay what was recorded.
    ///
    /// # Errors
    /// As [`Run::event`]; `Diverged` in a replay that reads what is not recorded.
    pub fn read_external(&self, name: &str, value: Value) -> Result<Value> {
        self.check_memory()?;
        let journal = self.journal.as_ref().ok_or_else(rank::missing)?;
        let value = match (&self.replaying, &self.resuming) {
            (Some(replaying), _) => replaying.external(journal.own(), name)?,
            (None, Some(resuming)) => resuming.external(name, value)?,
            (None, None) => value,
        };
        let told = journal.external(name, value.clone())?;
        self.happened(JournalKind::EXTERNAL_READ, told);
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
    /// `Overloaded`, `Denied`, `Fenced`, `Conflict`; `Diverged` as [`Run::check_resume`].
    pub fn close(mut self) -> Result<()> {
        let resumed = self.check_resume();
        let saved = self.saver.close();
        self.tell_end(failures::CLOSED, "by its program");
        let sealed = self.journal.as_ref().map_or(Ok(()), |journal| journal.journal().close());
        saved.and(sealed).and(resumed)
    }
}

/// What the thread that saves records, and where.
fn recording(journal: Option<&RankJournal>, wanted: Option<&JournalOptions>) -> Option<Recording> {
    journal.map(|journal| Recording {
        journal: journal.journal().clone(),
        lane: journal.own(),
        digests: wanted.is_some_and(|wanted| wanted.digests),
        teller: Teller::default(),
        before: None,
    })
}

/// Prepares to do again what earlier attempts did behind the checkpoint of `attempt`.
fn resume(
    journal: &RankJournal,
    source: (&Repository, &Ledger),
    attempt: &Attempt,
) -> Result<Resuming> {
    // What a crash has left on this disk is what is to be done again.
    journal.journal().wait_recovered()?;
    let lanes = (journal.lanes(), journal.own());
    Resuming::open(source, lanes, attempt.number, attempt.from)
}

fn check(options: &RunOptions) -> Result<()> {
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
    if options.resume == Resume::Replay && options.journal.is_none() {
        return Err(Error::invalid("a run that goes on by a replay needs a journal")
            .with_remedy("open it with one, or leave LASTGOOD_RESUME unset"));
    }
    options.save.check()?;
    options.policy.as_ref().map_or(Ok(()), Policy::check)?;
    options.preflight.accept.check()?;
    options.journal.as_ref().map_or(Ok(()), |journal| journal.check(world))
}
