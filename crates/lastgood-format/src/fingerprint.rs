//! Fingerprints of tensors that do not depend on how a tensor is cut into shards.
//!
//! The fingerprints of disjoint parts add up to that of the whole (`FORMAT.md`, "Fingerprints"), so
//! the states of runs with different numbers of ranks can be compared without their bytes. A
//! fingerprint finds faults; it does not stop an adversary, and [`Hash`](crate::Hash) does.

mod field;
mod runs;

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::layout::NdBox;
use crate::{Dtype, Error, Result};

/// A number below 2^107 - 1 that a tensor, or a part of one, has; shown as 32 lower-case
/// hexadecimal digits, the most significant first.
///
/// Zeros have the fingerprint 0, however many there are: two fingerprints say nothing unless dtype
/// and shape are equal too.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// The number of bytes in a fingerprint.
    pub const BYTES: usize = 16;

    /// That of no bytes, and of zeros.
    pub const ZERO: Self = Self(0);

    /// The fingerprint of a whole tensor with these row-major little-endian bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(field::weigh(1, 0, bytes))
    }

    /// What the shard `extent` of a tensor of `shape` counts, with the shard's row-major bytes.
    ///
    /// # Errors
    /// `Invalid` if `extent` sticks out of `shape` or does not have as many bytes; `Incompatible`
    /// if a run of a sub-byte dtype does not begin and end on a whole byte; `Corrupt` if a size
    /// overflows.
    pub fn of_part(dtype: Dtype, shape: &[u64], extent: &NdBox, bytes: &[u8]) -> Result<Self> {
        let expected = part_bytes(dtype, shape, extent)?;
        if bytes.len() as u64 != expected {
            return Err(Error::invalid(format!(
                "{extent} of a {dtype} tensor has {expected} bytes, found {}",
                bytes.len()
            )));
        }
        Self::of_piece(dtype, shape, extent, 0, bytes)
    }

    /// What a piece of a shard counts: `bytes` are the shard's from its byte `offset` on. The
    /// pieces of a shard add up to it, wherever it is cut, inside of elements too.
    ///
    /// # Errors
    /// As [`Self::of_part`]; `Invalid` if the piece reaches beyond the shard.
    pub fn of_piece(
        dtype: Dtype,
        shape: &[u64],
        extent: &NdBox,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Self> {
        let all = part_bytes(dtype, shape, extent)?;
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > all) {
            return Err(Error::invalid(format!(
                "{extent} of a {dtype} tensor has {all} bytes, not {} from {offset} on",
                bytes.len()
            )));
        }
        if all == 0 {
            return Ok(Self::ZERO);
        }
        Ok(Self(runs::Runs::new(dtype, shape, extent)?.weigh(offset, bytes)))
    }

    /// A fingerprint from its 16 bytes, the most significant first; `None` if they are none.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Option<Self> {
        Some(Self(u128::from_be_bytes(bytes))).filter(|found| found.0 < field::P)
    }

    /// The 16 bytes, the most significant first: they sort as the numbers do.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0.to_be_bytes()
    }
}

/// The bytes of a part.
fn part_bytes(dtype: Dtype, shape: &[u64], extent: &NdBox) -> Result<u64> {
    if !extent.is_inside(shape) {
        return Err(Error::invalid(format!("{extent} sticks out of a tensor of {shape:?}")));
    }
    let bits = extent.elements().and_then(|elements| elements.checked_mul(dtype.bits()));
    let bits = bits.ok_or_else(|| Error::corrupt("the size of a tensor overflows"))?;
    if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err(crate::layout::unaligned(dtype)) }
}

/// One changed word of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its place: the tensor's bytes from `8 * word` on.
    pub word: u64,
    /// The new word minus the old one, both little-endian and unsigned.
    pub delta: i128,
}

/// Finds the one word of 8 bytes that changed in a tensor of `words` words, from the new
/// fingerprint minus the old one. It takes some nanoseconds for each word.
///
/// `None` if nothing or more than one word changed. The answer is wrong with a probability of about
/// `words * 2^-42` (each of the words matches by chance with 2^65 of 2^107): a caller who has the
/// word at hand compares it.
#[must_use]
pub fn locate(difference: Fingerprint, words: u64) -> Option<Change> {
    if difference == Fingerprint::ZERO {
        return None;
    }
    let mut delta = difference.0;
    (0..words).find_map(|word| {
        delta = field::multiply(delta, field::R_INVERSE);
        let delta = match (u64::try_from(delta), u64::try_from(field::P - delta)) {
            (Ok(more), _) => i128::from(more),
            (_, Ok(less)) => -i128::from(less),
            _ => return None,
        };
        Some(Change { word, delta })
    })
}

impl Add for Fingerprint {
    type Output = Self;

    /// The fingerprint of two disjoint parts together.
    fn add(self, other: Self) -> Self {
        Self(field::add(self.0, other.0))
    }
}

impl AddAssign for Fingerprint {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Fingerprint {
    type Output = Self;

    /// What is left without a part, or how far two states of a tensor differ ([`locate`]).
    fn sub(self, other: Self) -> Self {
        Self(field::subtract(self.0, other.0))
    }
}

impl Sum for Fingerprint {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::ZERO, Self::add)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:032x}", self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    /// Reads 32 lower-case hexadecimal digits of a number below 2^107 - 1.
    fn from_str(text: &str) -> Result<Self> {
        let digits = text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        Some(text)
            .filter(|text| digits && text.len() == 2 * Self::BYTES)
            .and_then(|text| u128::from_str_radix(text, 16).ok())
            .and_then(|number| Self::from_bytes(number.to_be_bytes()))
            .ok_or_else(|| {
                let expected = "32 lower-case hexadecimal digits of a number below 2^107 - 1";
                Error::invalid(format!("a fingerprint is {expected}, found {text:?}"))
            })
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
