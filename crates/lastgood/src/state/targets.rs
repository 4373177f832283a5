//! What is restored, and where to.

use std::collections::BTreeMap;
use std::fmt;

use lastgood_format::layout::NdBox;
use lastgood_format::{Dtype, Error, Result};
use serde::de::DeserializeOwned;

use super::{Component, Durability, World, check_component, rank_name, show};

/// The memory that a checkpoint is restored into, borrowed until the restore is done.
///
/// Unless it is [`partial`](Targets::partial), everything that the checkpoint holds must have a
/// target, and every target must be in the checkpoint.
pub struct Targets<'a> {
    pub(crate) world: World,
    pub(crate) requests: Vec<Request<'a>>,
    pub(crate) components: BTreeMap<String, Durability>,
    pub(crate) resets: Vec<Box<dyn FnOnce() + 'a>>,
    pub(crate) partial: bool,
}

/// One tensor, part of a tensor, or value that is asked for.
pub(crate) struct Request<'a> {
    pub(crate) component: String,
    pub(crate) name: String,
    pub(crate) want: Want,
    pub(crate) sink: Sink<'a>,
}

/// What must be in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// The part `extent` of a tensor of this dtype and global shape.
    Tensor { dtype: Dtype, shape: Vec<u64>, extent: NdBox },
    /// Opaque bytes, as many as there are.
    Blob,
}

/// Where verified bytes go.
pub(crate) enum Sink<'a> {
    /// Into this memory.
    Slice(&'a mut [u8]),
    /// To this function, once the whole restore is verified.
    Apply(Box<dyn FnOnce(Vec<u8>) -> Result<()> + 'a>),
}

impl fmt::Debug for Targets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Targets")
            .field("world", &self.world)
            .field("components", &self.components)
            .field("requests", &self.requests.len())
            .finish_non_exhaustive()
    }
}

impl<'a> Targets<'a> {
    /// No targets yet, for the rank `world.rank`.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self {
            world,
            requests: Vec::new(),
            components: BTreeMap::new(),
            resets: Vec::new(),
            partial: false,
        }
    }

    /// Restores only what is asked for: what the checkpoint holds beside it is no error.
    pub fn partial(&mut self) {
        self.partial = true;
    }

    /// Declares a component that is restored. One that is not durable gets nothing from the
    /// checkpoint; it can be [`reset`](Slots::reset).
    ///
    /// # Errors
    /// `Invalid` if it is declared already or a name is empty or too long.
    pub fn component(
        &mut self,
        name: &str,
        owner: &str,
        durability: Durability,
    ) -> Result<Slots<'_, 'a>> {
        check_component(name, owner)?;
        if self.components.insert(name.to_owned(), durability).is_some() {
            return Err(Error::invalid(format!("component {name:?} is restored twice")));
        }
        Ok(Slots { targets: self, component: name.to_owned(), durability })
    }

    /// Declares a durable component and lets it name its memory.
    ///
    /// # Errors
    /// As [`Targets::component`] and as the component says.
    pub fn add(&mut self, name: &str, owner: &str, component: &'a mut dyn Component) -> Result<()> {
        let mut slots = self.component(name, owner, Durability::Durable)?;
        component.restore(&mut slots)
    }
}

/// One component of [`Targets`] while it is being filled.
#[derive(Debug)]
pub struct Slots<'t, 'a> {
    targets: &'t mut Targets<'a>,
    component: String,
    durability: Durability,
}

