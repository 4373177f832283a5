//! Errors as Python exceptions: one class for each kind, all of them `LastgoodError`.

use lastgood::{Error, ErrorKind};
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyModule;
use pyo3::{PyErr, create_exception};

create_exception!(
    lastgood,
    LastgoodError,
    PyException,
    "Something failed. The text says what, why, and what to do.\n\n\
     Attributes: `code` (`LG001` to `LG012`, see docs/errors), `kind` (its name), `object` (the stored object \
     or path it is about, or None), `remedy` (what to do, or None), `causes` (a list of errors)."
);

macro_rules! kinds {
    ($($name:ident: $doc:literal;)*) => {
        $(create_exception!(lastgood, $name, LastgoodError, $doc);)*

        fn class(kind: ErrorKind) -> fn(String) -> PyErr {
            match kind {
                $(ErrorKind::$name => PyErr::new::<$name, String>,)*
                _ => PyErr::new::<LastgoodError, String>,
            }
        }

        /// Adds the exceptions to the module.
        pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
            let py = module.py();
            module.add("LastgoodError", py.get_type::<LastgoodError>())?;
            $(module.add(stringify!($name), py.get_type::<$name>())?;)*
            Ok(())
        }
    };
}

kinds! {
    Invalid: "An argument or a setting is wrong: fix it.";
    NotFound: "What was named does not exist: choose another.";
    Conflict: "Somebody else was first: read again and decide again.";
    Fenced: "A newer attempt owns the run: stop.";
    Unavailable: "The store did not answer, or its answer is unknown: try again later.";
    Overloaded: "A bound is reached: wait, or ask for less.";
    Corrupt: "Stored bytes are damaged: heal them, or go back to an older checkpoint.";
    Incompatible: "Another version, layout or environment is needed.";
    Diverged: "Two executions differ: open the report.";
    Denied: "A right is missing, or a hold is not over.";
    Closed: "It is closed: open it again.";
    Internal: "A bug of lastgood: report it.";
}

/// `error` as the exception of its kind.
pub(crate) fn raise(error: Error) -> PyErr {
    Python::attach(|py| {
        let raised = class(error.kind())(error.to_string());
        let value = raised.value(py);
        let causes: Vec<Py<PyAny>> = error
            .causes()
            .iter()
            .map(|cause| raise(cause.clone()).into_value(py).into_any())
            .collect();
        let described = value
            .setattr("code", error.kind().code())
            .and_then(|()| value.setattr("kind", error.kind().name()))
            .and_then(|()| value.setattr("object", error.object()))
            .and_then(|()| value.setattr("remedy", error.remedy()))
            .and_then(|()| value.setattr("causes", causes));
        match described {
            Ok(()) => raised,
            Err(failed) => failed,
        }
    })
}

/// Gives a library's result to Python.
pub(crate) trait Raise<T> {
    fn or_raise(self) -> PyResult<T>;
}

impl<T> Raise<T> for lastgood::Result<T> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(raise)
    }
}
