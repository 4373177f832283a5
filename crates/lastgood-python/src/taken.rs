//! Tensors as a crash has left them in memory, for Python.

use std::sync::{Arc, Mutex, PoisonError};

use lastgood::Error;
use lastgood::restore::Contents;
use lastgood::tier;
use lastgood_format::layout::NdBox;
use pyo3::prelude::*;

use crate::errors::Raise;

/// A restore that takes tensors as they lie in memory.
#[pyclass(module = "lastgood._lastgood", frozen)]
#[derive(Debug)]
pub(crate) struct Taking {
    contents: Arc<Contents>,
    /// `None` once it is done.
    inner: Mutex<Option<tier::Taking>>,
}

impl Taking {
    pub(crate) fn new(contents: Arc<Contents>, tier: &tier::Tier) -> Self {
        Self { contents, inner: Mutex::new(Some(tier.take())) }
    }
}

#[pymethods]
impl Taking {
    /// The part at `offsets` of size `sizes` of a tensor, if it lies in memory in one piece.
    fn tensor(
        &self,
        component: &str,
        name: &str,
        offsets: Vec<u64>,
        sizes: Vec<u64>,
    ) -> Option<Taken> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let extent = NdBox { offsets, sizes };
        inner.as_mut()?.take(&self.contents, (component, name), &extent).map(Taken)
    }

    /// Verifies behind the call what was taken; nothing can be taken after.
    fn verify(&self) -> PyResult<()> {
        let taking = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        let done = Error::invalid("it is verified already");
        taking.ok_or(done).and_then(tier::Taking::verify_behind).or_raise()
    }
}

/// The memory of a tensor, which nobody else sees, as long as this object is there.
#[pyclass(module = "lastgood._lastgood", frozen)]
#[derive(Debug)]
pub(crate) struct Taken(tier::Taken);

#[pymethods]
impl Taken {
    /// Where it begins.
    #[getter]
    fn address(&self) -> usize {
        self.0.address()
    }

    /// Its length.
    #[getter]
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}
