//! What several ranks hold alike is stored by one of them. The others tell what they hold, so that ranks that have
//! drifted apart are noticed before their save is a checkpoint.
//!
//! Each rank puts digests of what it shares with others into the metadata of its shard index; whoever commits compares
//! them. Of each part the first bytes are told in every save, and of large states one window in turn, so that a save
//! never waits for more than 64 MiB to be hashed.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use lastgood_format::index::ShardIndex;
use lastgood_format::layout::NdBox;
use lastgood_format::{Error, Hash, Result};

use crate::state::{Capture, Piece, show};

/// The key of the metadata: the number of windows, then for each part 16 digits that name it and 16 of its digest.
pub(crate) const KEY: &str = "lastgood.alike";
/// The most bytes of all windows of one save.
const WINDOW_BYTES: u64 = 64 << 20;
/// The bytes of every part that every save tells of.
const HEAD_BYTES: usize = 4096;
/// How much is hashed at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// The digits of a name, and of a digest.
const DIGITS: usize = 16;
/// How many parts an error names.
const SHOWN: usize = 5;

/// What this rank holds of what others hold as well, as metadata; nothing if there are no others.
pub(super) fn testify(capture: &Capture<'_>, step: u64) -> Result<BTreeMap<String, String>> {
    let shared: Vec<&Piece<'_>> = match capture.world().size {
        1 => Vec::new(),
        _ => capture.pieces.iter().chain(&capture.witnessed).filter(|piece| piece.shared).collect(),
    };
    if shared.is_empty() {
        return Ok(BTreeMap::new());
    }
    let windows = windows(shared.iter().map(|piece| piece.data.len() as u64).sum());
    let turn = turn(step, windows);
    let mut block = vec![0; BLOCK_BYTES];
    let mut entries = Vec::with_capacity(shared.len());
    for piece in shared {
        let component = &capture.components[piece.component].name;
        let name = name_of(component, &piece.name, &piece.extent, windows);
        entries.push(name + &digest(piece, windows, turn, &mut block)?);
    }
    entries.sort_unstable();
    Ok(BTreeMap::from([(KEY.to_owned(), format!("{windows}:{}", entries.concat()))]))
}

/// In how many windows `bytes` are told: a power of two, so that ranks that hold about as much agree.
fn windows(bytes: u64) -> u64 {
    bytes.div_ceil(WINDOW_BYTES).next_power_of_two()
}

/// Which window it is the turn of: drawn by the step, since steps that are saved follow a pattern.
fn turn(step: u64, windows: u64) -> u64 {
    let drawn = Hash::of(&step.to_le_bytes());
    drawn.as_bytes().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte)) % windows
}

fn name_of(component: &str, name: &str, extent: &NdBox, windows: u64) -> String {
    let mut sizes = vec![windows, component.len() as u64, name.len() as u64];
    sizes.extend(extent.offsets.iter().chain(&extent.sizes));
    let sizes: Vec<u8> = sizes.iter().flat_map(|n| n.to_le_bytes()).collect();
    digits(&Hash::of_parts([sizes.as_slice(), component.as_bytes(), name.as_bytes()]))
}

fn digits(hash: &Hash) -> String {
    hash.to_string().chars().take(DIGITS).collect()
}

fn digest(piece: &Piece<'_>, windows: u64, turn: u64, block: &mut [u8]) -> Result<String> {
    let bytes = piece.data.len();
    let width = (bytes as u64).div_ceil(windows);
    let begin = usize::try_from(turn * width).map_or(bytes, |begin| begin.min(bytes));
    let end = usize::try_from((turn + 1) * width).map_or(bytes, |end| end.min(bytes));
    let head = bytes.min(HEAD_BYTES);
    let mut hashes = Vec::new();
    for range in [0..head, begin.max(head)..end] {
        for from in range.clone().step_by(BLOCK_BYTES) {
            let to = range.end.min(from + BLOCK_BYTES);
            piece.data.copy(from..to, &mut block[..to - from])?;
            hashes.extend_from_slice(Hash::of(&block[..to - from]).as_bytes());
        }
    }
    Ok(digits(&Hash::of(&hashes)))
}

/// Compares what the ranks have told.
///
/// # Errors
/// `Invalid` naming what they hold different bytes of.
pub(crate) fn check_alike<'i>(indexes: impl Iterator<Item = &'i ShardIndex> + Clone) -> Result<()> {
    let mut first: BTreeMap<&str, (&str, u32)> = BTreeMap::new();
    let mut differ: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    let mut windows = 1;
    for index in indexes.clone() {
        let Some((counted, told)) = index.metadata.get(KEY).and_then(|text| text.split_once(':'))
        else {
            continue;
        };
        for (name, digest) in entries(told) {
            let (of_first, rank) = *first.entry(name).or_insert((digest, index.rank));
            if of_first != digest {
                windows = counted.parse().unwrap_or(1);
                differ.entry(name).or_insert((rank, index.rank));
            }
        }
    }
    let Some((_, (a, b))) = differ.first_key_value() else { return Ok(()) };
    let names = shown(indexes, &differ, windows);
    Err(Error::invalid(format!(
        "ranks {a} and {b} hold different bytes of what one rank stores for all: {names}"
    ))
    .with_remedy(
        "make them equal again (broadcast them from one rank, or restore the checkpoint before), and find out why \
         they drifted apart",
    ))
}

/// Names and digests. What is no such text was written by nobody, and is not compared.
fn entries(told: &str) -> impl Iterator<Item = (&str, &str)> {
    (0..told.len() / (2 * DIGITS)).filter_map(move |i| {
        let entry = told.get(i * 2 * DIGITS..(i + 1) * 2 * DIGITS)?;
        entry.split_at_checked(DIGITS)
    })
}

/// The parts whose ranks differ, by the names that the rank that stores them has for them.
fn shown<'i>(
    indexes: impl Iterator<Item = &'i ShardIndex>,
    differ: &BTreeMap<&str, (u32, u32)>,
    windows: u64,
) -> String {
    let mut names = Vec::new();
    for index in indexes {
        for tensor in &index.tensors {
            let component = &index.components[tensor.component as usize].name;
            let shards = index.shards.get(tensor.shards.start as usize..tensor.shards.end as usize);
            for shard in shards.unwrap_or_default() {
                let name = name_of(component, &tensor.name, &shard.extent, windows);
                if differ.contains_key(name.as_str()) {
                    names.push(show(component, &tensor.name));
                }
            }
        }
    }
    names.sort_unstable();
    let more = differ.len().saturating_sub(names.len().min(SHOWN));
    names.truncate(SHOWN);
    let named = names.join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}
