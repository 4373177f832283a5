//! Checkpoints as Python sees them: what the ledger tells of one, and what one holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood::ledger::{self, Ledger};
use lastgood::restore::Contents;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;

/// A checkpoint as the ledger tells of it, by the names that `lastgood._run.Checkpoint` has.
pub(crate) type Row = BTreeMap<&'static str, Py<PyAny>>;

/// The checkpoints of a ledger, oldest first.
pub(crate) fn history_of(py: Python<'_>, ledger: &Ledger) -> PyResult<Vec<Row>> {
    ledger.history().checkpoints().iter().map(|checkpoint| row(py, checkpoint)).collect()
}

fn row(py: Python<'_>, checkpoint: &ledger::Checkpoint) -> PyResult<Row> {
    Ok(BTreeMap::from([
        ("id", checkpoint.id.to_string().into_py_any(py)?),
        ("step", checkpoint.step.into_py_any(py)?),
        ("standing", checkpoint.standing.name().into_py_any(py)?),
        ("reason", checkpoint.reason.clone().into_py_any(py)?),
        ("at", checkpoint.at.clone().into_py_any(py)?),
        ("attempt", checkpoint.attempt.into_py_any(py)?),
        ("world_size", checkpoint.world_size.into_py_any(py)?),
        ("parent", checkpoint.parent.map(|id| id.to_string()).into_py_any(py)?),
        ("bytes", checkpoint.bytes.into_py_any(py)?),
        ("new_bytes", checkpoint.new_bytes.into_py_any(py)?),
        ("expired", checkpoint.expired.into_py_any(py)?),
    ]))
}

/// What a checkpoint holds, by name; its tables are verified.
#[pyclass(module = "lastgood._lastgood", frozen)]
#[derive(Debug)]
pub(crate) struct Checkpoint {
    contents: Arc<Contents>,
    /// What a person should know of how it was chosen.
    #[pyo3(get)]
    notices: Vec<String>,
}

/// Name, owner, durability.
type ComponentRow = (String, String, &'static str);
/// Component, name, dtype, global shape, what it is tied to.
type TensorRow = (String, String, &'static str, Vec<u64>, Option<String>);

impl Checkpoint {
    pub(crate) fn new(contents: Contents) -> Self {
        Self::noticed(contents, Vec::new())
    }

    pub(crate) fn noticed(contents: Contents, notices: Vec<String>) -> Self {
        Self { contents: Arc::new(contents), notices }
    }

    pub(crate) fn contents(&self) -> Arc<Contents> {
        Arc::clone(&self.contents)
    }
}

#[pymethods]
impl Checkpoint {
    /// The id: 64 hexadecimal digits.
    #[getter]
    fn id(&self) -> String {
        self.contents.id().to_string()
    }

    /// The step.
    #[getter]
    fn step(&self) -> u64 {
        self.contents.manifest().step
    }

    /// The number of ranks that saved it.
    #[getter]
    fn world_size(&self) -> u32 {
        self.contents.manifest().world_size
    }

    /// The bytes of all ranks' tensors and values.
    #[getter]
    fn bytes(&self) -> u64 {
        self.contents.manifest().bytes
    }

    /// The components: name, owner, durability.
    fn components(&self) -> Vec<ComponentRow> {
        let all = self.contents.components();
        all.into_values()
            .map(|c| (c.name.clone(), c.owner.clone(), durability_name(c.durability)))
            .collect()
    }

    /// Tensors and values: component, name, dtype, global shape, the name that it is tied to.
    fn tensors(&self) -> Vec<TensorRow> {
        let all = self.contents.tensors().iter();
        all.map(|((component, name), info)| {
            let (component, name) = (component.clone(), name.clone());
            (component, name, info.dtype.name(), info.shape.clone(), info.tied_to.clone())
        })
        .collect()
    }

    /// The text that travels with it.
    fn metadata(&self) -> BTreeMap<String, String> {
        let all = self.contents.metadata().into_iter();
        all.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

fn durability_name(durability: lastgood::state::Durability) -> &'static str {
    match durability {
        lastgood::state::Durability::Durable => "durable",
        lastgood::state::Durability::Derived => "derived",
        lastgood::state::Durability::Volatile => "volatile",
    }
}
