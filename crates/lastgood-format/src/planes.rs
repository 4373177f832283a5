//! Byte planes: the bytes of equal significance of all elements stand together, each plane as small as it gets.
//!
//! The exponents of numbers that belong together are alike, their last digits are noise. Side by side neither zstd nor
//! anything else makes them smaller; apart the exponents become a third, and the noise stays what it is.

use std::cell::Cell;

use crate::{Error, Result, frames};

/// The widths of elements that planes are made of: bytes.
pub(crate) const WIDTHS: [usize; 4] = [1, 2, 4, 8];

/// Behind the width: for each plane how it is stored, and how many bytes it takes.
const ENTRY_BYTES: usize = 5;

/// The largest scratch buffer that a thread keeps.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// A plane is looked at so many bytes long before all of it is coded.
pub(crate) const SAMPLE: usize = 16 << 10;

const RAW: u8 = 0;
const ZSTD: u8 = 1;

thread_local! {
    static PLANE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends a buffer of `bytes` bytes, whatever they hold.
fn with_plane<T>(bytes: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut plane = PLANE.take();
    plane.resize(bytes, 0);
    let done = work(&mut plane);
    if plane.capacity() <= KEPT_BYTES_MAX {
        PLANE.set(plane);
    }
    done
}

/// So many elements at a time: with their number and width known, the loops become wide moves.
const LANES: usize = 16;

fn gather_of<const W: usize>(decoded: &[u8], p: usize, plane: &mut [u8]) {
    for (byte, element) in plane.iter_mut().zip(decoded.as_chunks::<W>().0) {
        *byte = element[p];
    }
}

macro_rules! gather_words {
    ($name:ident, $word:ty, $width:literal) => {
        fn $name(decoded: &[u8], p: usize, plane: &mut [u8]) {
            let (blocks, rest) = decoded.as_chunks::<{ $width * LANES }>();
            let (to, to_rest) = plane.as_chunks_mut::<LANES>();
            for (to, block) in to.iter_mut().zip(blocks) {
                for (byte, word) in to.iter_mut().zip(block.as_chunks::<$width>().0) {
                    *byte = (<$word>::from_le_bytes(*word) >> (8 * p)) as u8;
                }
            }
            gather_of::<$width>(rest, p, to_rest);
        }
    };
}

gather_words!(gather_twos, u16, 2);
gather_words!(gather_fours, u32, 4);

fn gather(decoded: &[u8], width: usize, p: usize, plane: &mut [u8]) {
    match width {
        2 => gather_twos(decoded, p, plane),
        4 => gather_fours(decoded, p, plane),
        8 => gather_of::<8>(decoded, p, plane),
        _ => plane.copy_from_slice(&decoded[..plane.len()]),
    }
}

/// Puts planes together again, as many as an element has bytes.
fn interleave_of<const W: usize>(planes: [&[u8]; W], decoded: &mut [u8]) {
    let (elements, _) = decoded.as_chunks_mut::<W>();
    let planes = planes.map(|plane| &plane[..elements.len()]);
    for (i, element) in elements.iter_mut().enumerate() {
        *element = std::array::from_fn(|p| planes[p][i]);
    }
}

fn interleave_twos([low, high]: [&[u8]; 2], decoded: &mut [u8]) {
    let words = decoded.as_chunks_mut::<2>().0.iter_mut().zip(low).zip(high);
    for ((word, low), high) in words {
        *word = (u16::from(*low) | u16::from(*high) << 8).to_le_bytes();
    }
}

fn interleave_fours([a, b, c, d]: [&[u8]; 4], decoded: &mut [u8]) {
    let words = decoded.as_chunks_mut::<4>().0.iter_mut().zip(a).zip(b).zip(c).zip(d);
    for ((((word, a), b), c), d) in words {
        let low = u32::from(*a) | u32::from(*b) << 8;
        *word = (low | u32::from(*c) << 16 | u32::from(*d) << 24).to_le_bytes();
    }
}

fn interleave(planes: &[&[u8]], decoded: &mut [u8]) {
    match *planes {
        [plane] => decoded.copy_from_slice(plane),
        [low, high] => interleave_twos([low, high], decoded),
        [a, b, c, d] => interleave_fours([a, b, c, d], decoded),
        [a, b, c, d, e, f, g, h] => interleave_of([a, b, c, d, e, f, g, h], decoded),
        _ => {}
    }
}

/// `decoded` in planes of elements of `width` bytes; `None` if not a byte would be saved.
///
/// # Errors
/// `Internal` if the encoder fails; `Invalid` if there are no planes of this width.
pub(crate) fn encode(decoded: &[u8], width: usize, level: i32) -> Result<Option<Vec<u8>>> {
    if !WIDTHS.contains(&width) {
        return Err(Error::invalid(format!("there are no planes of elements of {width} bytes")));
    }
    let (count, rest) = (decoded.len() / width, decoded.len() % width);
    let head = 1 + width * ENTRY_BYTES;
    let mut stored = Vec::with_capacity(head + decoded.len());
    stored.resize(head, 0);
    stored[0] = width as u8;
    with_plane(count, |plane| {
        for p in 0..width {
            gather(decoded, width, p, plane);
            let begin = stored.len();
            let kind = push_coded(&mut stored, plane, level)?;
            let bytes = ((stored.len() - begin) as u32).to_le_bytes();
            let entry = 1 + p * ENTRY_BYTES;
            stored[entry] = kind;
            stored[entry + 1..entry + ENTRY_BYTES].copy_from_slice(&bytes);
        }
        Ok(())
    })?;
    stored.extend_from_slice(&decoded[decoded.len() - rest..]);
    Ok((stored.len() < decoded.len()).then_some(stored))
}

/// How a plane becomes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Its bytes are of unequal frequency.
    Literals,
    /// They repeat.
    Repeats,
}

