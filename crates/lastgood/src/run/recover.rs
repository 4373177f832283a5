//! Going back to a checkpoint: which one, whether it fits here, and reading it.

use lastgood_format::{Error, ErrorKind, Hash, Result};

use super::Run;
use crate::journal::rank;
use crate::ledger::Standing;
use crate::preflight::{self, Asker, Mode, Needs, Report, look, objects};
use crate::replay::mode::Replaying;
use crate::restore::{self, Contents, Restored, Selector};
use crate::save::Base;
use crate::state::Targets;
use crate::tier::Tier;

impl Run {
    /// Restores the attempt's checkpoint into what `declare` names, and gives what was restored, or
    /// `None` for a fresh run. All ranks of an attempt restore the same one; a rank alone the newest.
    ///
    /// If it is damaged, it is marked bad. A rank alone then goes back to the next one by itself; a
    /// rank among several ends with `Corrupt`, and the next attempt goes back, since all ranks must
    /// go back together. So it is with one that was marked bad or expired since the attempt started.
    ///
    /// A process that [only looks](Run::only_looks) records what the restore would do; its targets stay as they are.
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
            match self.look_and_read(&contents, targets, &mut notices) {
                Ok(restored) => {
                    self.build_on(&contents)?;
                    notices.extend(self.resume_notice());
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
                        return Ok(Some(contents.for_one_restore()));
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
        restore::restore_from(io, contents, targets, self.tier.as_ref())
    }

    /// What was captured last, if it outlives this process.
    #[must_use]
    pub fn tier(&self) -> Option<&Tier> {
        self.tier.as_ref()
    }

    /// Waits until what was taken from memory, if anything was, is verified.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged.
    pub fn check_memory(&self) -> Result<()> {
        self.tier.as_ref().map_or(Ok(()), Tier::wait_verified)
    }

    /// Marks the damaged checkpoint `id` bad, so that [`Run::candidate`] goes back to the one before it.
    ///
    /// # Errors
    /// `error` itself if there are several ranks, which go back together in the next attempt; as [`mark`](crate::mark).
    pub fn reject(&mut self, id: &Hash, error: Error, notices: &mut Vec<String>) -> Result<()> {
        if self.replaying.is_some() {
            return Err(error.context("the checkpoint that the replay begins with"));
        }
        let error = self.mark_bad(id, error)?;
        self.go_back(id, error, notices)
    }

    /// The state is that of `contents` now: the next save may reuse its chunks, and names it its parent.
    ///
    /// # Errors
    /// With [`Resume::Replay`](crate::replay::Resume::Replay), `Corrupt` if what is to be done again cannot be read
    /// from the journal; `Unavailable`, `Denied`.
    pub fn build_on(&self, contents: &Contents) -> Result<()> {
        // The chunks of a replay's source are in another repository.
        if self.replaying.is_none() {
            self.saver.set_base(base_of(contents));
        }
        if let Some(watch) = &self.watch {
            watch.restored(contents.manifest().step);
        }
        if let Some(journal) = &self.journal {
            rank::tell(journal, journal.restored(&contents.id(), contents.manifest().step));
        }
        match &self.resuming {
            Some(resuming) => resuming.restored(&self.repository, &self.ledger, contents.id()),
            None => Ok(()),
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
        let mut notices = Vec::new();
        let restored = self.look_and_read(&contents, targets, &mut notices)?;
        self.build_on(&contents)?;
        notices.extend(self.resume_notice());
        Ok(Restored { notices, ..restored })
    }

    /// Reads `contents` into `targets` unless a preflight stands against it.
    fn look_and_read(
        &mut self,
        contents: &Contents,
        targets: Targets<'_>,
        notices: &mut Vec<String>,
    ) -> Result<Restored> {
        // A restore finds out by itself, and has a kind of error for each thing that does not fit.
        let needs = match self.only_looks() {
            true => restore::needs(contents, &targets),
            false => Needs::default(),
        };
        let report = self.preflight(contents, &needs)?;
        notices.extend(report.refused().map(|finding| format!("it goes on although {finding}")));
        if self.only_looks() {
            return Ok(restore::untouched(contents));
        }
        let mut restored = self.read(contents, targets)?;
        notices.append(&mut restored.notices);
        Ok(restored)
    }

    /// Looks whether `contents` can be restored here, as [`Run::look`] does, and, on rank 0, whether every object is
    /// there. What is found is recorded in the journal; what [`RunOptions::preflight`](crate::RunOptions::preflight)
    /// accepts of it, in the ledger. [`Run::restore`] does so by itself. In a replay it does nothing.
    /// A caller that [verifies](Needs::verifies) every object finds out by itself what is missing.
    ///
    /// # Errors
    /// `Incompatible` if something stands against it that nobody accepted, and [`Mode::Refuse`] is set; `Corrupt` if an
    /// object is missing or of another size; `Unavailable`, `Denied`.
    pub fn preflight(&mut self, contents: &Contents, needs: &Needs) -> Result<Report> {
        let report = self.look(contents, needs)?;
        // A replay is to say itself where it parts from what was recorded.
        let is_replay = self.replaying.is_some();
        if self.preflight.mode == Mode::Off || is_replay && !self.only_looks() {
            return Ok(report);
        }
        if let Some(journal) = &self.journal {
            rank::tell(journal, journal.preflight(&report));
        }
        if is_replay {
            return Ok(report);
        }
        let Self { io, ledger, writer, .. } = self;
        io.block_on(look::record_accepted(ledger, writer, &self.preflight.accept, &report))?;
        if self.world.rank == 0 && !needs.verifies {
            objects::check_sizes(&self.io, contents)?;
        }
        let store = self.repository.store().location();
        let refused = preflight::refusal(&report, &store, self.ledger.run());
        match refused.filter(|_| self.preflight.mode == Mode::Refuse) {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }

    /// Says whether `contents` can be restored here: whether this process computes as the one that saved it, and
    /// whether what the caller `needs` is there. It changes nothing, and refuses nothing.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub fn look(&self, contents: &Contents, needs: &Needs) -> Result<Report> {
        let (source, ledger) = match &self.replaying {
            Some(replaying) => (replaying.source(), replaying.ledger()),
            None => (&self.repository, &self.ledger),
        };
        let asker =
            Asker { world: self.world, environment: &self.environment, options: &self.preflight };
        source.look(ledger, contents, &asker, needs)
    }

    /// True if this process ends once it has looked whether it could restore.
    #[must_use]
    pub fn only_looks(&self) -> bool {
        self.replaying.as_ref().is_some_and(Replaying::only_looks)
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
        self.io.block_on(Contents::load(&self.ledger, &id)).map(Contents::for_one_restore)
    }

    fn note_standing(&self, id: &Hash, notices: &mut Vec<String>) {
        if let Some(checkpoint) = self.ledger.history().checkpoint(id)
            && checkpoint.standing == Standing::Verified
            && !self.ledger.history().checkpoints().iter().any(|c| c.standing == Standing::Good)
        {
            notices.push(format!("no checkpoint is marked good; took verified {}", id.short()));
        }
    }
}

/// Every chunk of the restored checkpoint may be reused, whichever rank wrote it.
fn base_of(contents: &Contents) -> Base {
    Base::new(contents.id(), contents.indexes())
}
