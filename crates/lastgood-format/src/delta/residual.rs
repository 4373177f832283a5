//! What is left of a chunk when its prediction is known, and how that is stored.

use super::rule::{Prediction, Rule, nearest_bfloat16};
use crate::planes;
use crate::wire::{Reader, Writer};
use crate::{Error, Result};

/// So many elements are predicted at once: they stay in the nearest cache.
const BLOCK: usize = 1024;

/// Where fewer than one in so many elements differs, those alone are stored.
const SPARSE: usize = 8;

/// A gap of this many elements goes on in the next byte.
const LONG: u8 = 255;

/// How a residual is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Not at all: it is zero everywhere.
    Nothing,
    /// In planes.
    Planes,
    /// The elements that are not zero, and where they are.
    Sparse,
}

impl Form {
    pub(super) fn code(self) -> u8 {
        self as u8
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Nothing, Self::Planes, Self::Sparse].get(usize::from(code)).copied()
    }
}

/// Maps the bits of numbers to integers of the same order, so that a near miss is a small difference.
trait Word: Copy {
    fn less(self, predicted: Self) -> Self;
    fn plus(self, residual: Self) -> Self;
}

macro_rules! word {
    ($word:ty, $signed:ty) => {
        impl Word for $word {
            /// `self - predicted` in the order of numbers; small ones of either sign are small.
            fn less(self, predicted: Self) -> Self {
                const TOP: $word = 1 << (<$word>::BITS - 1);
                let order =
                    |bits: Self| bits ^ ((bits as $signed >> (Self::BITS - 1)) as Self | TOP);
                let difference = order(self).wrapping_sub(order(predicted)) as $signed;
                ((difference << 1) ^ (difference >> (Self::BITS - 1))) as Self
            }

            /// What `residual` is less than by `self`, which was predicted.
            fn plus(self, residual: Self) -> Self {
                const TOP: $word = 1 << (<$word>::BITS - 1);
                let order = self ^ ((self as $signed >> (Self::BITS - 1)) as Self | TOP);
                let difference = (residual >> 1) ^ (residual & 1).wrapping_neg();
                let sum = order.wrapping_add(difference);
                sum ^ (!(sum as $signed >> (Self::BITS - 1)) as Self | TOP)
            }
        }
    };
}

word!(u8, i8);
word!(u16, i16);
word!(u32, i32);
word!(u64, i64);

/// The residual of `decoded`: as many bytes.
pub(super) fn of(
    decoded: &[u8],
    width: usize,
    prediction: &Prediction,
    operands: &[&[u8]],
) -> Vec<u8> {
    let mut residual = decoded.to_vec();
    apply(&mut residual, width, prediction, operands, Direction::Less);
    residual
}

/// Makes of a residual what it is the residual of.
pub(super) fn add(residual: &mut [u8], width: usize, prediction: &Prediction, operands: &[&[u8]]) {
    apply(residual, width, prediction, operands, Direction::Plus);
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Less,
    Plus,
}

fn apply(
    bytes: &mut [u8],
    width: usize,
    prediction: &Prediction,
    operands: &[&[u8]],
    direction: Direction,
) {
    let base = operands[0];
    let whole = bytes.len() - bytes.len() % width;
    let (elements, rest) = bytes.split_at_mut(whole);
    // What is behind the last whole element has no order.
    xor(rest, &base[whole..]);
    match (prediction.rule, width) {
        (Rule::Xor, _) => xor(elements, &base[..whole]),
        (Rule::Difference, 1) => {
            step(elements, base, direction, u8::from_le_bytes, u8::to_le_bytes)
        }
        (Rule::Difference, 2) => {
            step(elements, base, direction, u16::from_le_bytes, u16::to_le_bytes);
        }
        (Rule::Difference, 4) => {
            step(elements, base, direction, u32::from_le_bytes, u32::to_le_bytes);
        }
        (Rule::Difference, _) => {
            step(elements, base, direction, u64::from_le_bytes, u64::to_le_bytes);
        }
        (Rule::Cast, _) => {
            let half = elements.len() / 2;
            let (first, second) = elements.split_at_mut(half);
            for (part, operand) in [first, second].into_iter().zip(operands) {
                cast(part, operand, direction);
            }
        }
        _ => {
            let mut predicted = [0; BLOCK];
            for (i, block) in elements.chunks_mut(4 * BLOCK).enumerate() {
                let predicted = &mut predicted[..block.len() / 4];
                prediction.predict(operands, i * BLOCK, predicted);
                for (bytes, predicted) in block.as_chunks_mut::<4>().0.iter_mut().zip(predicted) {
                    let word = u32::from_le_bytes(*bytes);
                    let done = match direction {
                        Direction::Less => word.less(*predicted),
                        Direction::Plus => predicted.plus(word),
                    };
                    *bytes = done.to_le_bytes();
                }
            }
        }
    }
}

/// `part` has an element of 2 bytes for each number of `operand`.
fn cast(part: &mut [u8], operand: &[u8], direction: Direction) {
    for (bytes, number) in part.as_chunks_mut::<2>().0.iter_mut().zip(operand.as_chunks::<4>().0) {
        let (word, predicted) = (u16::from_le_bytes(*bytes), nearest_bfloat16(*number));
        let done = match direction {
            Direction::Less => word.less(predicted),
            Direction::Plus => predicted.plus(word),
        };
        *bytes = done.to_le_bytes();
    }
}

fn xor(bytes: &mut [u8], base: &[u8]) {
    for (byte, base) in bytes.iter_mut().zip(base) {
        *byte ^= base;
    }
}

