//! Arithmetic on n-dimensional boxes.

use std::fmt;

use crate::{Dtype, Error, Result};

/// A box in the index space of a tensor: `offsets[d] .. offsets[d] + sizes[d]` in each dimension.
///
/// A zero-dimensional box has one element; a box with a size of 0 has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NdBox {
    /// Where it begins, in elements.
    pub offsets: Vec<u64>,
    /// How far it reaches, in elements.
    pub sizes: Vec<u64>,
}

/// One contiguous run of bytes that two boxes share, as offsets into each one's row-major bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// From the start of the source box's bytes.
    pub source: u64,
    /// From the start of the target box's bytes.
    pub target: u64,
    /// The length in bytes.
    pub bytes: u64,
}

impl NdBox {
    /// The whole of a tensor of `shape`.
    #[must_use]
    pub fn whole(shape: &[u64]) -> Self {
        Self { offsets: vec![0; shape.len()], sizes: shape.to_vec() }
    }

    /// The number of elements, or `None` if it overflows.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        if self.sizes.contains(&0) {
            return Some(0);
        }
        self.sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size))
    }

    /// True if it lies inside a tensor of `shape` (same number of dimensions, nothing sticks out,
    /// no overflow).
    #[must_use]
    pub fn is_inside(&self, shape: &[u64]) -> bool {
        self.offsets.len() == shape.len()
            && self.sizes.len() == shape.len()
            && self.offsets.iter().zip(&self.sizes).zip(shape).all(|((offset, size), dim)| {
                offset.checked_add(*size).is_some_and(|end| end <= *dim)
            })
    }

    /// The box that both cover, or `None` if they share no element or differ in dimensions.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        if self.offsets.len() != other.offsets.len() {
            return None;
        }
        let mut shared = Self { offsets: Vec::new(), sizes: Vec::new() };
        for d in 0..self.offsets.len() {
            let begin = self.offsets[d].max(other.offsets[d]);
            let end = self.end(d).min(other.end(d));
            if begin >= end {
                return None;
            }
            shared.offsets.push(begin);
            shared.sizes.push(end - begin);
        }
        Some(shared)
    }

    fn end(&self, d: usize) -> u64 {
        self.offsets[d].saturating_add(self.sizes[d])
    }

    /// The contiguous runs that `self` (the source) and `target` share, coalesced as far as they
    /// are contiguous in both, in rising target order.
    ///
    /// # Errors
    /// `Incompatible` if a run of a sub-byte dtype does not begin and end on a whole byte; `Corrupt`
    /// if a size overflows.
    pub fn runs_into(&self, target: &Self, dtype: Dtype) -> Result<Vec<Run>> {
        let Some(shared) = self.intersection(target) else { return Ok(Vec::new()) };
        // The dimensions from `inner` on are whole in both boxes, so that one run spans them.
        let whole =
            |d: &usize| shared.sizes[*d] == self.sizes[*d] && shared.sizes[*d] == target.sizes[*d];
        let dims = shared.sizes.len();
        let full = (0..dims).rev().take_while(whole).count();
        let inner = dims.saturating_sub(full + 1);
        let elements = shared.sizes[inner.min(dims)..]
            .iter()
            .try_fold(1u64, |product, size| product.checked_mul(*size))
            .filter(|elements| elements.checked_mul(dtype.bits()).is_some())
            .ok_or_else(|| Error::corrupt("the size of a tensor overflows"))?;
        let mut outer = vec![0; inner];
        let mut runs: Vec<Run> = Vec::new();
        loop {
            let run = Run {
                source: byte_offset(self, &shared, &outer, dtype)?,
                target: byte_offset(target, &shared, &outer, dtype)?,
                bytes: dtype.bytes_of(elements).ok_or_else(|| unaligned(dtype))?,
            };
            match runs.last_mut() {
                Some(last) if last.follows(&run) => last.bytes += run.bytes,
                _ => runs.push(run),
            }
            if !advance(&mut outer, &shared.sizes) {
                return Ok(runs);
            }
        }
    }
}

