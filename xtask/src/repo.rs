//! Where the project's files are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the working tree.
pub(crate) fn root() -> &'static Path {
    // This crate stands directly below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// A text file of the project, by its path from the root.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {}", path.display()))
}

/// The files whose names end with `.extension`, by their paths from the root, sorted. Build outputs and
/// hidden folders are left out.
pub(crate) fn files(extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk(root(), &mut |path| {
        if path.extension().is_some_and(|found| found == extension) {
            found.push(path.strip_prefix(root()).unwrap_or(path).to_owned());
        }
    })?;
    found.sort();
    Ok(found)
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name();
        let left_out = name == "target" || name.to_string_lossy().starts_with('.');
        if kind.is_dir() && !left_out {
            walk(&path, visit)?;
        } else if kind.is_file() {
            visit(&path);
        }
    }
    Ok(())
}

/// True for a file that holds tests and nothing else.
pub(crate) fn is_test(path: &Path) -> bool {
    let stem = path.file_stem().is_some_and(|stem| {
        let stem = stem.to_string_lossy();
        stem == "tests" || stem.ends_with("_tests")
    });
    stem || path
        .components()
        .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches")
}
