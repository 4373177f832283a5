//! What is saved and where it is restored to, as Python names it.

use std::sync::{Mutex, PoisonError};

use lastgood::state::{self, Durability, Name, Optimizer, Targets as RustTargets, Update};
use lastgood::{Dtype, Error, Result};
use lastgood_format::layout::NdBox;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyBytes;

use crate::errors::Raise;
use crate::memory::{Held, Memory, expect_writes};

/// A component by name, owner and durability.
#[derive(Clone, Debug)]
struct Component {
    name: String,
    owner: String,
    durability: Durability,
}

impl Component {
    fn new(name: String, owner: String, durability: &str) -> Result<Self> {
        let durability = match durability {
            "durable" => Durability::Durable,
            "derived" => Durability::Derived,
            "volatile" => Durability::Volatile,
            other => {
                return Err(Error::invalid(format!("{other:?} is no durability"))
                    .with_remedy("use durable, derived or volatile"));
            }
        };
        Ok(Self { name, owner, durability })
    }
}

/// One tensor or part of one, or bytes.
#[derive(Debug)]
struct Piece {
    component: usize,
    name: String,
    what: What,
}

#[derive(Debug)]
enum What {
    Tensor {
        dtype: Dtype,
        shape: Vec<u64>,
        extent: NdBox,
        role: Role,
        memory: Held,
    },
    /// A tensor of which this rank holds the whole.
    Whole {
        dtype: Dtype,
        shape: Vec<u64>,
        role: Role,
        memory: Held,
    },
    Bytes {
        data: Vec<u8>,
        replicated: bool,
    },
    Tied(String),
}

/// Which ranks hold a tensor or a part of one, and whether this one stores it.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// Every rank holds the same whole; one stores it.
    Same,
    /// Nobody else holds it.
    Alone,
    /// Other ranks hold the same part, and this one stores it.
    Stored,
    /// Other ranks hold the same part, and one of them stores it.
    Witnessed,
}

impl Role {
    fn new(role: &str) -> Result<Self> {
        match role {
            "same" => Ok(Self::Same),
            "shard" | "own" => Ok(Self::Alone),
            "stored" => Ok(Self::Stored),
            "witnessed" => Ok(Self::Witnessed),
            other => Err(Error::invalid(format!("{other:?} is no role"))
                .with_remedy("use same, shard, own, stored or witnessed")),
        }
    }
}

/// A callable of Python that is asked once everything is copied.
#[derive(Debug)]
struct Check(Py<PyAny>);

impl Check {
    fn ask(&self) -> Result<()> {
        let problem = Python::attach(|py| self.0.call0(py)?.extract::<Option<String>>(py));
        match problem {
            Ok(None) => Ok(()),
            Ok(Some(problem)) => Err(Error::invalid(problem).with_remedy(
                "change parameters and optimizer state in the optimizer's step or under run.lock() alone",
            )),
            Err(error) => Err(Error::internal(format!("a check of the copy failed: {error}"))),
        }
    }
}

/// The state of one rank at one step, for `Run.save`. `overlapped`: it is copied after the call.
#[pyclass(module = "lastgood._lastgood")]
#[derive(Debug, Default)]
pub(crate) struct Capture {
    overlapped: bool,
    components: Vec<Component>,
    pieces: Vec<Piece>,
    metadata: Vec<(String, String)>,
    checks: Vec<Check>,
    updates: Vec<Update>,
}

#[pymethods]
impl Capture {
    #[new]
    #[pyo3(signature = (overlapped=false))]
    fn new(overlapped: bool) -> Self {
        Self { overlapped, ..Self::default() }
    }

    /// Declares a component and gives its number; `durability` is durable, derived or volatile.
    fn component(&mut self, name: String, owner: String, durability: &str) -> PyResult<usize> {
        self.components.push(Component::new(name, owner, durability).or_raise()?);
        Ok(self.components.len() - 1)
    }

