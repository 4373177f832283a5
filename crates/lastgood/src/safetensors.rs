//! Safetensors in and out.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lastgood_format::layout::NdBox;
use lastgood_format::{Dtype, Error, Result};
use safetensors::tensor::{SafeTensors, TensorView, View};

use crate::repository::Repository;
use crate::restore::Contents;
use crate::state::{Capture, Durability, Targets, World};

/// Captures every tensor of the safetensors file `file` as component `component`, and its metadata
/// as the checkpoint's.
///
/// # Errors
/// `Corrupt` if the file is no whole safetensors file; `Incompatible` if it has a dtype that lastgood
/// does not know; `Invalid` if the component is declared already.
pub fn capture<'a>(
    file: &'a [u8],
    component: &str,
    owner: &str,
    capture: &mut Capture<'a>,
) -> Result<()> {
    let unreadable = |e| Error::corrupt(format!("the file is no whole safetensors file: {e}"));
    let (_, header) = SafeTensors::read_metadata(file).map_err(unreadable)?;
    for (key, value) in header.metadata().iter().flatten() {
        capture.metadata(key.clone(), value.clone());
    }
    let tensors = SafeTensors::deserialize(file).map_err(unreadable)?;
    let mut part = capture.component(component, owner, Durability::Durable)?;
    for (name, view) in tensors.iter() {
        let dtype: Dtype = view.dtype().to_string().parse()?;
        let shape: Vec<u64> = view.shape().iter().map(|size| *size as u64).collect();
        part.tensor(name, dtype, &shape, view.data())?;
    }
    Ok(())
}

/// One component of a checkpoint as the bytes of safetensors files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The tensors, with the checkpoint's metadata; `None` if there are none.
    pub tensors: Option<Vec<u8>>,
    /// Values and blobs, which safetensors has no dtype for, as tensors of `U8`; `None` if there are
    /// none.
    pub blobs: Option<Vec<u8>>,
}

/// Reads component `component` of a checkpoint, verified, as safetensors files.
///
/// # Errors
/// `NotFound` if there is no such component; `Corrupt`, `Unavailable`, `Denied` from reading.
pub fn export(repository: &Repository, contents: &Contents, component: &str) -> Result<Exported> {
    if !contents.components().contains_key(component) {
        return Err(Error::not_found(format!("the checkpoint has no component {component:?}")));
    }
    let mut owned: Vec<Owned> = Vec::new();
    for ((of, name), info) in contents.tensors() {
        if of == component {
            let bytes = info
                .shape
                .iter()
                .try_fold(1u64, |product, size| product.checked_mul(*size))
                .and_then(|elements| info.dtype.bytes_of(elements))
                .ok_or_else(|| Error::corrupt(format!("{of}/{name} is larger than memory")))?;
            owned.push(Owned {
                name: name.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: vec![0; bytes as usize],
            });
        }
    }
    let mut targets = Targets::new(World::ALONE);
    targets.partial();
    let mut slots = targets.component(component, "export", Durability::Durable)?;
    for tensor in &mut owned {
        let whole = NdBox::whole(&tensor.shape);
        slots.shard(&tensor.name, tensor.dtype, &tensor.shape, whole, &mut tensor.bytes)?;
    }
    repository.restore(contents, targets)?;
    let metadata: BTreeMap<String, String> =
        contents.metadata().into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let (blobs, tensors): (Vec<&Owned>, Vec<&Owned>) =
        owned.iter().partition(|tensor| tensor.dtype == Dtype::Blob);
    Ok(Exported { tensors: write(&tensors, &metadata)?, blobs: write(&blobs, &BTreeMap::new())? })
}

struct Owned {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

fn write(tensors: &[&Owned], metadata: &BTreeMap<String, String>) -> Result<Option<Vec<u8>>> {
    if tensors.is_empty() {
        return Ok(None);
    }
    let mut views = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let shape = tensor.shape.iter().map(|size| *size as usize).collect();
        let view = TensorView::new(dtype(tensor.dtype)?, shape, &tensor.bytes)
            .map_err(|e| Error::internal(format!("{}: {e}", tensor.name)))?;
        views.push((tensor.name.as_str(), Shared(view)));
    }
    let metadata = (!metadata.is_empty())
        .then(|| metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect());
    safetensors::serialize(views, metadata)
        .map(Some)
        .map_err(|e| Error::internal(format!("cannot write safetensors: {e}")))
}

/// A view that the serializer may keep.
struct Shared<'v>(TensorView<'v>);

impl View for Shared<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        self.0.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0.data())
    }

    fn data_len(&self) -> usize {
        self.0.data().len()
    }
}

fn dtype(dtype: Dtype) -> Result<safetensors::Dtype> {
    let name = match dtype {
        Dtype::Blob => "U8",
        other => other.name(),
    };
    serde_json::from_value(serde_json::Value::String(name.to_owned()))
        .map_err(|_| Error::incompatible(format!("safetensors has no dtype {dtype}")))
}
