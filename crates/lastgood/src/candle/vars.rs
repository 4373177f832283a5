//! Variables and tensors of candle as components.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use candle_core::{Tensor, Var};
use candle_nn::VarMap;
use lastgood_format::layout::NdBox;
use lastgood_format::{Error, Result};

use super::bytes::{self, Bytes};
use crate::state::{Component, Part, Slots, Source};

/// The variables of a map by name.
pub(super) fn named(map: &VarMap) -> BTreeMap<String, Var> {
    let map = map.data().lock().unwrap_or_else(PoisonError::into_inner);
    map.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
}

impl Component for VarMap {
    fn capture<'a>(&'a self, part: &mut Part<'_, 'a>) -> Result<()> {
        capture_vars(&named(self), part)
    }

    fn restore<'a>(&'a mut self, slots: &mut Slots<'_, 'a>) -> Result<()> {
        restore_vars(&named(self), slots)
    }
}

impl Component for BTreeMap<String, Var> {
    fn capture<'a>(&'a self, part: &mut Part<'_, 'a>) -> Result<()> {
        capture_vars(self, part)
    }

    fn restore<'a>(&'a mut self, slots: &mut Slots<'_, 'a>) -> Result<()> {
        restore_vars(self, slots)
    }
}

impl Component for BTreeMap<String, Tensor> {
    fn capture<'a>(&'a self, part: &mut Part<'_, 'a>) -> Result<()> {
        self.iter().try_for_each(|(name, tensor)| capture_tensor(name, tensor, part))
    }

    fn restore<'a>(&'a mut self, slots: &mut Slots<'_, 'a>) -> Result<()> {
        for (name, tensor) in self {
            let shape = bytes::shape(tensor);
            let dtype = bytes::dtype(tensor.dtype())?;
            slots.apply(name, dtype, &shape, NdBox::whole(&shape), move |data| {
                let (dtype, device) = (tensor.dtype(), tensor.device());
                let made = Tensor::from_raw_buffer(&data, dtype, tensor.dims(), device);
                *tensor = made.map_err(|e| bytes::failed(name, &e))?;
                Ok(())
            })?;
        }
        Ok(())
    }
}

pub(super) fn capture_tensor<'a>(
    name: &str,
    tensor: &Tensor,
    part: &mut Part<'_, 'a>,
) -> Result<()> {
    let dtype = bytes::dtype(tensor.dtype())?;
    part.source(name, dtype, &bytes::shape(tensor), Bytes::of(name, tensor)?)
}

fn capture_vars<'a>(vars: &BTreeMap<String, Var>, part: &mut Part<'_, 'a>) -> Result<()> {
    for (name, var, first) in with_ties(vars) {
        match first {
            None => capture_tensor(name, var, part)?,
            Some(first) => part.tied(name, first)?,
        }
    }
    Ok(())
}

fn restore_vars(vars: &BTreeMap<String, Var>, slots: &mut Slots<'_, '_>) -> Result<()> {
    for (name, var, first) in with_ties(vars) {
        match first {
            None => restore_var(name, var, slots)?,
            Some(first) => restore_tied(name, first, var, slots)?,
        }
    }
    Ok(())
}

/// The variables by name; for one that an earlier name has already, that name.
fn with_ties(vars: &BTreeMap<String, Var>) -> impl Iterator<Item = (&str, &Var, Option<&str>)> {
    let mut first_names: BTreeMap<usize, &str> = BTreeMap::new();
    vars.iter().map(move |(name, var)| {
        let first = *first_names.entry(identity(var)).or_insert(name);
        (name.as_str(), var, (first != name.as_str()).then_some(first))
    })
}

/// The same number for the clones of one variable, and for nothing else while they live.
pub(super) fn identity(var: &Var) -> usize {
    // Clones share what the layout is part of.
    std::ptr::from_ref(var.layout()).addr()
}

pub(super) fn restore_var(name: &str, var: &Var, slots: &mut Slots<'_, '_>) -> Result<()> {
    let shape = bytes::shape(var);
    let (var, owned) = (var.clone(), name.to_owned());
    slots.apply(name, bytes::dtype(var.dtype())?, &shape, NdBox::whole(&shape), move |data| {
        bytes::fill(&owned, &var, &data)
    })
}

/// A variable that `first` has filled by now. A checkpoint of a model in which they were two variables
/// does not fit.
fn restore_tied(name: &str, first: &str, var: &Var, slots: &mut Slots<'_, '_>) -> Result<()> {
    let shape = bytes::shape(var);
    let (var, owned, first) = (var.clone(), name.to_owned(), first.to_owned());
    slots.apply(name, bytes::dtype(var.dtype())?, &shape, NdBox::whole(&shape), move |data| {
        let mut there = vec![0; data.len()];
        Bytes::of(&owned, &var)?.read(0, &mut there)?;
        if there == data {
            return Ok(());
        }
        Err(Error::incompatible(format!(
            "{owned} is the same variable as {first}, in the checkpoint they differ"
        )))
    })
}
