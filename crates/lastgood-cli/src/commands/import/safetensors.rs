//! safetensors as a component: one file, or the shards that an index names.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use indicatif::ProgressBar;
use lastgood::state::{Capture, Durability, Source};
use lastgood::{Error, ErrorKind, Result, safetensors};

use super::{OWNER, Package, audit, error_of, refuse_damage};
use crate::doctor::discover::Folder;
use crate::doctor::formats;
use crate::doctor::report::Checkpoint;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = ".safetensors.index.json";

/// Files that are one component together.
#[derive(Debug)]
pub(super) struct Shards {
    files: Vec<OnDisk>,
    left_out: Vec<String>,
    bytes: u64,
}

impl Shards {
    /// One file.
    pub(super) fn open_file(path: &Path, bar: &ProgressBar) -> Result<Self> {
        let file = OnDisk::open(path, bar)?;
        let bytes = file.bytes;
        Ok(Self { files: vec![file], left_out: Vec::new(), bytes })
    }

    /// The weights in a folder: what its index names, or its only file.
    pub(super) fn open_folder(path: &Path, bar: &ProgressBar) -> Result<Self> {
        let folder = Folder::read(path).map_err(|e| error_of(e.into()))?;
        let mut checkpoint = Checkpoint::new(path, "safetensors");
        let weights: Vec<&String> =
            folder.files.iter().filter(|name| name.ends_with(".safetensors")).collect();
        let indexes: Vec<&String> =
            folder.files.iter().filter(|name| name.ends_with(INDEX)).collect();
        let names: BTreeSet<String> = match (&indexes[..], &weights[..]) {
            ([index], _) => formats::safetensors::named_by_index(path, index)
                .map_err(|flaw| error_of(flaw).context((*index).clone()))?,
            ([], [only]) => [(*only).clone()].into(),
            ([], many) if many.iter().any(|name| *name == SINGLE) => [SINGLE.to_owned()].into(),
            _ => {
                return Err(Error::invalid(format!(
                    "{} has {} safetensors files and {} indexes",
                    path.display(),
                    weights.len(),
                    indexes.len()
                ))
                .with_remedy(
                    "give a folder of DCP, one with weights in one file or with one index, or a file",
                ));
            }
        };
        formats::safetensors::audit(&audit(bar), &folder, &mut checkpoint);
        refuse_damage(&checkpoint.findings)?;
        let files: Result<Vec<OnDisk>> =
            names.iter().map(|name| OnDisk::open(&path.join(name), bar)).collect();
        let files = files?;
        let bytes = files.iter().map(|file| file.bytes).sum();
        let taken = |name: &&String| !names.contains(*name) && !indexes.contains(name);
        let left_out = folder.files.iter().filter(taken);
        let left_out = left_out.map(|name| format!("{name} (a file beside it)")).collect();
        Ok(Self { files, left_out, bytes })
    }
}

impl Package for Shards {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn capture<'p>(&'p self, component: &str, capture: &mut Capture<'p>) -> Result<()> {
        let readers: Result<Vec<_>> =
            self.files.iter().map(|file| safetensors::Reader::open(file, file.bytes)).collect();
        let readers = readers?;
        for reader in &readers {
            reader.capture_metadata(capture);
        }
        let mut part = capture.component(component, OWNER, Durability::Durable)?;
        readers.iter().try_for_each(|reader| reader.capture_into(&mut part))
    }

    fn left_out(&self) -> &[String] {
        &self.left_out
    }
}

/// A file, read where the capture asks for it.
#[derive(Debug)]
struct OnDisk {
    file: File,
    bytes: u64,
    bar: ProgressBar,
}

impl OnDisk {
    fn open(path: &Path, bar: &ProgressBar) -> Result<Self> {
        let file = File::open(path).map_err(|e| cannot_read(&e))?;
        let metadata = file.metadata().map_err(|e| cannot_read(&e))?;
        if !metadata.is_file() {
            return Err(Error::invalid("this is no file that can be read")
                .with_remedy("give a safetensors file"));
        }
        Ok(Self { file, bytes: metadata.len(), bar: bar.clone() })
    }
}

fn cannot_read(error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("cannot read the file: {error}"))
}

impl Source for OnDisk {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.bar.inc(into.len() as u64);
        self.file.read_exact_at(into, offset as u64).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::corrupt("the file became shorter meanwhile"),
            _ => cannot_read(&error),
        })
    }
}