/// What makes a plane the smallest, and the bytes of it; judged by a sample, so that the noise of most planes costs
/// nothing. `None` if nothing saves a sixteenth.
fn way(plane: &[u8], level: i32) -> Option<(Way, usize)> {
    let sample = match plane.len() <= 2 * SAMPLE {
        true => plane,
        false => &plane[plane.len() / 2 - SAMPLE / 2..][..SAMPLE],
    };
    let size = |frame: std::io::Result<Vec<u8>>| frame.map_or(usize::MAX, |frame| frame.len());
    let literals = size(frames::compress_literals(sample));
    // Of what is noise to one both would say the same.
    let may_repeat = literals * 16 <= sample.len() * 15 || sample.len() == plane.len();
    let repeats = if may_repeat { size(frames::compress(sample, level)) } else { usize::MAX };
    // It takes several times as long: it must be worth it.
    let (way, bytes) = match repeats.saturating_mul(33) < literals * 32 {
        true => (Way::Repeats, repeats),
        false => (Way::Literals, literals),
    };
    let saves =
        bytes * 16 <= sample.len() * 15 || (sample.len() == plane.len() && bytes < sample.len());
    saves.then(|| (way, (bytes as u64 * plane.len() as u64 / sample.len().max(1) as u64) as usize))
}

/// Appends `plane` in the smallest form, and gives the kind of that.
pub(crate) fn push_coded(stored: &mut Vec<u8>, plane: &[u8], level: i32) -> Result<u8> {
    let frame = match way(plane, level) {
        Some((Way::Literals, _)) => frames::compress_literals(plane),
        Some((Way::Repeats, _)) => frames::compress(plane, level),
        None => Ok(Vec::new()),
    };
    let frame = frame.map_err(|e| Error::internal(format!("zstd cannot compress a plane: {e}")))?;
    if frame.is_empty() || frame.len() >= plane.len() {
        stored.extend_from_slice(plane);
        return Ok(RAW);
    }
    stored.extend_from_slice(&frame);
    Ok(ZSTD)
}

/// How many bytes a sample of elements would take in planes.
pub(crate) fn estimate(sample: &[u8], width: usize, level: i32) -> usize {
    with_plane(sample.len() / width, |plane| {
        (0..width)
            .map(|p| {
                gather(sample, width, p, plane);
                way(plane, level).map_or(plane.len(), |(_, bytes)| bytes)
            })
            .sum()
    })
}

/// Decodes `stored` into exactly `decoded`.
///
/// # Errors
/// `Corrupt` if the bytes are no planes of so many bytes.
pub(crate) fn decode(stored: &[u8], decoded: &mut [u8]) -> Result<()> {
    let unclear = |what: &str| Error::corrupt(format!("a chunk of planes does not decode: {what}"));
    let (width, entries) = stored.split_first().ok_or_else(|| unclear("it is empty"))?;
    let width = usize::from(*width);
    if !WIDTHS.contains(&width) {
        return Err(unclear(&format!("it has elements of {width} bytes")));
    }
    let (entries, mut data) = entries
        .split_at_checked(width * ENTRY_BYTES)
        .ok_or_else(|| unclear("its head is cut off"))?;
    let (count, rest) = (decoded.len() / width, decoded.len() % width);
    with_plane(count * width, |room| {
        let mut planes = Vec::with_capacity(width);
        let mut room = room;
        for (p, entry) in entries.chunks_exact(ENTRY_BYTES).enumerate() {
            let (kind, bytes) = (entry[0], [entry[1], entry[2], entry[3], entry[4]]);
            let (bytes, behind) = data
                .split_at_checked(u32::from_le_bytes(bytes) as usize)
                .ok_or_else(|| unclear(&format!("plane {p} is cut off")))?;
            data = behind;
            let (own, free) = room.split_at_mut(count);
            room = free;
            planes.push(coded(kind, bytes, own).map_err(|e| e.context(format!("plane {p}")))?);
        }
        if data.len() != rest {
            return Err(unclear(&format!("{} bytes follow, expected {rest}", data.len())));
        }
        let end = decoded.len() - rest;
        interleave(&planes, &mut decoded[..end]);
        decoded[end..].copy_from_slice(data);
        Ok(())
    })
}

/// The bytes of a plane that [`push_coded`] appended, as many as `room` has, there or in `stored` itself.
///
/// # Errors
/// `Corrupt` if they are not so many.
pub(crate) fn coded<'b>(kind: u8, stored: &'b [u8], room: &'b mut [u8]) -> Result<&'b [u8]> {
    let expected = room.len();
    let found = match kind {
        RAW if stored.len() == expected => return Ok(stored),
        RAW => stored.len(),
        ZSTD => frames::with_decoder(|context| context.decompress(room, stored))
            .map_err(|_| Error::corrupt("its frame does not decode"))?,
        _ => return Err(Error::corrupt(format!("it is of kind {kind}"))),
    };
    match found == expected {
        true => Ok(room),
        false => Err(Error::corrupt(format!("it has {found} bytes, expected {expected}"))),
    }
}

#[cfg(test)]
mod tests;