    /// The part at `offsets` of size `sizes` of a tensor of global shape `shape`: `bytes` bytes at `address`,
    /// row-major and little-endian, which `owner` keeps alive. `role`: every rank holds the `same` whole; a `shard`
    /// or its `own` is this rank's alone; other ranks hold the same part, `stored` by this or `witnessed`.
    #[pyo3(signature = (component, name, dtype, shape, offsets, sizes, address, bytes, owner, role))]
    #[expect(clippy::too_many_arguments, reason = "one call a tensor, positional")]
    fn tensor(
        &mut self,
        component: usize,
        name: String,
        dtype: &str,
        shape: Vec<u64>,
        offsets: Vec<u64>,
        sizes: Vec<u64>,
        address: usize,
        bytes: usize,
        owner: Py<PyAny>,
        role: &str,
    ) -> PyResult<()> {
        let role = Role::new(role).or_raise()?;
        let memory = Held::InPlace(Memory::new(address, bytes, owner).or_raise()?);
        let dtype: Dtype = dtype.parse().or_raise()?;
        let extent = NdBox { offsets, sizes };
        let what = What::Tensor { dtype, shape, extent, role, memory };
        self.pieces.push(Piece { component, name, what });
        Ok(())
    }

    /// As `tensor`, many whole ones of one role at once, each row of the lists one of them. `changes`: they may be
    /// changed as soon as the call of the save has returned, so that they are copied within it.
    #[expect(clippy::too_many_arguments, reason = "columns, positional")]
    fn wholes(
        &mut self,
        py: Python<'_>,
        component: usize,
        names: Vec<String>,
        dtypes: Vec<PyBackedStr>,
        shapes: Vec<Vec<u64>>,
        addresses: Vec<usize>,
        sizes: Vec<usize>,
        owners: Vec<Py<PyAny>>,
        role: &str,
        changes: bool,
    ) -> PyResult<()> {
        let role = Role::new(role).or_raise()?;
        let rows = names.len();
        let columns = [dtypes.len(), shapes.len(), addresses.len(), sizes.len(), owners.len()];
        if columns.iter().any(|column| *column != rows) {
            return Err(Error::invalid("the columns of tensors differ in length")).or_raise();
        }
        let mut memories = Vec::with_capacity(rows);
        for ((address, bytes), owner) in addresses.into_iter().zip(sizes).zip(owners) {
            memories.push(Memory::new(address, bytes, owner).or_raise()?);
        }
        let held = match changes {
            true => Held::copies(py, memories, self.overlapped).or_raise()?,
            false => memories.into_iter().map(Held::InPlace).collect(),
        };
        self.pieces.reserve(rows);
        for (((name, dtype), shape), memory) in names.into_iter().zip(dtypes).zip(shapes).zip(held)
        {
            let what = What::Whole { dtype: dtype.parse().or_raise()?, shape, role, memory };
            self.pieces.push(Piece { component, name, what });
        }
        Ok(())
    }

    /// Bytes that are the same on every rank (`replicated`), or of this rank alone under `name@rankN`.
    fn blob(&mut self, component: usize, name: String, data: &[u8], replicated: bool) {
        let what = What::Bytes { data: data.to_vec(), replicated };
        self.pieces.push(Piece { component, name, what });
    }

    /// Tensor `name` is the same memory as `of`, which was named before.
    fn tied(&mut self, component: usize, name: String, of: String) {
        self.pieces.push(Piece { component, name, what: What::Tied(of) });
    }