impl Run {
    fn follows(&self, next: &Self) -> bool {
        self.source + self.bytes == next.source && self.target + self.bytes == next.target
    }
}

/// Counts `index` up in row-major order; false at the end.
fn advance(index: &mut [u64], sizes: &[u64]) -> bool {
    for d in (0..index.len()).rev() {
        index[d] += 1;
        if index[d] < sizes[d] {
            return true;
        }
        index[d] = 0;
    }
    false
}

/// Where the element `outer` of `shared` (0 in the dimensions that `outer` lacks) lies in `container`.
fn byte_offset(container: &NdBox, shared: &NdBox, outer: &[u64], dtype: Dtype) -> Result<u64> {
    let overflow = || Error::corrupt("the size of a tensor overflows");
    let mut element = 0u64;
    for d in 0..container.sizes.len() {
        let index = shared.offsets[d] - container.offsets[d] + outer.get(d).unwrap_or(&0);
        element = element
            .checked_mul(container.sizes[d])
            .and_then(|element| element.checked_add(index))
            .ok_or_else(overflow)?;
    }
    let bits = element.checked_mul(dtype.bits()).ok_or_else(overflow)?;
    if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err(unaligned(dtype)) }
}

pub(crate) fn unaligned(dtype: Dtype) -> Error {
    Error::incompatible(format!("a part of a {dtype} tensor does not begin on a whole byte"))
        .with_remedy("cut packed tensors only where whole bytes meet")
}

/// Proves that `boxes` cover `target` exactly: every element once.
///
/// # Errors
/// `Corrupt` naming the first gap or overlap.
pub fn check_cover(target: &NdBox, boxes: &[NdBox]) -> Result<()> {
    let overflow = || Error::corrupt("the size of a tensor overflows");
    let expected = u128::from(target.elements().ok_or_else(overflow)?);
    let mut found = 0u128;
    for part in boxes {
        let inside = part.intersection(target).is_some_and(|shared| shared == *part);
        if !inside && part.elements() != Some(0) {
            return Err(Error::corrupt(format!("{part} sticks out of {target}")));
        }
        found += u128::from(part.elements().ok_or_else(overflow)?);
    }
    check_disjoint(boxes)?;
    if found != expected {
        return Err(Error::corrupt(format!(
            "{target} has {expected} elements, its parts have {found}: some are missing"
        )));
    }
    Ok(())
}

/// Checks that no two boxes share an element. Boxes of different dimensions share none.
///
/// # Errors
/// `Corrupt` naming the first two that do.
pub fn check_disjoint(boxes: &[NdBox]) -> Result<()> {
    let mut order: Vec<&NdBox> = boxes.iter().filter(|b| b.elements() != Some(0)).collect();
    let dims = order.iter().map(|b| b.sizes.len()).min().unwrap_or(0);
    // Sweep along the dimension in which the boxes begin at the most places.
    let starts = |d: usize| {
        let mut starts: Vec<u64> = order.iter().map(|b| b.offsets[d]).collect();
        starts.sort_unstable();
        starts.dedup();
        starts.len()
    };
    let axis = (0..dims).max_by_key(|d| starts(*d)).unwrap_or(0);
    order.sort_by_key(|b| b.offsets.get(axis).copied());
    let mut open: Vec<&NdBox> = Vec::new();
    for part in order {
        let begin = part.offsets.get(axis).copied().unwrap_or(0);
        open.retain(|earlier| dims == 0 || earlier.end(axis) > begin);
        if let Some(other) = open.iter().find(|other| other.intersection(part).is_some()) {
            return Err(Error::corrupt(format!("{other} and {part} overlap")));
        }
        open.push(part);
    }
    Ok(())
}

impl fmt::Display for NdBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the box at {:?} of size {:?}", self.offsets, self.sizes)
    }
}
