//! Chunks that are deltas of others, decoded together with those.
//!
//! What a delta is made of is decoded and verified before it, at any depth, and kept until the last that is made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lastgood_format::chunk::Codec;
use lastgood_format::delta::Operand;
use lastgood_format::index::Chunk;
use lastgood_format::{Error, Hash, Result};

use super::contents::Contents;
use super::fetch::{self, At, Parts};
use crate::io::Io;

/// Neighbours are read together up to this many stored bytes.
const READ_BYTES_MAX: u64 = 8 << 20;

/// What lies between two chunks is read as well, if it is so little: a request costs more.
const GAP_BYTES_MAX: u64 = 32 << 10;

/// More than this is read chunk by chunk.
const AT_ONCE_BYTES_MAX: u64 = 64 << 20;

/// Chunks in an order in which each stands behind those that it is made of.
#[derive(Default)]
pub(super) struct Linked<'m> {
    rows: Vec<Row<'m>>,
}

struct Row<'m> {
    object: String,
    chunk: Chunk,
    /// Numbers of rows before this one.
    operands: Vec<usize>,
    /// Where its bytes go.
    parts: Parts<'m>,
    /// How many rows behind are made of it.
    uses: usize,
}

/// The `wanted` chunks that are deltas, and all that those are made of, wanted or not.
pub(super) fn rows(contents: &Contents, wanted: impl IntoIterator<Item = At>) -> BTreeSet<At> {
    let is_delta = |at: &At| !contents.indexes()[at.0].operands_of(at.1).is_empty();
    let mut open: Vec<At> = wanted.into_iter().filter(is_delta).collect();
    let mut found = BTreeSet::new();
    while let Some(at) = open.pop() {
        if found.insert(at) {
            let operands = contents.indexes()[at.0].operands_of(at.1);
            open.extend(operands.iter().map(|row| (at.0, *row)));
        }
    }
    found
}

/// Groups `rows`, with what goes out of each, so that nothing is made of anything in another group. Chunks that have
/// nothing to do with each other are grouped up to `bytes_max` stored bytes.
///
/// # Errors
/// `Corrupt` if a shard index names a row that it does not have.
pub(super) fn groups<'m>(
    contents: &Contents,
    rows: &BTreeSet<At>,
    bytes_max: u64,
    mut parts: impl FnMut(At) -> Parts<'m>,
) -> Result<Vec<Linked<'m>>> {
    let mut users: BTreeMap<At, Vec<At>> = BTreeMap::new();
    for at in rows {
        for operand in contents.indexes()[at.0].operands_of(at.1) {
            users.entry((at.0, *operand)).or_default().push(*at);
        }
    }
    let mut groups: Vec<(u64, Linked<'m>)> = Vec::new();
    let mut seen = BTreeSet::new();
    for at in rows {
        let members = members(contents, *at, &users, &mut seen);
        if members.is_empty() {
            continue;
        }
        let linked = Linked::new(contents, members, &users, &mut parts)?;
        let bytes = linked.stored_bytes();
        match groups.last_mut() {
            Some((sum, last)) if *sum + bytes <= bytes_max => {
                *sum += bytes;
                last.append(linked);
            }
            _ => groups.push((bytes, linked)),
        }
    }
    Ok(groups.into_iter().map(|(_, linked)| linked).collect())
}

/// All that is linked with `at` over any number of chunks; none if that was seen.
fn members(
    contents: &Contents,
    at: At,
    users: &BTreeMap<At, Vec<At>>,
    seen: &mut BTreeSet<At>,
) -> BTreeSet<At> {
    let mut members = BTreeSet::new();
    let mut open = vec![at];
    while let Some(at) = open.pop() {
        if seen.insert(at) {
            members.insert(at);
            let operands = contents.indexes()[at.0].operands_of(at.1);
            open.extend(operands.iter().map(|row| (at.0, *row)));
            open.extend(users.get(&at).into_iter().flatten());
        }
    }
    members
}

impl<'m> Linked<'m> {
    fn new(
        contents: &Contents,
        members: BTreeSet<At>,
        users: &BTreeMap<At, Vec<At>>,
        parts: &mut impl FnMut(At) -> Parts<'m>,
    ) -> Result<Self> {
        let mut numbers: BTreeMap<At, usize> = BTreeMap::new();
        let mut linked = Self::default();
        // Depth first, so that little is kept at a time; without recursion, since chains may be long.
        for at in members {
            let mut open = vec![at];
            while let Some(at) = open.last().copied() {
                let index = &contents.indexes()[at.0];
                let operands = index.operands_of(at.1).iter().map(|row| (at.0, *row));
                let unknown = operands.clone().find(|operand| !numbers.contains_key(operand));
                if numbers.contains_key(&at) {
                    open.pop();
                } else if let Some(unknown) = unknown {
                    open.push(unknown);
                } else {
                    let chunk = *index.row(at.1).ok_or_else(|| {
                        Error::corrupt(format!("a shard index has no row {}", at.1))
                    })?;
                    let operands = operands.map(|operand| numbers[&operand]).collect();
                    let object = fetch::object_of(contents, at.0, &chunk);
                    let uses = users.get(&at).map_or(0, Vec::len);
                    numbers.insert(at, linked.rows.len());
                    linked.rows.push(Row { object, chunk, operands, parts: parts(at), uses });
                    open.pop();
                }
            }
        }
        Ok(linked)
    }

