//! A run, its saves and its checkpoints.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lastgood::journal::StepRecord;
use lastgood::ledger::Standing;
use lastgood::preflight::objects::Depth;
use lastgood::preflight::{Needs, Report};
use lastgood::replay::Due;
use lastgood::restore::{Contents, Selector};
use lastgood::save::Mode;
use lastgood::state::World;
use lastgood::tier::Tier;
use lastgood::{Error, ErrorKind, Repository, Result, RunName, RunOptions};
use pyo3::prelude::*;

use crate::checkpoint::{Checkpoint, Row, history_of};
use crate::errors::{Raise, raise};
use crate::event::{from_python, to_python};
use crate::handle::SaveHandle;
use crate::options::{journal_options, open_replay, preflight_options, repository, save_options};
use crate::policy;
use crate::state::{Capture, Targets};
use crate::taken::Taking;

/// How often a wait looks whether Ctrl-C was pressed.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// One rank of one attempt of a run. Every method that waits or copies releases the interpreter's lock.
#[pyclass(module = "lastgood._lastgood", frozen)]
#[derive(Debug)]
pub(crate) struct Run {
    repository: Repository,
    name: RunName,
    world: World,
    /// The number of the attempt.
    #[pyo3(get)]
    attempt: u64,
    memory_notice: Option<String>,
    /// `None` once it is closed.
    inner: Arc<Mutex<Option<lastgood::Run>>>,
}

