//! What is saved.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lastgood_format::index::{DIMS_MAX, TENSOR_NAME_BYTES_MAX};
use lastgood_format::layout::NdBox;
use lastgood_format::{Dtype, Error, Result};
use serde::Serialize;

use super::source::Data;
use super::{
    Component, Durability, Source, Update, World, check_component, finite, rank_name, show,
};

/// The state of one rank at one step, borrowed until the save has captured it.
#[derive(Debug)]
pub struct Capture<'a> {
    world: World,
    pub(crate) components: Vec<Declared>,
    pub(crate) pieces: Vec<Piece<'a>>,
    pub(crate) ties: Vec<Tie>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Parts that this rank holds and another one stores.
    pub(crate) witnessed: Vec<Piece<'a>>,
    pub(crate) checks: Vec<Check<'a>>,
    pub(crate) updates: Vec<Update>,
    names: BTreeSet<String>,
}

/// Says, once everything is copied, whether the copy can be trusted.
pub(crate) struct Check<'a>(pub(crate) Box<dyn Fn() -> Result<()> + Send + Sync + 'a>);

impl fmt::Debug for Check<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

/// A tensor that is the same memory as another one of its component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tie {
    pub(crate) component: usize,
    pub(crate) name: String,
    pub(crate) of: String,
}

/// A declared component.
#[derive(Clone, Debug)]
pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) owner: String,
    pub(crate) durability: Durability,
}

/// One shard of one tensor, or a tensor of which this rank stores nothing.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) component: usize,
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    pub(crate) extent: NdBox,
    pub(crate) data: Data<'a>,
    /// Every rank holds the same bytes, so that one of them is enough.
    pub(crate) replicated: bool,
    /// Other ranks hold the same part, replicated or not: all of them must hold the same bytes.
    pub(crate) shared: bool,
}

impl<'a> Capture<'a> {
    /// An empty capture of the rank `world.rank`.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self {
            world,
            components: Vec::new(),
            pieces: Vec::new(),
            ties: Vec::new(),
            metadata: BTreeMap::new(),
            witnessed: Vec::new(),
            checks: Vec::new(),
            updates: Vec::new(),
            names: BTreeSet::new(),
        }
    }

    /// The rank that this is the state of.
    #[must_use]
    pub fn world(&self) -> World {
        self.world
    }

    /// Declares a component; only durable ones take tensors and values.
    ///
    /// # Errors
    /// `Invalid` if it is declared already or a name is empty or too long.
    pub fn component(
        &mut self,
        name: &str,
        owner: &str,
        durability: Durability,
    ) -> Result<Part<'_, 'a>> {
        check_component(name, owner)?;
        if !self.names.insert(name.to_owned()) {
            return Err(Error::invalid(format!("component {name:?} is declared twice"))
                .with_remedy("give each component one owner"));
        }
        self.components.push(Declared { name: name.into(), owner: owner.into(), durability });
        let component = self.components.len() - 1;
        Ok(Part { capture: self, component, durability })
    }

    /// Declares a durable component and lets it name its state.
    ///
    /// # Errors
    /// As [`Capture::component`] and as the component says.
    pub fn add(&mut self, name: &str, owner: &str, component: &'a dyn Component) -> Result<()> {
        let mut part = self.component(name, owner, Durability::Durable)?;
        component.capture(&mut part)
    }

    /// Text that travels with the checkpoint.
    pub fn metadata(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.metadata.insert(key.into(), value.into());
    }

    /// Tells what an optimizer has changed: what it says of tensors that are not named is left out.
    pub fn update(&mut self, update: Update) {
        self.updates.push(update);
    }

    /// Asks `check` once everything is copied, before the state may be changed again; its error fails the save.
    pub fn check(&mut self, check: impl Fn() -> Result<()> + Send + Sync + 'a) {
        self.checks.push(Check(Box::new(check)));
    }

    /// The bytes that the shards and values of this rank hold.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.data.len() as u64).sum()
    }
}