    /// What an optimizer did in its last step, each row of the lists a tensor by its component and name, and what it
    /// keeps for that. `numbers` of adam: learning rate, both betas, epsilon, decay; of momentum and nesterov:
    /// learning rate, momentum; of lion: learning rate, both betas, decay. `seconds` is empty unless it is adam.
    fn updates(
        &mut self,
        kind: &str,
        numbers: Vec<f64>,
        steps: u64,
        weights: Vec<Name>,
        firsts: Vec<Name>,
        seconds: Vec<Name>,
    ) -> PyResult<()> {
        let optimizer = match (kind, numbers.as_slice()) {
            ("adam", &[lr, first, second, eps, decay]) => {
                Optimizer::Adam { lr, betas: (first, second), eps, decay }
            }
            ("momentum" | "nesterov", &[lr, momentum]) => {
                Optimizer::Momentum { lr, momentum, nesterov: kind == "nesterov" }
            }
            ("lion", &[lr, first, second, decay]) => {
                Optimizer::Lion { lr, betas: (first, second), decay }
            }
            _ => return Err(Error::invalid(format!("no optimizer {kind:?}"))).or_raise(),
        };
        let mut seconds = seconds.into_iter();
        for (weight, first) in weights.into_iter().zip(firsts) {
            let second = seconds.next();
            self.updates.push(Update { optimizer, steps, weight, first, second });
        }
        Ok(())
    }

    /// Text that travels with the checkpoint.
    fn metadata(&mut self, key: String, value: String) {
        self.metadata.push((key, value));
    }

    /// Asks `check` once everything is copied: None if the copy can be trusted, else why the save must fail.
    fn check(&mut self, check: Py<PyAny>) {
        self.checks.push(Check(check));
    }

    /// The bytes of this rank's tensors and values.
    #[getter]
    fn bytes(&self) -> usize {
        let bytes = |piece: &Piece| match &piece.what {
            What::Tensor { memory, .. } | What::Whole { memory, .. } => memory.len(),
            What::Bytes { data, .. } => data.len(),
            What::Tied(_) => 0,
        };
        self.pieces.iter().map(bytes).sum()
    }
}

impl Capture {
    /// Names everything in `capture`, and is empty after.
    pub(crate) fn declare(&mut self, capture: &mut state::Capture<'static>) -> Result<()> {
        let mut pieces: Vec<Vec<Piece>> = self.components.iter().map(|_| Vec::new()).collect();
        for piece in self.pieces.drain(..) {
            let of = pieces.get_mut(piece.component);
            of.ok_or_else(|| Error::invalid(format!("{}: no such component", piece.name)))?
                .push(piece);
        }
        for (component, pieces) in self.components.iter().zip(pieces) {
            let mut part =
                capture.component(&component.name, &component.owner, component.durability)?;
            for Piece { name, what, .. } in pieces {
                match what {
                    What::Whole { dtype, shape, role: Role::Same, memory } => {
                        part.source(&name, dtype, &shape, memory)?;
                    }
                    What::Whole { dtype, shape, role, memory } => {
                        let extent = NdBox::whole(&shape);
                        declare(&mut part, &name, dtype, &shape, extent, role, memory)?;
                    }
                    What::Tensor { dtype, shape, extent, role, memory } => {
                        declare(&mut part, &name, dtype, &shape, extent, role, memory)?;
                    }
                    What::Bytes { data, replicated: true } => part.blob(&name, data)?,
                    What::Bytes { data, replicated: false } => part.rank_blob(&name, data)?,
                    What::Tied(of) => part.tied(&name, &of)?,
                }
            }
        }
        for (key, value) in self.metadata.drain(..) {
            capture.metadata(key, value);
        }
        for update in self.updates.drain(..) {
            capture.update(update);
        }
        for check in self.checks.drain(..) {
            capture.check(move || check.ask());
        }
        Ok(())
    }
}

fn declare(
    part: &mut state::Part<'_, 'static>,
    name: &str,
    dtype: Dtype,
    shape: &[u64],
    extent: NdBox,
    role: Role,
    memory: Held,
) -> Result<()> {
    match role {
        Role::Same => {
            check_whole(name, shape, &extent)?;
            part.source(name, dtype, shape, memory)
        }
        Role::Alone => part.shard_source(name, dtype, shape, extent, memory),
        Role::Stored | Role::Witnessed => {
            let stores = matches!(role, Role::Stored);
            part.copy_source(name, dtype, shape, extent, memory, stores)
        }
    }
}