    fn append(&mut self, other: Self) {
        let first = self.rows.len();
        self.rows.extend(other.rows.into_iter().map(|row| Row {
            operands: row.operands.iter().map(|operand| first + operand).collect(),
            ..row
        }));
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.rows.iter().map(|row| u64::from(row.chunk.stored_bytes)).sum()
    }

    /// One of the objects, by which jobs are ordered.
    pub(super) fn object(&self) -> &str {
        self.rows.last().map_or("", |row| &row.object)
    }

    /// Reads, decodes, verifies and places.
    ///
    /// # Errors
    /// As the store; `Corrupt` with the object.
    pub(super) fn run(self, io: &dyn Io) -> Result<()> {
        let reads = match self.stored_bytes() <= AT_ONCE_BYTES_MAX {
            true => Reads::all(io, &self.rows)?,
            false => Reads::default(),
        };
        let mut decoded: Vec<Option<Decoded>> = Vec::new();
        decoded.resize_with(self.rows.len(), || None);
        let mut left: Vec<usize> = self.rows.iter().map(|row| row.uses).collect();
        // What nobody needs any more is written over.
        let mut free: Vec<Vec<u8>> = Vec::new();
        for (i, row) in self.rows.into_iter().enumerate() {
            let Row { object, chunk, operands, mut parts, .. } = row;
            let mut bytes = free.pop().unwrap_or_default();
            let made_of: Vec<Operand<'_>> = operands
                .iter()
                .filter_map(|of| decoded[*of].as_ref())
                .map(Decoded::operand)
                .collect();
            let mut stored = reads.take(io, &object, &chunk)?;
            let as_delta = (&fetch::packed(&chunk), made_of.as_slice());
            fetch::decode(io, &object, as_delta, &mut stored, &mut bytes, |found| {
                fetch::place(&mut parts, found);
            })
            .map_err(|e| fetch::at_offset(e, &chunk).with_object(object))?;
            for of in operands {
                left[of] -= 1;
                if left[of] == 0 {
                    free.extend(decoded[of].take().map(|decoded| decoded.bytes));
                }
            }
            if left[i] > 0 {
                // Raw chunks are not copied to be decoded.
                let bytes = if chunk.codec == Codec::Raw { stored } else { bytes };
                decoded[i] = Some(Decoded { hash: chunk.hash, bytes });
            }
        }
        Ok(())
    }
}

/// A chunk that was verified.
struct Decoded {
    hash: Hash,
    bytes: Vec<u8>,
}

impl Decoded {
    fn operand(&self) -> Operand<'_> {
        Operand { hash: self.hash, bytes: &self.bytes }
    }
}

/// Stored bytes that were read ahead: ranges of objects, rising.
#[derive(Default)]
struct Reads(Vec<Read>);

struct Read {
    object: String,
    begin: u64,
    bytes: Vec<u8>,
}

impl Reads {
    /// All of `rows`, neighbours with one request.
    fn all(io: &dyn Io, rows: &[Row<'_>]) -> Result<Self> {
        let mut ranges: Vec<(&str, Range<u64>)> = rows
            .iter()
            .filter(|row| row.chunk.stored_bytes > 0)
            .map(|row| {
                let begin = row.chunk.offset;
                (row.object.as_str(), begin..begin + u64::from(row.chunk.stored_bytes))
            })
            .collect();
        ranges.sort_by(|a, b| (a.0, a.1.start).cmp(&(b.0, b.1.start)));
        let mut merged: Vec<(&str, Range<u64>)> = Vec::new();
        for (object, range) in ranges {
            match merged.last_mut() {
                Some((last, before))
                    if *last == object
                        && range.start <= before.end + GAP_BYTES_MAX
                        && range.end - before.start
                            <= READ_BYTES_MAX.max(range.end - range.start) =>
                {
                    before.end = before.end.max(range.end);
                }
                _ => merged.push((object, range)),
            }
        }
        let read = |(object, range): (&str, Range<u64>)| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            fetch::read(io, object, range.start, &mut bytes)?;
            Ok(Read { object: object.to_owned(), begin: range.start, bytes })
        };
        merged.into_iter().map(read).collect::<Result<_>>().map(Self)
    }

    /// The stored bytes of `chunk`, read now if they were not read ahead.
    fn take(&self, io: &dyn Io, object: &str, chunk: &Chunk) -> Result<Vec<u8>> {
        let bytes = chunk.stored_bytes as usize;
        let key = (object, chunk.offset);
        let behind = self.0.partition_point(|read| (read.object.as_str(), read.begin) <= key);
        let found = behind.checked_sub(1).map(|i| &self.0[i]).and_then(|read| {
            let begin = usize::try_from(chunk.offset.checked_sub(read.begin)?).ok()?;
            (read.object == object).then(|| read.bytes.get(begin..begin + bytes))?
        });
        if let Some(found) = found {
            return Ok(found.to_vec());
        }
        let mut stored = vec![0; bytes];
        if bytes > 0 {
            fetch::read(io, object, chunk.offset, &mut stored)?;
        }
        Ok(stored)
    }
}
