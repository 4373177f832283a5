//! What a crash may leave of the bytes of a file that was not synced.

use bytes::Bytes;

/// The bytes that a disk writes at once, or not; in tiny files, so that they have several.
const BLOCK_BYTES: usize = 128;

/// No file counts as more blocks: those of a larger one are larger.
const BLOCKS_MAX: usize = 16;

fn block_bytes(bytes: usize) -> usize {
    BLOCK_BYTES.max(bytes.div_ceil(BLOCKS_MAX))
}

/// In how many ways a file of so many bytes may be left: each block not at all, half or whole, and the size
/// grown beyond them or not.
pub(super) fn ways(bytes: usize) -> u64 {
    let blocks = bytes.div_ceil(block_bytes(bytes)) as u32;
    2 * 3_u64.pow(blocks)
}

/// What way number `way` leaves; the last one leaves everything.
pub(super) fn leave(bytes: &Bytes, way: u64) -> Bytes {
    let is_grown = way % 2 == 1;
    let mut left = way / 2;
    let mut torn = vec![0; bytes.len()];
    let mut end = 0;
    let block = block_bytes(bytes.len());
    for begin in (0..bytes.len()).step_by(block) {
        let whole = block.min(bytes.len() - begin);
        let kept = match left % 3 {
            0 => 0,
            1 => whole / 2,
            _ => whole,
        };
        left /= 3;
        torn[begin..begin + kept].copy_from_slice(&bytes[begin..begin + kept]);
        if kept > 0 {
            end = begin + kept;
        }
    }
    if !is_grown {
        torn.truncate(end);
    }
    if torn == *bytes { bytes.clone() } else { torn.into() }
}