/// One component of a [`Capture`] while it is being filled.
#[derive(Debug)]
pub struct Part<'c, 'a> {
    capture: &'c mut Capture<'a>,
    component: usize,
    durability: Durability,
}

impl<'a> Part<'_, 'a> {
    /// The rank that this is the state of.
    #[must_use]
    pub fn world(&self) -> World {
        self.capture.world
    }

    /// A whole tensor that only this rank holds: `data` is its row-major little-endian bytes.
    ///
    /// # Errors
    /// `Invalid` if the bytes do not fit dtype and shape, or the component is not durable.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<()> {
        self.push_bytes(name, dtype, shape, NdBox::whole(shape), data.into(), false)
    }

    /// A whole tensor of which every rank holds the same bytes, read from `source` while it is captured.
    ///
    /// # Errors
    /// As [`Part::tensor`]; `Invalid` if dtype and shape have no number of bytes that fits memory.
    pub fn source(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        source: impl Source + 'a,
    ) -> Result<()> {
        self.push_source(name, dtype, shape, NdBox::whole(shape), Box::new(source), true)
    }

    /// As [`Part::shard`], read from `source` while it is captured.
    ///
    /// # Errors
    /// As [`Part::shard`]; `Invalid` if dtype and extent have no number of bytes that fits memory.
    pub fn shard_source(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        extent: NdBox,
        source: impl Source + 'a,
    ) -> Result<()> {
        self.push_source(name, dtype, shape, extent, Box::new(source), false)
    }

    /// As [`Part::shard_source`], of a part that other ranks hold as well, one of which `stores` it. A save of which
    /// they hold different bytes is refused.
    ///
    /// # Errors
    /// As [`Part::shard_source`].
    pub fn copy_source(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        extent: NdBox,
        source: impl Source + 'a,
        stores: bool,
    ) -> Result<()> {
        self.push_source(name, dtype, shape, extent, Box::new(source), false)?;
        let Some(mut piece) = self.capture.pieces.pop() else { return Ok(()) };
        piece.shared = true;
        match stores {
            true => self.capture.pieces.push(piece),
            false => self.capture.witnessed.push(piece),
        }
        Ok(())
    }

    fn push_source(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        extent: NdBox,
        source: Box<dyn Source + 'a>,
        replicated: bool,
    ) -> Result<()> {
        let bytes = extent.elements().and_then(|elements| dtype.bytes_of(elements));
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| {
            let name = show(&self.capture.components[self.component].name, name);
            Error::invalid(format!(
                "{name}: {dtype} of {:?} is no whole number of bytes",
                extent.sizes
            ))
        })?;
        self.push(name, dtype, shape, extent, Data::Source(source, bytes), replicated)
    }

    /// A whole tensor of which every rank holds the same bytes; one rank stores it.
    ///
    /// # Errors
    /// As [`Part::tensor`].
    pub fn replicated(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<()> {
        self.push_bytes(name, dtype, shape, NdBox::whole(shape), data.into(), true)
    }

    /// The part `extent` of a tensor of global shape `shape`: `data` is the row-major little-endian
    /// bytes of the part alone. Shards of one tensor must not overlap, on one rank or between ranks.
    ///
    /// # Errors
    /// As [`Part::tensor`]; `Invalid` if the part sticks out of the tensor.
    pub fn shard(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        extent: NdBox,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<()> {
        self.push_bytes(name, dtype, shape, extent, data.into(), false)
    }

    /// Opaque bytes of this rank alone.
    ///
    /// # Errors
    /// As [`Part::tensor`].
    pub fn rank_blob(&mut self, name: &str, data: impl Into<Cow<'a, [u8]>>) -> Result<()> {
        self.push_blob(rank_name(name, self.capture.world.rank), data.into(), false)
    }

    /// A plain value that is the same on every rank, stored as JSON.
    ///
    /// # Errors
    /// `Invalid` if it cannot be written as JSON, which has no infinite numbers and no NaN, or the component
    /// is not durable.
    pub fn value<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<()> {
        let json = json(name, value)?;
        self.push_blob(name.to_owned(), json.into(), true)
    }

    /// A plain value of this rank alone, stored as JSON.
    ///
    /// # Errors
    /// As [`Part::value`].
    pub fn rank_value<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<()> {
        let json = json(name, value)?;
        self.push_blob(rank_name(name, self.capture.world.rank), json.into(), false)
    }

    /// Opaque bytes that are the same on every rank.
    ///
    /// # Errors
    /// As [`Part::tensor`].
    pub fn blob(&mut self, name: &str, data: impl Into<Cow<'a, [u8]>>) -> Result<()> {
        self.push_blob(name.to_owned(), data.into(), true)
    }

    /// Says that tensor `name` is the same memory as `of`, which this component names already, as a
    /// tensor or as a tie; its bytes are stored once.
    ///
    /// # Errors
    /// `Invalid` if the name is too long. The save is `Invalid` if `of` is not named before, or `name`
    /// is.
    pub fn tied(&mut self, name: &str, of: &str) -> Result<()> {
        self.check_name(name)?;
        let tie = Tie { component: self.component, name: name.to_owned(), of: of.to_owned() };
        self.capture.ties.push(tie);
        Ok(())
    }

    fn check_name(&self, name: &str) -> Result<()> {
        if name.len() <= TENSOR_NAME_BYTES_MAX {
            return Ok(());
        }
        let component = &self.capture.components[self.component].name;
        Err(Error::invalid(format!(
            "{}: a tensor's name has at most {TENSOR_NAME_BYTES_MAX} bytes, this one {}",
            show(component, name),
            name.len()
        )))
    }

    fn push_blob(&mut self, name: String, data: Cow<'a, [u8]>, replicated: bool) -> Result<()> {
        let shape = [data.len() as u64];
        self.push_bytes(&name, Dtype::Blob, &shape, NdBox::whole(&shape), data, replicated)
    }

    fn push_bytes(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        extent: NdBox,
        data: Cow<'a, [u8]>,
        replicated: bool,
    ) -> Result<()> {
        self.push(name, dtype, shape, extent, Data::Bytes(data), replicated)
    }

    fn push(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        extent: NdBox,
        data: Data<'a>,
        replicated: bool,
    ) -> Result<()> {
        self.check_name(name)?;
        let declared = &self.capture.components[self.component];
        let here = || show(&declared.name, name);
        if self.durability != Durability::Durable {
            return Err(Error::invalid(format!(
                "{} belongs to a component that is not durable",
                here()
            ))
            .with_remedy("declare the component durable, or do not capture it"));
        }
        if shape.len() > DIMS_MAX {
            return Err(Error::invalid(format!(
                "{}: a tensor has at most {DIMS_MAX} dimensions, this one has {} dimensions",
                here(),
                shape.len()
            )));
        }
        if dtype == Dtype::Blob && shape.len() != 1 {
            return Err(Error::invalid(format!("{}: a BLOB has one dimension", here())));
        }
        if !extent.is_inside(shape) {
            return Err(Error::invalid(format!(
                "{}: the shard at {:?} of size {:?} sticks out of shape {shape:?}",
                here(),
                extent.offsets,
                extent.sizes
            )));
        }
        let expected = extent.elements().and_then(|elements| dtype.bytes_of(elements));
        if expected != Some(data.len() as u64) {
            return Err(Error::invalid(format!(
                "{}: {dtype} of {:?} has {} bytes, given {}",
                here(),
                extent.sizes,
                expected.map_or_else(|| "no whole number of".into(), |bytes| bytes.to_string()),
                data.len()
            )));
        }
        self.capture.pieces.push(Piece {
            component: self.component,
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            extent,
            data,
            replicated,
            shared: replicated,
        });
        Ok(())
    }
}

fn json<T: Serialize + ?Sized>(name: &str, value: &T) -> Result<Vec<u8>> {
    let refused = |e: &dyn fmt::Display| {
        Error::invalid(format!("value {name:?} cannot be written as JSON: {e}"))
    };
    finite::check(value).map_err(|e| refused(&e))?;
    serde_json::to_vec(value).map_err(|e| refused(&e))
}
