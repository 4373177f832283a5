//! Reading checkpoints outside of any attempt: nothing is written, and no trainer is fenced.

use std::collections::BTreeMap;

use lastgood::restore::Selector;
use lastgood::state::World;
use lastgood::{Repository, RunName};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::Raise;
use crate::run::{Checkpoint, history_of, read, repository};
use crate::state::Targets;

/// The checkpoints of a run, for who only reads.
#[pyclass(module = "lastgood._lastgood", frozen)]
#[derive(Debug)]
pub(crate) struct Reader {
    repository: Repository,
    name: RunName,
    world: World,
}

#[pymethods]
impl Reader {
    /// Opens run `run` of the store `url`, which must be there, as rank `rank` of `world_size`.
    #[new]
    fn new(
        py: Python<'_>,
        url: &str,
        options: BTreeMap<String, String>,
        run: &str,
        rank: u32,
        world_size: u32,
    ) -> PyResult<Self> {
        let name: RunName = run.parse().or_raise()?;
        let world = World { rank, size: world_size };
        let repository = py.detach(|| repository(url, &options, false)).or_raise()?;
        Ok(Self { repository, name, world })
    }

    /// The checkpoint that `selector` names.
    fn find(&self, py: Python<'_>, selector: &str) -> PyResult<Checkpoint> {
        let selector: Selector = selector.parse().or_raise()?;
        let contents = py.detach(|| {
            let ledger = self.repository.existing(&self.name)?;
            let id = lastgood::restore::resolve(ledger.history(), &selector)?.id;
            self.repository.contents(&ledger, &id)
        });
        contents.map(Checkpoint::new).or_raise()
    }

    /// Reads into `targets`, and gives the bytes that were placed and those that were read.
    fn read(
        &self,
        py: Python<'_>,
        checkpoint: &Checkpoint,
        targets: Py<Targets>,
    ) -> PyResult<(u64, u64)> {
        read(py, &self.repository, self.world, checkpoint, targets)
    }

    /// Every checkpoint of the run, oldest first, as a dict each; none if the run is not there.
    fn history<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let ledger = py.detach(|| self.repository.ledger(&self.name)).or_raise()?;
        history_of(py, &ledger)
    }
}
