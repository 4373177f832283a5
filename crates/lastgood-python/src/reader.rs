//! A run that is only read: outside of any attempt, so that nobody who writes it is fenced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lastgood::ledger::{Ledger, Writer};
use lastgood::preflight::{Asker, Environment, Needs, Report};
use lastgood::restore::{Contents, Selector};
use lastgood::state::World;
use lastgood::{Repository, Result, RunName};
use pyo3::prelude::*;

use crate::checkpoint::{Checkpoint, Row, history_of};
use crate::errors::Raise;
use crate::event::to_python;
use crate::options::{preflight_options, repository};
use crate::run::{interruptible, needs_of, read, standing_of};
use crate::state::Targets;

/// The checkpoints of a run, for whoever is no rank of it.
#[pyclass(module = "lastgood._lastgood", frozen)]
#[derive(Debug)]
pub(crate) struct Reader {
    url: String,
    options: BTreeMap<String, String>,
    /// Locked only under the GIL and never for long, so that no other thread holds it in a fork.
    repository: Mutex<Repository>,
    name: RunName,
    world: World,
}

impl Reader {
    fn report(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        needs: (u64, u64, Vec<String>),
        (environment, mode, accept): (&Environment, &str, Option<&str>),
        look: impl FnOnce(&Repository, &mut Ledger, &Contents, &Asker<'_>, &Needs) -> Result<Report>
        + Send,
    ) -> PyResult<Py<PyAny>> {
        let options = preflight_options(mode, accept).or_raise()?;
        let repository = self.repository(py)?;
        let contents = checkpoint.contents();
        let asker = Asker { world: self.world, environment, options: &options };
        let needs = needs_of(needs, true);
        let report = py.detach(|| {
            let mut ledger = repository.ledger(&self.name)?;
            look(&repository, &mut ledger, &contents, &asker, &needs)
        });
        to_python(py, &report.or_raise()?.to_value())
    }

    /// The repository; a forked child, such as a worker of a `DataLoader`, opens its own.
    fn repository(&self, py: Python<'_>) -> PyResult<Repository> {
        let opened = self.lock().clone();
        if opened.is_of_this_process() {
            return Ok(opened);
        }
        let own = py.detach(|| repository(&self.url, &self.options, false)).or_raise()?;
        *self.lock() = own.clone();
        Ok(own)
    }

    fn lock(&self) -> MutexGuard<'_, Repository> {
        self.repository.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Reader {
    /// Run `run` in the store `url`, as rank `rank` of `world_size`; the run need not exist, and has no checkpoint
    /// then.
    #[new]
    #[pyo3(signature = (url, options, run, rank=0, world_size=1))]
    fn new(
        py: Python<'_>,
        url: String,
        options: BTreeMap<String, String>,
        run: &str,
        rank: u32,
        world_size: u32,
    ) -> PyResult<Self> {
        let name: RunName = run.parse().or_raise()?;
        let world = World { rank, size: world_size };
        let repository = py.detach(|| repository(&url, &options, false)).or_raise()?;
        Ok(Self { url, options, repository: Mutex::new(repository), name, world })
    }

    /// Every checkpoint, oldest first.
    fn history(&self, py: Python<'_>) -> PyResult<Vec<Row>> {
        let repository = self.repository(py)?;
        let ledger = py.detach(|| repository.ledger(&self.name)).or_raise()?;
        history_of(py, &ledger)
    }

    /// The id of the checkpoint that `selector` names now; the checkpoint itself is not read.
    fn resolve(&self, py: Python<'_>, selector: &str) -> PyResult<String> {
        let selector: Selector = selector.parse().or_raise()?;
        let repository = self.repository(py)?;
        let id = py.detach(|| {
            let ledger = repository.ledger(&self.name)?;
            lastgood::restore::resolve(ledger.history(), &selector).map(|found| found.id)
        });
        Ok(id.or_raise()?.to_string())
    }

    /// The checkpoint that `selector` names.
    fn find(&self, py: Python<'_>, selector: &str) -> PyResult<Checkpoint> {
        let selector: Selector = selector.parse().or_raise()?;
        let repository = self.repository(py)?;
        let contents = py.detach(|| {
            let ledger = repository.ledger(&self.name)?;
            let id = lastgood::restore::resolve(ledger.history(), &selector)?.id;
            repository.contents(&ledger, &id)
        });
        Ok(Checkpoint::new(contents.or_raise()?))
    }

    /// Reads into `targets`, and gives the bytes that were placed and those that were read.
    fn read(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        targets: Py<Targets>,
    ) -> PyResult<(u64, u64)> {
        read(py, &self.repository(py)?, (self.world, None), checkpoint, targets)
    }

    /// Looks whether this process, which computes with `environment` and goes on from the checkpoint, may restore it,
    /// and raises what stands against it. Gives what it found; `mode`, `accept` and `needs` are as of `Run`.
    fn preflight(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        needs: (u64, u64, Vec<String>),
        environment: Environment,
        mode: &str,
        accept: Option<&str>,
    ) -> PyResult<Py<PyAny>> {
        self.report(py, checkpoint, needs, (&environment, mode, accept), Repository::preflight)
    }

    /// As `preflight`, but nothing is refused and nothing recorded.
    fn look(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        needs: (u64, u64, Vec<String>),
        environment: Environment,
        mode: &str,
        accept: Option<&str>,
    ) -> PyResult<Py<PyAny>> {
        self.report(
            py,
            checkpoint,
            needs,
            (&environment, mode, accept),
            |repository, ledger, contents, asker, needs| {
                repository.look(ledger, contents, asker, needs)
            },
        )
    }

    /// Reads and verifies every byte of a checkpoint, and gives their number.
    fn verify(&self, py: Python<'_>, checkpoint: &Checkpoint) -> PyResult<u64> {
        let repository = self.repository(py)?;
        let contents: Arc<_> = checkpoint.contents();
        interruptible(py, move || repository.verify_packs(&contents, &|_, _| {}))
    }

    /// Gives the checkpoint that `selector` names a standing: good, bad or verified. Gives its id.
    fn mark(
        &self,
        py: Python<'_>,
        selector: &str,
        standing: &str,
        reason: &str,
    ) -> PyResult<String> {
        let selector: Selector = selector.parse().or_raise()?;
        let standing = standing_of(standing).or_raise()?;
        let repository = self.repository(py)?;
        py.detach(|| {
            let mut ledger = repository.ledger(&self.name)?;
            let id = lastgood::restore::resolve(ledger.history(), &selector)?.id;
            // No attempt's, as when a person marks it: a mark fences nobody and is not fenced.
            let writer = Writer { attempt: 0, actor: "reader".into() };
            let marked = lastgood::mark(&mut ledger, &writer, &id, standing, reason);
            repository.block_on(marked)?;
            Ok(id.to_string())
        })
        .or_raise()
    }
}
