//! Byte planes: the bytes of equal significance of all elements stand together, each plane as small as it gets.
//!
//! The exponents of numbers that belong together are alike, their last digits are noise. Side by side neither zstd nor
//! anything else makes them smaller; apart the exponents become a third, and the noise stays what it is.

use std::cell::Cell;

use crate::{Error, Result, frames};

/// The widths of elements that planes are made of: bytes.
pub(crate) const WIDTHS: [usize; 3] = [2, 4, 8];

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

fn gather(decoded: &[u8], width: usize, p: usize, plane: &mut [u8]) {
    for (byte, element) in plane.iter_mut().zip(decoded.chunks_exact(width)) {
        *byte = element[p];
    }
}

fn scatter(plane: &[u8], width: usize, p: usize, decoded: &mut [u8]) {
    for (byte, element) in plane.iter().zip(decoded.chunks_exact_mut(width)) {
        element[p] = *byte;
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
            let frame = match seems_smaller(plane, level) {
                true => Some(compress(plane, level)?).filter(|frame| frame.len() < plane.len()),
                false => None,
            };
            let (kind, bytes) = match &frame {
                Some(frame) => (ZSTD, frame.as_slice()),
                None => (RAW, &*plane),
            };
            let entry = 1 + p * ENTRY_BYTES;
            stored[entry] = kind;
            stored[entry + 1..entry + ENTRY_BYTES]
                .copy_from_slice(&(bytes.len() as u32).to_le_bytes());
            stored.extend_from_slice(bytes);
        }
        Ok(())
    })?;
    stored.extend_from_slice(&decoded[decoded.len() - rest..]);
    Ok((stored.len() < decoded.len()).then_some(stored))
}

/// Guesses whether zstd makes a plane smaller by a sixteenth, so that the noise of most planes costs nothing.
fn seems_smaller(plane: &[u8], level: i32) -> bool {
    if plane.len() <= 2 * SAMPLE {
        return true;
    }
    let middle = (plane.len() / 2).saturating_sub(SAMPLE / 2);
    let sample = &plane[middle..middle + SAMPLE];
    frames::compress(sample, level).is_ok_and(|frame| frame.len() * 16 <= SAMPLE * 15)
}

fn compress(plane: &[u8], level: i32) -> Result<Vec<u8>> {
    frames::compress(plane, level)
        .map_err(|e| Error::internal(format!("zstd cannot compress a plane: {e}")))
}

/// How many bytes a sample of elements would take in planes.
pub(crate) fn estimate(sample: &[u8], width: usize, level: i32) -> usize {
    with_plane(sample.len() / width, |plane| {
        (0..width)
            .map(|p| {
                gather(sample, width, p, plane);
                let frame = frames::compress(plane, level);
                frame.map_or(plane.len(), |frame| frame.len().min(plane.len()))
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
    with_plane(count, |plane| {
        for (p, entry) in entries.chunks_exact(ENTRY_BYTES).enumerate() {
            let (kind, bytes) = (entry[0], [entry[1], entry[2], entry[3], entry[4]]);
            let (bytes, behind) = data
                .split_at_checked(u32::from_le_bytes(bytes) as usize)
                .ok_or_else(|| unclear(&format!("plane {p} is cut off")))?;
            data = behind;
            match kind {
                RAW if bytes.len() == count => scatter(bytes, width, p, decoded),
                ZSTD => {
                    let found = frames::with_decoder(|context| context.decompress(plane, bytes));
                    if found != Ok(count) {
                        return Err(unclear(&format!("plane {p} has not {count} bytes")));
                    }
                    scatter(plane, width, p, decoded);
                }
                _ => return Err(unclear(&format!("plane {p} is of kind {kind}"))),
            }
        }
        if data.len() != rest {
            return Err(unclear(&format!("{} bytes follow, expected {rest}", data.len())));
        }
        let end = decoded.len() - rest;
        decoded[end..].copy_from_slice(data);
        Ok(())
    })
}

#[cfg(test)]
mod tests;
