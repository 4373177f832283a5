//! Whether two checkpoints hold the same bytes.

use std::collections::BTreeMap;

use lastgood::restore::{Contents, Selector, resolve};
use lastgood::state::{Durability, Targets, World};
use lastgood::{Dtype, Repository, Result, RunName};
use lastgood_format::layout::NdBox;

/// Every tensor and value of a checkpoint, by component and name.
pub(crate) type Whole = BTreeMap<(String, String), Tensor>;

/// One tensor or value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// The first place where two checkpoints differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// `component/name`.
    pub(crate) tensor: String,
    /// What differs there, for a person.
    pub(crate) what: String,
}

/// Reads the checkpoint of `step`, verified.
pub(crate) fn read(repository: &Repository, run: &RunName, step: u64) -> Result<Whole> {
    let ledger = repository.existing(run)?;
    let id = resolve(ledger.history(), &Selector::Step(step))?.id;
    let contents = repository.contents(&ledger, &id)?;
    let mut whole = blank(&contents);
    let mut targets = Targets::new(World::ALONE);
    targets.partial();
    let mut by_component: BTreeMap<&str, Vec<(&str, &mut Tensor)>> = BTreeMap::new();
    for ((component, name), tensor) in &mut whole {
        by_component.entry(component).or_default().push((name, tensor));
    }
    for (component, tensors) in by_component {
        let mut slots = targets.component(component, "compare", Durability::Durable)?;
        for (name, tensor) in tensors {
            let Tensor { dtype, shape, bytes } = tensor;
            let place = move |read| {
                *bytes = read;
                Ok(())
            };
            if *dtype == Dtype::Blob {
                slots.blob(name, place)?;
            } else {
                slots.apply(name, *dtype, shape, NdBox::whole(shape), place)?;
            }
        }
    }
    repository.restore(&contents, targets)?;
    Ok(whole)
}

fn blank(contents: &Contents) -> Whole {
    let tensors = contents.tensors().iter();
    tensors
        .map(|(name, info)| {
            let bytes = Vec::new();
            (name.clone(), Tensor { dtype: info.dtype, shape: info.shape.clone(), bytes })
        })
        .collect()
}

/// The first difference in the order of names, or `None` if the two hold the same bytes.
pub(crate) fn first_difference(one: &Whole, other: &Whole) -> Option<Difference> {
    let names: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
    names.into_iter().find_map(|name| {
        let what = match (one.get(name), other.get(name)) {
            (Some(one), Some(other)) => differ(one, other)?,
            (Some(_), None) => "only the first has it".into(),
            _ => "only the second has it".into(),
        };
        Some(Difference { tensor: format!("{}/{}", name.0, name.1), what })
    })
}

fn differ(one: &Tensor, other: &Tensor) -> Option<String> {
    if (one.dtype, &one.shape) != (other.dtype, &other.shape) {
        let describe = |tensor: &Tensor| format!("{} {:?}", tensor.dtype, tensor.shape);
        return Some(format!("{} and {}", describe(one), describe(other)));
    }
    let (a, b) = (&one.bytes, &other.bytes);
    let at = a.iter().zip(b).position(|(a, b)| a != b);
    let at = at.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))?;
    let size = one.dtype.bytes_of(1).map_or(1, |size| size.max(1) as usize);
    let element = at / size;
    let value = |bytes: &[u8]| match bytes.get(element * size..(element + 1) * size) {
        Some(bytes) => match (one.dtype, <[u8; 4]>::try_from(bytes)) {
            (Dtype::F32, Ok(bytes)) => f32::from_le_bytes(bytes).to_string(),
            _ => format!("bytes {bytes:02x?}"),
        },
        None => "nothing".into(),
    };
    Some(format!("element {element} is {} and {}", value(a), value(b)))
}

#[cfg(test)]
mod tests;