fn step<const W: usize, T: Word>(
    elements: &mut [u8],
    base: &[u8],
    direction: Direction,
    from: impl Fn([u8; W]) -> T,
    to: impl Fn(T) -> [u8; W],
) {
    let pairs = elements.as_chunks_mut::<W>().0.iter_mut().zip(base.as_chunks::<W>().0);
    match direction {
        Direction::Less => {
            pairs.for_each(|(bytes, base)| *bytes = to(from(*bytes).less(from(*base))))
        }
        Direction::Plus => {
            pairs.for_each(|(bytes, base)| *bytes = to(from(*base).plus(from(*bytes))))
        }
    }
}

/// The smallest form of a residual of elements of `width` bytes.
pub(super) fn encode(residual: &[u8], width: usize, level: i32) -> Result<(Form, Vec<u8>)> {
    let count = residual.len() / width;
    let differ = match width {
        1 => differing::<1>(residual),
        2 => differing::<2>(residual),
        4 => differing::<4>(residual),
        _ => differing::<8>(residual),
    };
    let rest = &residual[count * width..];
    if differ == 0 && !is_not_zero(rest) {
        return Ok((Form::Nothing, Vec::new()));
    }
    if differ * SPARSE < count {
        return Ok((Form::Sparse, encode_sparse(residual, width, differ, level)?));
    }
    let planes = planes::encode(residual, width, level)?;
    // What does not get smaller is of no use here.
    Ok((Form::Planes, planes.unwrap_or_else(|| residual.to_vec())))
}

fn is_not_zero(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| *byte != 0)
}

/// How many elements are not zero.
fn differing<const W: usize>(residual: &[u8]) -> usize {
    residual.as_chunks::<W>().0.iter().filter(|element| **element != [0; W]).count()
}

/// The count of elements, their gaps, their planes, and the rest.
fn encode_sparse(residual: &[u8], width: usize, differ: usize, level: i32) -> Result<Vec<u8>> {
    let mut gaps = Vec::with_capacity(differ);
    let mut values = Vec::with_capacity(differ * width);
    let mut gap = 0usize;
    for element in residual.chunks_exact(width) {
        if !is_not_zero(element) {
            gap += 1;
            continue;
        }
        gaps.resize(gaps.len() + gap / usize::from(LONG), LONG);
        gaps.push((gap % usize::from(LONG)) as u8);
        values.extend_from_slice(element);
        gap = 0;
    }
    let mut out = Writer::default();
    out.u32(differ as u32);
    out.u32(gaps.len() as u32);
    push(&mut out, &gaps, level)?;
    for p in 0..width {
        let plane: Vec<u8> = values.iter().skip(p).step_by(width).copied().collect();
        push(&mut out, &plane, level)?;
    }
    out.0.extend_from_slice(&residual[residual.len() / width * width..]);
    Ok(out.0)
}

fn push(out: &mut Writer, bytes: &[u8], level: i32) -> Result<()> {
    let head = out.0.len();
    out.u8(0);
    out.u32(0);
    let begin = out.0.len();
    out.0[head] = planes::push_coded(&mut out.0, bytes, level)?;
    let stored = (out.0.len() - begin) as u32;
    out.0[head + 1..begin].copy_from_slice(&stored.to_le_bytes());
    Ok(())
}

/// Decodes a body into exactly `residual`.
pub(super) fn decode(form: Form, body: &[u8], width: usize, residual: &mut [u8]) -> Result<()> {
    match form {
        Form::Nothing if body.is_empty() => {
            residual.fill(0);
            Ok(())
        }
        Form::Nothing => Err(Error::corrupt(format!("{} bytes of nothing", body.len()))),
        Form::Planes if body.first() == Some(&(width as u8)) => planes::decode(body, residual),
        Form::Planes => Err(Error::corrupt("its planes have another width")),
        Form::Sparse => decode_sparse(body, width, residual),
    }
}

fn decode_sparse(body: &[u8], width: usize, residual: &mut [u8]) -> Result<()> {
    let count = residual.len() / width;
    let mut fields = Reader::new(body);
    let differ = fields.u32()? as usize;
    let gap_bytes = fields.u32()? as usize;
    if differ > count || gap_bytes < differ || gap_bytes > differ + count / usize::from(LONG) {
        return Err(Error::corrupt(format!(
            "{differ} of {count} elements differ, with {gap_bytes} bytes of gaps"
        )));
    }
    let mut room = vec![0; gap_bytes];
    let gaps = pull(&mut fields, &mut room)?.to_vec();
    residual.fill(0);
    let mut places = Vec::with_capacity(differ);
    let mut at = 0usize;
    for gap in gaps {
        at += usize::from(gap);
        if gap == LONG {
            continue;
        }
        if at >= count {
            return Err(Error::corrupt(format!("an element {at} of {count}")));
        }
        places.push(at);
        at += 1;
    }
    if places.len() != differ {
        return Err(Error::corrupt(format!("{} gaps for {differ} elements", places.len())));
    }
    room.resize(differ, 0);
    for p in 0..width {
        let plane = pull(&mut fields, &mut room)?;
        for (at, byte) in places.iter().zip(plane) {
            residual[at * width + p] = *byte;
        }
    }
    let rest = &mut residual[count * width..];
    if fields.left() != rest.len() {
        return Err(Error::corrupt(format!(
            "{} bytes follow, expected {}",
            fields.left(),
            rest.len()
        )));
    }
    rest.copy_from_slice(fields.rest());
    Ok(())
}

fn pull<'r, 'b: 'r>(fields: &mut Reader<'b>, room: &'r mut [u8]) -> Result<&'r [u8]> {
    let kind = fields.u8()?;
    let bytes = fields.u32()? as usize;
    planes::coded(kind, fields.bytes(bytes)?, room)
}