#[pymethods]
impl Run {
    /// Opens run `run` in the store `url` as rank `rank` of `world_size`; `settings` are those of saves.
    #[new]
    #[pyo3(signature = (
        url, options, run, rank, world_size, incarnation, settings, journal=None,
        environment=None, replay=None, preflight="refuse", accept=None, resume="live", policy=None,
        memory=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "named by the one caller")]
    fn new(
        py: Python<'_>,
        url: String,
        options: BTreeMap<String, String>,
        run: &str,
        rank: u32,
        world_size: u32,
        incarnation: Option<String>,
        settings: BTreeMap<String, Bound<'_, PyAny>>,
        journal: Option<BTreeMap<String, Bound<'_, PyAny>>>,
        environment: Option<BTreeMap<String, String>>,
        replay: Option<&str>,
        preflight: &str,
        accept: Option<&str>,
        resume: &str,
        policy: Option<BTreeMap<String, Bound<'_, PyAny>>>,
        memory: Option<&str>,
    ) -> PyResult<Self> {
        let (tier, memory_notice) = Tier::take_if_there(memory);
        let name: RunName = run.parse().or_raise()?;
        let save = save_options(&settings)?;
        let world = World { rank, size: world_size };
        let journal = journal.as_ref().map(journal_options).transpose()?;
        let environment = environment.unwrap_or_default();
        let preflight = preflight_options(preflight, accept).or_raise()?;
        let options_of_run = RunOptions {
            world,
            incarnation,
            save,
            journal,
            environment,
            preflight,
            resume: resume.parse().or_raise()?,
            policy: policy.as_ref().map(policy::from_python).transpose()?,
            tier,
            ..RunOptions::default()
        };
        py.detach(|| {
            let replay = replay.map(|plan| open_replay(plan, &options)).transpose()?;
            let repository = match &replay {
                Some(replay) => replay.source.clone(),
                None => repository(&url, &options, true)?,
            };
            let options_of_run = RunOptions { replay, ..options_of_run };
            let inner = lastgood::Run::open(&repository, &name, options_of_run)?;
            let attempt = inner.attempt().number;
            let inner = Arc::new(Mutex::new(Some(inner)));
            Ok(Self { repository, name, world, attempt, memory_notice, inner })
        })
        .or_raise()
    }

    /// Why it captures in memory of its own and not in that which it was given; None if it was given none.
    #[getter]
    fn memory_notice(&self) -> Option<&str> {
        self.memory_notice.as_deref()
    }

    /// The checkpoint to restore, or None for a fresh run. Damaged ones that it finds are marked bad.
    fn candidate(&self, py: Python<'_>) -> PyResult<Option<Checkpoint>> {
        let mut notices = Vec::new();
        let found = py.detach(|| self.with(|run| run.candidate(&mut notices))).or_raise()?;
        Ok(found.map(|contents| Checkpoint::noticed(contents, notices)))
    }

    /// The checkpoint that `selector` names.
    fn find(&self, py: Python<'_>, selector: &str) -> PyResult<Checkpoint> {
        let selector: Selector = selector.parse().or_raise()?;
        let contents = py.detach(|| self.with(|run| run.find(&selector))).or_raise()?;
        Ok(Checkpoint::new(contents))
    }

    /// Marks a damaged checkpoint bad, so that `candidate` goes back; raises Corrupt if several ranks must go
    /// back together. Gives what a person should know.
    fn reject(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        reason: String,
    ) -> PyResult<Vec<String>> {
        let mut notices = Vec::new();
        let id = checkpoint.contents().id();
        py.detach(|| self.with(|run| run.reject(&id, Error::corrupt(reason), &mut notices)))
            .or_raise()?;
        Ok(notices)
    }

    /// Looks whether a checkpoint can be restored here, and raises what stands against it. Gives what it found;
    /// `needs` are the bytes that are read, those of memory, and what does not fit. `verifies`: the caller reads every
    /// byte, and goes on by itself from what is damaged.
    #[pyo3(signature = (checkpoint, needs, verifies=false))]
    fn preflight(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        needs: (u64, u64, Vec<String>),
        verifies: bool,
    ) -> PyResult<Py<PyAny>> {
        self.report(py, checkpoint, needs_of(needs, verifies), lastgood::Run::preflight)
    }

    /// As `preflight`, but nothing is refused and nothing recorded.
    fn look(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        needs: (u64, u64, Vec<String>),
    ) -> PyResult<Py<PyAny>> {
        let needs = needs_of(needs, false);
        self.report(py, checkpoint, needs, |run, contents, needs| run.look(contents, needs))
    }

    /// True if the process ends once it has looked whether it could restore.
    fn only_looks(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.with(|run| Ok(run.only_looks()))).or_raise()
    }

    /// Looks whether every object of a checkpoint is there: of its `size`, or of a `sample` or the `full` bytes. Gives
    /// the number of packs, their bytes, the bytes that were read, and the seconds that took.
    #[pyo3(signature = (checkpoint, depth, progress=None))]
    fn check_objects(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        depth: &str,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(u64, u64, u64, f64)> {
        let depth: Depth = depth.parse().or_raise()?;
        let repository = self.repository.clone();
        let contents = checkpoint.contents();
        interruptible(py, move || {
            let found = repository.check_objects(&contents, depth, &|done, all| {
                let Some(progress) = &progress else { return };
                Python::attach(|py| progress.call1(py, (done, all)).map(drop).ok());
            })?;
            Ok((found.packs, found.bytes, found.read, found.took.as_secs_f64()))
        })
    }

    /// Reads into `targets`, and gives the bytes that were placed and those that were read.
    fn read(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        targets: Py<Targets>,
    ) -> PyResult<(u64, u64)> {
        let tier = py.detach(|| self.with(|run| Ok(run.tier().cloned()))).or_raise()?;
        read(py, &self.repository, (self.world, tier), checkpoint, targets)
    }

    /// Begins a restore that takes tensors as a crash has left them in memory; None if there is no such memory.
    fn take(&self, py: Python<'_>, checkpoint: &Checkpoint) -> PyResult<Option<Taking>> {
        let tier = py.detach(|| self.with(|run| Ok(run.tier().cloned()))).or_raise()?;
        Ok(tier.map(|tier| Taking::new(checkpoint.contents(), &tier)))
    }

    /// Waits until what was taken so is verified; raises Corrupt if it is damaged.
    fn check_memory(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.with(|run| run.check_memory())).or_raise()
    }

    /// Lets the next save reuse the chunks of a checkpoint that was restored.
    fn build_on(&self, py: Python<'_>, checkpoint: &Checkpoint) -> PyResult<()> {
        py.detach(|| self.with(|run| run.build_on(&checkpoint.contents()))).or_raise()
    }

    /// What is to be done again before the run is live, as a person is told it; None if nothing is.
    fn resume_notice(&self, py: Python<'_>) -> PyResult<Option<String>> {
        py.detach(|| self.with(|run| Ok(run.resume_notice()))).or_raise()
    }

    /// The attempt that recorded what is to be done again, the step before it, and its last step; None if nothing is.
    fn todo(&self, py: Python<'_>) -> PyResult<Option<(u64, u64, u64)>> {
        py.detach(|| self.with(|run| Ok(run.todo()))).or_raise()
    }

    /// True if saves are smaller where a capture tells what optimizers did.
    fn predicts(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.with(|run| Ok(run.predicts()))).or_raise()
    }

    /// Goes on from a state that is no checkpoint's: nothing is to be done again.
    fn go_live(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            self.with(|run| {
                run.go_live();
                Ok(())
            })
        })
        .or_raise()
    }

    /// Saves what `capture` names, which is empty after. `overlapped`: returns before the copy is done.
    fn save(
        &self,
        py: Python<'_>,
        step: u64,
        mut capture: PyRefMut<'_, Capture>,
        overlapped: bool,
    ) -> PyResult<SaveHandle> {
        let mut taken = std::mem::take(&mut *capture);
        drop(capture);
        let handle = py.detach(|| {
            self.with(|run| match overlapped {
                true => run.save_overlapped(step, |capture| taken.declare(capture)),
                false => run.save(step, Mode::Async, |capture| taken.declare(capture)),
            })
        });
        handle.map(SaveHandle).or_raise()
    }

    /// Records that a step is done: what all logical ranks of this process share, and what is of one alone.
    fn step(
        &self,
        py: Python<'_>,
        step: u64,
        shared: BTreeMap<String, Bound<'_, PyAny>>,
        ranks: BTreeMap<u32, BTreeMap<String, Bound<'_, PyAny>>>,
    ) -> PyResult<()> {
        let mut record = StepRecord::new(step);
        for (name, value) in shared {
            record = record.with(&name, from_python(&value)?);
        }
        for (rank, members) in ranks {
            for (name, value) in members {
                record = record.of_rank(rank, &name, from_python(&value)?);
            }
        }
        py.detach(|| {
            self.with(|run| {
                run.check_memory()?;
                run.step(record);
                run.check_resume()
            })
        })
        .or_raise()
    }

    /// True if something is to be saved or digested after `step`, because the run is a replay.
    fn is_due(&self, py: Python<'_>, step: u64) -> PyResult<bool> {
        py.detach(|| self.with(|run| Ok(run.due(step) != Due::Nothing))).or_raise()
    }

    /// False once a replay has done its last step.
    fn goes_on(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.with(|run| Ok(run.goes_on()))).or_raise()
    }

    /// Records an event of the caller's own kind.
    fn event(&self, py: Python<'_>, kind: &str, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let data = from_python(data)?;
        py.detach(|| self.with(|run| run.event(kind, data))).or_raise()
    }

    /// Records something that was read from outside of the run, and gives what to go on with.
    fn external(&self, py: Python<'_>, key: &str, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let value = from_python(value)?;
        let value = py.detach(|| self.with(|run| run.read_external(key, value))).or_raise()?;
        to_python(py, &value)
    }

    /// Digests what `capture` names, which is empty after: once it is copied, a thread finds and records its
    /// fingerprints.
    fn digest(
        &self,
        py: Python<'_>,
        step: u64,
        mut capture: PyRefMut<'_, Capture>,
    ) -> PyResult<()> {
        let mut taken = std::mem::take(&mut *capture);
        drop(capture);
        py.detach(|| self.with(|run| run.digest(step, |capture| taken.declare(capture)))).or_raise()
    }

    /// The failures of saves since they were last asked for, as exceptions.
    fn take_failures(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        let failures = py
            .detach(|| self.with(|run| Ok(run.take_failures())))
            .or_else(|e| if e.kind() == ErrorKind::Closed { Ok(Vec::new()) } else { Err(e) })
            .or_raise()?;
        Ok(failures.into_iter().map(|e| raise(e).into_value(py).into_any()).collect())
    }

    /// Gives the checkpoint that `selector` names a standing: good, bad or verified. Gives its id.
    fn mark(
        &self,
        py: Python<'_>,
        selector: &str,
        standing: &str,
        reason: String,
    ) -> PyResult<String> {
        let selector: Selector = selector.parse().or_raise()?;
        let standing = standing_of(standing).or_raise()?;
        py.detach(|| {
            self.with(|run| {
                let id = lastgood::restore::resolve(run.refresh()?, &selector)?.id;
                run.mark(&id, standing, &reason)?;
                Ok(id.to_string())
            })
        })
        .or_raise()
    }

    /// Takes the checkpoint that `selector` names off the list, for good. Gives its id.
    fn expire(&self, py: Python<'_>, selector: &str, reason: String) -> PyResult<String> {
        let selector: Selector = selector.parse().or_raise()?;
        py.detach(|| {
            self.with(|run| {
                let id = lastgood::restore::resolve(run.refresh()?, &selector)?.id;
                run.expire(&id, &reason)?;
                Ok(id.to_string())
            })
        })
        .or_raise()
    }

    /// Reads and verifies every byte of a checkpoint, and gives their number; `progress` is called with the
    /// bytes so far and in all.
    #[pyo3(signature = (checkpoint, progress=None))]
    fn verify(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<u64> {
        let repository = self.repository.clone();
        let contents = checkpoint.contents();
        interruptible(py, move || {
            repository.verify_packs(&contents, &|done, all| {
                let Some(progress) = &progress else { return };
                // What a display raises is no reason to stop verifying.
                Python::attach(|py| progress.call1(py, (done, all)).map(drop).ok());
            })
        })
    }

    /// Every checkpoint of the run, oldest first.
    fn history(&self, py: Python<'_>) -> PyResult<Vec<Row>> {
        let ledger = py.detach(|| self.repository.ledger(&self.name)).or_raise()?;
        history_of(py, &ledger)
    }

    /// Lets go of the run without waiting: for one of several ranks after another one has failed, whose saves
    /// cannot be committed any more. The thread that looks after them ends with the process, or as soon as a
    /// newer attempt starts.
    fn abandon(&self) {
        let run = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::mem::forget(run);
    }

    /// Follows another policy than that which the run was opened with.
    fn follow(&self, py: Python<'_>, settings: BTreeMap<String, Bound<'_, PyAny>>) -> PyResult<()> {
        let policy = policy::from_python(&settings)?;
        py.detach(|| self.with(|run| run.follow(policy))).or_raise()
    }

    /// Says that a step has ended, and gives what the policy wants then: nothing, save, save-and-end or end.
    fn wants(&self, py: Python<'_>, step: u64) -> PyResult<&'static str> {
        Ok(policy::name_of(py.detach(|| self.with(|run| run.wants(step))).or_raise()?))
    }

    /// Tells that this process will be ended soon. False if the policy has no grace time.
    fn notice(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.with(|run| Ok(run.notice()))).or_raise()
    }

    /// Waits for the last save: done, late, or goes-on if all ranks end at a later step.
    fn wait_last(
        &self,
        py: Python<'_>,
        step: u64,
        save: Option<PyRef<'_, SaveHandle>>,
    ) -> PyResult<&'static str> {
        let save = save.map(|save| save.0.clone());
        let last = py.detach(|| self.with(|run| run.wait_last(step, save.as_ref())));
        Ok(match last.or_raise()? {
            lastgood::Last::Done => "done",
            lastgood::Last::Late => "late",
            lastgood::Last::GoesOn => "goes-on",
        })
    }

    /// What the policy makes of what is measured: the steps between saves, the seconds, everything as JSON, and as text.
    fn explain_policy(&self, py: Python<'_>) -> PyResult<Option<(u64, f64, String, String)>> {
        let found = py.detach(|| self.with(|run| Ok(run.explain_policy()))).or_raise()?;
        found.map(|found| policy::explained(&found).or_raise()).transpose()
    }

    /// Says in the ledger how the attempt ends, if its policy wants that known.
    fn tell_end(&self, py: Python<'_>, how: &str, reason: &str) -> PyResult<()> {
        py.detach(|| {
            self.with(|run| {
                run.tell_end(how, reason);
                Ok(())
            })
        })
        .or_raise()
    }

    /// Waits for every save that is under way; raises what failed and nobody has asked for.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let inner = Arc::clone(&self.inner);
        interruptible(py, move || {
            let run = inner.lock().unwrap_or_else(PoisonError::into_inner).take();
            run.map_or(Ok(()), lastgood::Run::close)
        })
    }
}

