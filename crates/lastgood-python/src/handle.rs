//! A save on its way, as Python waits for it.

use std::time::Duration;

use lastgood::save::{SaveHandle as RustHandle, SaveStatus};
use lastgood::{Hash, Result};
use pyo3::prelude::*;

use crate::errors::Raise;
use crate::options::seconds;
use crate::run::LOOK;

/// A save on its way.
#[pyclass(module = "lastgood._lastgood", frozen)]
#[derive(Debug)]
pub(crate) struct SaveHandle(pub(crate) RustHandle);

#[pymethods]
impl SaveHandle {
    /// The step that is saved.
    #[getter]
    fn step(&self) -> u64 {
        self.0.step()
    }

    /// How far it is: capturing, captured, written, committed, superseded or failed.
    fn status(&self) -> &'static str {
        match self.0.status() {
            SaveStatus::Capturing => "capturing",
            SaveStatus::Captured => "captured",
            SaveStatus::Durable => "written",
            SaveStatus::Committed(_) => "committed",
            SaveStatus::Superseded => "superseded",
            SaveStatus::Failed(_) => "failed",
        }
    }

    /// Waits at most `timeout` seconds (None: for ever) until the state is copied; False if it is not yet.
    #[pyo3(signature = (timeout=None))]
    fn wait_captured(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        Ok(poll(py, timeout, |wait| self.0.wait_captured(wait))?.is_some())
    }

    /// Waits at most `timeout` seconds until it is a checkpoint, and gives its id; None if it is not yet.
    #[pyo3(signature = (timeout=None))]
    fn wait_committed(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<String>> {
        let id: Option<Hash> = poll(py, timeout, |wait| self.0.wait_timeout(wait))?;
        Ok(id.map(|id| id.to_string()))
    }
}

/// Waits in pieces, so that Ctrl-C is heard.
fn poll<T: Send>(
    py: Python<'_>,
    timeout: Option<f64>,
    wait: impl Fn(Duration) -> Result<Option<T>> + Sync,
) -> PyResult<Option<T>> {
    let mut left = timeout.map(|timeout| seconds(timeout.max(0.0))).transpose().or_raise()?;
    loop {
        let piece = left.map_or(LOOK, |left| left.min(LOOK));
        if let Some(value) = py.detach(|| wait(piece)).or_raise()? {
            return Ok(Some(value));
        }
        py.check_signals()?;
        if let Some(left) = &mut left {
            *left = left.saturating_sub(piece);
            if left.is_zero() {
                return Ok(None);
            }
        }
    }
}
