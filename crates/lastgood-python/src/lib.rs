//! The Python module `lastgood._lastgood`: the library and the command behind the package in `python/lastgood`.
//!
//! It holds no logic of its own: what is saved and restored is named by Python, and everything else is the
//! library's. Private to the package, whose public names are in `python/lastgood/__init__.py`.

mod checkpoint;
mod errors;
mod event;
mod handle;
mod memory;
mod options;
mod policy;
mod reader;
mod replay;
mod run;
mod state;
mod taken;

use pyo3::prelude::*;

/// The engine behind the package.
#[pymodule]
mod _lastgood {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::checkpoint::Checkpoint;
    use crate::errors::Raise;
    #[pymodule_export]
    use crate::handle::SaveHandle;
    #[pymodule_export]
    use crate::reader::Reader;
    #[pymodule_export]
    use crate::replay::{Replay, audit_journal, resumed};
    #[pymodule_export]
    use crate::run::Run;
    #[pymodule_export]
    use crate::state::{Capture, Targets};
    #[pymodule_export]
    use crate::taken::{Taken, Taking};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::errors::add(module)
    }

    /// Runs the `lastgood` command with `args`, and gives its exit code. `program` is how it is started again.
    #[pyfunction]
    fn main(py: Python<'_>, program: Vec<OsString>, args: Vec<OsString>) -> u8 {
        py.detach(|| lastgood_cli::main(program, &args))
    }

    /// Raises if there are no such settings of saves, or one is out of its range.
    #[pyfunction]
    fn check_settings(settings: BTreeMap<String, Bound<'_, PyAny>>) -> PyResult<()> {
        crate::options::save_options(&settings)?.check().or_raise()
    }

    /// What the settings of a policy come to, for a person; raises if there are no such settings, or one is wrong.
    #[pyfunction]
    fn check_policy(settings: BTreeMap<String, Bound<'_, PyAny>>) -> PyResult<String> {
        let policy = crate::policy::from_python(&settings)?;
        policy.check().or_raise()?;
        Ok(policy.describe())
    }

    /// What it means that two processes differ in `key`: safety, numerics or information.
    #[pyfunction]
    fn effect_of(key: &str) -> &'static str {
        lastgood::preflight::environment::effect_of(key).name()
    }

    /// What differences mean, by key or by family, which ends with a dot.
    #[pyfunction]
    fn effects() -> BTreeMap<&'static str, &'static str> {
        let all = lastgood::preflight::environment::EFFECTS.iter();
        all.map(|(key, effect)| (*key, effect.name())).collect()
    }

    /// The names of the runs in the store `url`, sorted.
    #[pyfunction]
    fn runs(py: Python<'_>, url: &str, options: BTreeMap<String, String>) -> PyResult<Vec<String>> {
        let runs =
            py.detach(|| crate::options::repository(url, &options, false)?.runs()).or_raise()?;
        Ok(runs.iter().map(ToString::to_string).collect())
    }
}