impl Run {
    /// What `look` finds before a restore, as a dict.
    fn report(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        needs: Needs,
        look: impl FnOnce(&mut lastgood::Run, &Contents, &Needs) -> Result<Report> + Send,
    ) -> PyResult<Py<PyAny>> {
        let contents = checkpoint.contents();
        let report = py.detach(|| self.with(|run| look(run, &contents, &needs))).or_raise()?;
        to_python(py, &report.to_value())
    }

    fn with<T>(&self, work: impl FnOnce(&mut lastgood::Run) -> Result<T>) -> Result<T> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || {
            Error::new(ErrorKind::Closed, format!("run {} is closed", self.name))
                .with_remedy("open it again")
        };
        work(inner.as_mut().ok_or_else(closed)?)
    }
}

/// What a restore needs, as Python tells it.
pub(crate) fn needs_of(
    (bytes, memory, problems): (u64, u64, Vec<String>),
    verifies: bool,
) -> Needs {
    Needs { bytes, memory, problems, verifies }
}

pub(crate) fn standing_of(text: &str) -> Result<Standing> {
    match text {
        "good" => Ok(Standing::Good),
        "bad" => Ok(Standing::Bad),
        "verified" => Ok(Standing::Verified),
        _ => Err(Error::invalid(format!("{text:?} is no standing"))
            .with_remedy("use good, bad or verified")),
    }
}

