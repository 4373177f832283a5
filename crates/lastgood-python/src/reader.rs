//! Reading a run without being part of it: no attempt begins, and nobody is fenced.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood::restore::{self, Selector};
use lastgood::state::World;
use lastgood::{Repository, Result, RunName};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::Raise;
use crate::run::{Checkpoint, history_of, interruptible, repository};
use crate::state::Targets;

/// A run that is only read, by any number of processes, also while it is saved to.
#[pyclass(module = "lastgood._lastgood", frozen)]
#[derive(Debug)]
pub(crate) struct Reader {
    repository: Repository,
    name: RunName,
}

#[pymethods]
impl Reader {
    /// Finds run `run` in the store `url`, which is left as it is.
    #[new]
    fn new(
        py: Python<'_>,
        url: &str,
        options: BTreeMap<String, String>,
        run: &str,
    ) -> PyResult<Self> {
        let name: RunName = run.parse().or_raise()?;
        py.detach(|| -> Result<Self> {
            let repository = repository(url, &options, false)?;
            repository.existing(&name)?;
            Ok(Self { repository, name })
        })
        .or_raise()
    }

    /// The checkpoint that `selector` names.
    fn find(&self, py: Python<'_>, selector: &str) -> PyResult<Checkpoint> {
        let selector: Selector = selector.parse().or_raise()?;
        py.detach(|| {
            let ledger = self.repository.existing(&self.name)?;
            let id = restore::resolve(ledger.history(), &selector)?.id;
            Ok(Checkpoint::new(self.repository.contents(&ledger, &id)?))
        })
        .or_raise()
    }

    /// Reads into `targets`, and gives the bytes that were placed and those that were read.
    fn read(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        targets: Py<Targets>,
    ) -> PyResult<(u64, u64)> {
        let repository = self.repository.clone();
        let contents = Arc::clone(checkpoint.contents());
        interruptible(py, move || {
            let mut taken = Python::attach(|py| std::mem::take(&mut *targets.borrow_mut(py)));
            let read = taken
                .fill(World { rank: 0, size: 1 }, |targets| repository.restore(&contents, targets));
            Python::attach(|py| *targets.borrow_mut(py) = taken);
            read.map(|restored| (restored.bytes, restored.bytes_read))
        })
    }

    /// Every checkpoint of the run, oldest first, as a dict each.
    fn history<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let ledger = py.detach(|| self.repository.existing(&self.name)).or_raise()?;
        history_of(py, &ledger)
    }
}