fn check_whole(name: &str, shape: &[u64], extent: &NdBox) -> Result<()> {
    if *extent == NdBox::whole(shape) {
        return Ok(());
    }
    Err(Error::invalid(format!("{name}: what every rank holds is whole, given {extent}")))
}

/// The memory that a checkpoint is read into, for `Run.read`.
#[pyclass(module = "lastgood._lastgood")]
#[derive(Debug, Default)]
pub(crate) struct Targets {
    requests: Vec<Request>,
    blobs: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Request {
    component: String,
    name: String,
    into: Into,
}

#[derive(Debug)]
enum Into {
    Tensor {
        dtype: Dtype,
        shape: Vec<u64>,
        extent: NdBox,
        memory: Memory,
    },
    /// Into the blob of this number.
    Blob(usize),
}

#[pymethods]
impl Targets {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The part at `offsets` of size `sizes` of a tensor, into `bytes` bytes at `address`, which `owner` keeps
    /// alive and nobody else uses.
    #[expect(clippy::too_many_arguments, reason = "one call a tensor, positional")]
    fn tensor(
        &mut self,
        component: String,
        name: String,
        dtype: &str,
        shape: Vec<u64>,
        offsets: Vec<u64>,
        sizes: Vec<u64>,
        address: usize,
        bytes: usize,
        owner: Py<PyAny>,
    ) -> PyResult<()> {
        let memory = Memory::new(address, bytes, owner).or_raise()?;
        let dtype: Dtype = dtype.parse().or_raise()?;
        let into = Into::Tensor { dtype, shape, extent: NdBox { offsets, sizes }, memory };
        self.requests.push(Request { component, name, into });
        Ok(())
    }

    /// Bytes, by the full name that they have in the checkpoint; gives the number for `take`.
    fn blob(&mut self, component: String, name: String) -> usize {
        self.blobs.push(Vec::new());
        let number = self.blobs.len() - 1;
        self.requests.push(Request { component, name, into: Into::Blob(number) });
        number
    }

    /// The bytes of blob `number`, once they are read.
    fn take<'py>(&mut self, py: Python<'py>, number: usize) -> PyResult<Bound<'py, PyBytes>> {
        let blob = self.blobs.get_mut(number).map(std::mem::take);
        let blob =
            blob.ok_or_else(|| Error::invalid(format!("there is no blob {number}"))).or_raise()?;
        Ok(PyBytes::new(py, &blob))
    }
}

impl Targets {
    /// Lets `read` fill everything that is named.
    pub(crate) fn fill<T>(
        &mut self,
        world: state::World,
        read: impl FnOnce(RustTargets<'_>) -> Result<T>,
    ) -> Result<T> {
        expect_writes(self.requests.iter().filter_map(|request| match &request.into {
            Into::Tensor { memory, .. } => Some(memory),
            Into::Blob(_) => None,
        }));
        let blobs: Vec<Mutex<&mut Vec<u8>>> = self.blobs.iter_mut().map(Mutex::new).collect();
        let mut targets = RustTargets::new(world);
        // What is missing and what is left over is judged in Python, by component.
        targets.partial();
        let mut by_component: std::collections::BTreeMap<&str, Vec<(&str, &mut Into)>> =
            std::collections::BTreeMap::new();
        for request in &mut self.requests {
            let of = by_component.entry(&request.component).or_default();
            of.push((&request.name, &mut request.into));
        }
        for (component, requests) in by_component {
            let mut slots = targets.component(component, "python", Durability::Durable)?;
            for (name, into) in requests {
                match into {
                    Into::Tensor { dtype, shape, extent, memory } => {
                        slots.shard(name, *dtype, shape, extent.clone(), memory.target())?;
                    }
                    Into::Blob(number) => {
                        let blob = &blobs[*number];
                        slots.blob(name, move |data| {
                            **blob.lock().unwrap_or_else(PoisonError::into_inner) = data;
                            Ok(())
                        })?;
                    }
                }
            }
        }
        read(targets)
    }
}