/// Runs `work` on a thread of its own, so that Ctrl-C ends the wait for it. What it holds it keeps until it
/// is through.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let (sender, mut receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("lastgood-python".into())
        .spawn(move || sender.send(work()).ok())
        .map_err(|e| raise(Error::new(ErrorKind::Overloaded, format!("no thread: {e}"))))?;
    loop {
        let (answer, back) = py.detach(move || {
            let answer = receiver.recv_timeout(LOOK);
            (answer, receiver)
        });
        match answer {
            Ok(result) => return result.or_raise(),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                return Err(raise(Error::internal("a thread of lastgood panicked")));
            }
        }
        receiver = back;
    }
}

/// Reads into `targets`, and gives the bytes that were placed and those that were read.
pub(crate) fn read(
    py: Python<'_>,
    repository: &Repository,
    (world, tier): (World, Option<Tier>),
    checkpoint: &Checkpoint,
    targets: Py<Targets>,
) -> PyResult<(u64, u64)> {
    let (repository, contents) = (repository.clone(), checkpoint.contents());
    interruptible(py, move || {
        let mut taken = Python::attach(|py| std::mem::take(&mut *targets.borrow_mut(py)));
        let read =
            taken.fill(world, |targets| repository.restore_with(&contents, targets, tier.as_ref()));
        Python::attach(|py| *targets.borrow_mut(py) = taken);
        read.map(|restored| (restored.bytes, restored.bytes_read))
    })
}
