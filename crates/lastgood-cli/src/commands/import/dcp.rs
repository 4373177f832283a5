//! A folder of DCP as a component: each chunk becomes a shard, so that nothing is put together in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;
use lastgood::state::{Capture, Durability};
use lastgood::{Dtype, Error, Result};
use lastgood_format::layout::NdBox;

use super::leaves::Leaves;
use super::part::Stored;
use super::torch::{Tensors, capture_values};
use super::{OWNER, Package, audit, error_of, refuse_damage};
use crate::doctor::discover::Folder;
use crate::doctor::disk::Span;
use crate::doctor::formats::dcp::{self, Item, METADATA, Metadata};
use crate::doctor::report::{Coverage, Findings};
use crate::doctor::tensors::{dtype_of_name, view};
use crate::doctor::torch::TorchFile;

/// A checkpoint of DCP.
#[derive(Debug)]
pub(super) struct Dcp {
    tensors: Vec<Tensor>,
    /// What is no tensor, and what tensors are in it.
    values: Leaves,
    inner: Tensors,
    bytes: u64,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    shards: Vec<(NdBox, Stored)>,
}

impl Dcp {
    pub(super) fn open(path: &Path, bar: &ProgressBar) -> Result<Self> {
        let folder = Folder::read(path).map_err(|e| error_of(e.into()))?;
        let (mut findings, mut coverage) = (Findings::default(), Coverage::default());
        dcp::audit_folder(&audit(bar), path, "", &folder, &mut findings, &mut coverage);
        refuse_damage(&findings)?;
        let span = Span::open(&path.join(METADATA)).map_err(error_of)?;
        let (_, metadata) = Metadata::read(&span).map_err(error_of)?;
        let metadata = metadata.map_err(error_of)?;
        let files = Files { path, bar };
        let mut package = Self {
            tensors: Vec::new(),
            values: Leaves::default(),
            inner: Tensors::new(coverage.checked + coverage.uncheckable),
            bytes: 0,
        };
        for tensor in &metadata.tensors {
            package.tensor(&files, &metadata, tensor)?;
        }
        for name in &metadata.objects {
            package.object(&files, &metadata, name)?;
        }
        let other = folder.files.iter().filter(|n| !n.ends_with(".distcp") && *n != METADATA);
        package.values.left_out.extend(other.map(|name| format!("{name} (a file beside it)")));
        package.bytes += package.inner.bytes();
        Ok(package)
    }

    fn tensor(&mut self, files: &Files<'_>, metadata: &Metadata, of: &dcp::Tensor) -> Result<()> {
        let Some(dtype) = dtype_of_name(&of.dtype) else {
            let what = format!("{} (a tensor of {}, which has no dtype here)", of.name, of.dtype);
            self.values.left_out.push(what);
            return Ok(());
        };
        let mut shards = Vec::new();
        for chunk in of.chunks.iter().filter(|chunk| chunk.elements() != Some(0)) {
            let about = |e: Error| e.context(format!("{} at {:?}", of.name, chunk.offsets));
            let item = metadata.item(&of.name, &chunk.offsets);
            let item = item.ok_or_else(|| about(Error::corrupt("it is not stored")))?;
            let stored = files.chunk(item).map_err(about)?;
            self.bytes += stored.bytes();
            shards.push((chunk.clone(), stored));
        }
        let (name, shape) = (of.name.clone(), of.shape.clone());
        self.tensors.push(Tensor { name, dtype, shape, shards });
        Ok(())
    }

    /// An object is a file of `torch.save` too; what is plain in it is taken.
    fn object(&mut self, files: &Files<'_>, metadata: &Metadata, name: &str) -> Result<()> {
        let Some(item) = metadata.object(name) else { return Ok(()) };
        let (path, file) = match files.open(item) {
            Ok(opened) => opened,
            Err(_) => {
                self.values.left_out.push(format!("{name} (bytes that only Python can read)"));
                return Ok(());
            }
        };
        let Leaves { tensors, values, blobs, left_out, .. } = Leaves::of(&file, name)?;
        self.values.values.extend(values);
        self.values.blobs.extend(blobs);
        self.values.left_out.extend(left_out);
        for (name, view) in tensors {
            self.inner.add(&path, &file, name, view, files.bar)?;
        }
        Ok(())
    }
}

impl Package for Dcp {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn capture<'p>(&'p self, component: &str, capture: &mut Capture<'p>) -> Result<()> {
        let mut part = capture.component(component, OWNER, Durability::Durable)?;
        for Tensor { name, dtype, shape, shards } in &self.tensors {
            for (extent, stored) in shards {
                part.shard_source(name, *dtype, shape, extent.clone(), stored)?;
            }
            if shards.is_empty() {
                part.tensor(name, *dtype, shape, &[][..])?;
            }
        }
        self.inner.capture(&mut part)?;
        capture_values(&self.values, &mut part)
    }

    fn left_out(&self) -> &[String] {
        &self.values.left_out
    }
}

/// The files of the folder.
struct Files<'a> {
    path: &'a Path,
    bar: &'a ProgressBar,
}

impl Files<'_> {
    fn open(&self, item: &Item) -> Result<(Arc<PathBuf>, TorchFile)> {
        let path = Arc::new(self.path.join(&item.file));
        if item.transformed {
            return Err(Error::incompatible("an extension has changed its bytes"));
        }
        let span = Span::open(&path).and_then(|span| span.part(item.offset, item.len));
        let file = span.and_then(|span| TorchFile::open(&span)).map_err(error_of)?;
        Ok((path, file))
    }

    fn chunk(&self, item: &Item) -> Result<Stored> {
        let (path, file) = self.open(item)?;
        let root = file.pickle.root().and_then(|root| view(&file.pickle, root));
        let view = match root {
            Some(view) => view.map_err(error_of)?,
            None => return Err(Error::corrupt("it is no tensor")),
        };
        if view.lazy || file.is_big_endian() {
            return Err(Error::incompatible("its bytes are not its values"));
        }
        let storage = file.storage(&view.storage).map_err(error_of)?;
        Stored::new(&path, &storage, &view, self.bar)
    }
}