impl<'a> Slots<'_, 'a> {
    /// The rank that is restored.
    #[must_use]
    pub fn world(&self) -> World {
        self.targets.world
    }

    /// A whole tensor, into `target`: row-major little-endian bytes.
    ///
    /// # Errors
    /// `Invalid` if `target` does not fit dtype and shape, or the component is not durable.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        target: &'a mut [u8],
    ) -> Result<()> {
        self.shard(name, dtype, shape, NdBox::whole(shape), target)
    }

    /// The part `extent` of a tensor of global shape `shape`, into `target`. It need not be a part
    /// that was saved as one shard.
    ///
    /// # Errors
    /// As [`Slots::tensor`]; `Invalid` if the part sticks out of the tensor.
    pub fn shard(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        extent: NdBox,
        target: &'a mut [u8],
    ) -> Result<()> {
        let expected = self.check_extent(name, dtype, shape, &extent)?;
        if expected != target.len() as u64 {
            return Err(Error::invalid(format!(
                "{}: {dtype} of {:?} has {expected} bytes, the target {}",
                show(&self.component, name),
                extent.sizes,
                target.len()
            )));
        }
        let want = Want::Tensor { dtype, shape: shape.to_vec(), extent };
        self.push(name.to_owned(), want, Sink::Slice(target))
    }

    /// The part `extent` of a tensor, given to `apply` once the whole restore is verified.
    ///
    /// # Errors
    /// As [`Slots::shard`].
    pub fn apply(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        extent: NdBox,
        apply: impl FnOnce(Vec<u8>) -> Result<()> + 'a,
    ) -> Result<()> {
        self.check_extent(name, dtype, shape, &extent)?;
        let want = Want::Tensor { dtype, shape: shape.to_vec(), extent };
        self.push(name.to_owned(), want, Sink::Apply(Box::new(apply)))
    }

    /// A plain value that was saved with [`Part::value`](super::Part::value).
    ///
    /// # Errors
    /// `Invalid` if the component is not durable.
    pub fn value<T: DeserializeOwned>(&mut self, name: &str, target: &'a mut T) -> Result<()> {
        self.push_value(name.to_owned(), target)
    }

    /// A plain value that this rank saved with [`Part::rank_value`](super::Part::rank_value).
    ///
    /// # Errors
    /// As [`Slots::value`].
    pub fn rank_value<T: DeserializeOwned>(&mut self, name: &str, target: &'a mut T) -> Result<()> {
        self.push_value(rank_name(name, self.targets.world.rank), target)
    }

    /// Opaque bytes, given to `apply` once the whole restore is verified.
    ///
    /// # Errors
    /// `Invalid` if the component is not durable.
    pub fn blob(
        &mut self,
        name: &str,
        apply: impl FnOnce(Vec<u8>) -> Result<()> + 'a,
    ) -> Result<()> {
        self.push(name.to_owned(), Want::Blob, Sink::Apply(Box::new(apply)))
    }

    /// What to do with state that is not durable once a checkpoint is restored.
    pub fn reset(&mut self, reset: impl FnOnce() + 'a) {
        self.targets.resets.push(Box::new(reset));
    }

    fn push_value<T: DeserializeOwned>(&mut self, name: String, target: &'a mut T) -> Result<()> {
        let here = show(&self.component, &name);
        let apply = move |json: Vec<u8>| {
            *target = serde_json::from_slice(&json).map_err(|e| {
                Error::incompatible(format!("value {here} is not of the type asked for: {e}"))
            })?;
            Ok(())
        };
        self.push(name, Want::Blob, Sink::Apply(Box::new(apply)))
    }

    fn check_extent(&self, name: &str, dtype: Dtype, shape: &[u64], extent: &NdBox) -> Result<u64> {
        let bytes = extent.elements().and_then(|elements| dtype.bytes_of(elements));
        match bytes {
            Some(bytes) if extent.is_inside(shape) => Ok(bytes),
            _ => Err(Error::invalid(format!(
                "{}: the part at {:?} of size {:?} is no part of shape {shape:?}",
                show(&self.component, name),
                extent.offsets,
                extent.sizes
            ))),
        }
    }

    fn push(&mut self, name: String, want: Want, sink: Sink<'a>) -> Result<()> {
        if self.durability != Durability::Durable {
            return Err(Error::invalid(format!(
                "{} belongs to a component that is not durable",
                show(&self.component, &name)
            )));
        }
        let component = self.component.clone();
        self.targets.requests.push(Request { component, name, want, sink });
        Ok(())
    }
}
