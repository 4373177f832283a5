//! The directory of a zip file, and its records as `torch.save` writes them: stored, not compressed.
//!
//! The source is PKWARE's APPNOTE (4.3.7, 4.3.12, 4.3.14, 4.3.16). It is read here and not by a crate
//! because every offset has to be judged, and because PyTorch ignores the CRC-32 that each record has.

use std::collections::BTreeMap;

use super::disk::Span;
use super::flaw::Flaw;

const LOCAL: [u8; 4] = *b"PK\x03\x04";
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";
const END64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR64: [u8; 4] = *b"PK\x06\x07";
const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: usize = 22;
const LOCATOR_BYTES: u64 = 20;
/// An end record and the longest comment behind it.
const TAIL_BYTES: u64 = 22 + 65_535;
/// The largest directory that is read: millions of records.
const DIRECTORY_BYTES_MAX: u64 = 256 << 20;
const STORED: u16 = 0;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) name: String,
    /// Where its bytes begin in the file.
    pub(crate) begin: u64,
    pub(crate) len: u64,
    crc: u32,
    method: u16,
}

/// A zip file whose directory was read and checked: no record sticks out of the file and no two overlap.
#[derive(Debug)]
pub(crate) struct Archive {
    span: Span,
    pub(crate) records: Vec<Record>,
    by_name: BTreeMap<String, usize>,
    duplicate: Option<String>,
}

/// What the checksum of a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    Right,
    Wrong { stored: u32, computed: u32 },
}

/// True if `span` begins as a zip file does. That is how `torch.load` tells its two formats apart.
pub(crate) fn is_zip(span: &Span) -> Result<bool, Flaw> {
    let mut magic = [0; 4];
    if span.len() < 4 {
        return Ok(false);
    }
    span.read(0, &mut magic)?;
    Ok(magic == LOCAL)
}

impl Archive {
    pub(crate) fn open(span: Span) -> Result<Self, Flaw> {
        let directory = Directory::find(&span)?;
        let bytes = span.bytes(directory.begin, directory.len, DIRECTORY_BYTES_MAX)?;
        if directory.records.saturating_mul(CENTRAL_BYTES as u64) > directory.len {
            return Err(Flaw::content(format!(
                "its directory of {} bytes has no room for {} records",
                directory.len, directory.records
            )));
        }
        let mut records = Vec::new();
        let mut rest = bytes.as_slice();
        for _ in 0..directory.records {
            records.push(record(&span, &mut rest)?);
        }
        let mut by_name = BTreeMap::new();
        let mut duplicate = None;
        for (number, record) in records.iter().enumerate() {
            if by_name.insert(record.name.clone(), number).is_some() {
                duplicate = Some(record.name.clone());
            }
        }
        let archive = Self { span, records, by_name, duplicate };
        archive.check_disjoint(directory.begin)?;
        Ok(archive)
    }

    /// Also keeps the work of checking all records below the size of the file.
    fn check_disjoint(&self, directory: u64) -> Result<(), Flaw> {
        let mut order: Vec<&Record> = self.records.iter().collect();
        order.sort_by_key(|record| (record.begin, record.len));
        let mut free = 0;
        for record in order {
            // The local header of a record stands between it and the one before.
            if record.begin < free + LOCAL_BYTES || record.begin + record.len > directory {
                return Err(Flaw::content(format!(
                    "record {:?} at {} of {} bytes overlaps another part of the file",
                    record.name, record.begin, record.len
                )));
            }
            free = record.begin + record.len;
        }
        Ok(())
    }

    /// A name that more than one record has: which of them is read depends on the reader.
    pub(crate) fn duplicate(&self) -> Option<&str> {
        self.duplicate.as_deref()
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Record> {
        self.by_name.get(name).map(|number| &self.records[*number])
    }

    /// The bytes of a record.
    pub(crate) fn open_record(&self, record: &Record) -> Result<Span, Flaw> {
        if record.method != STORED {
            return Err(Flaw::limit(format!("{:?} is compressed", record.name)));
        }
        self.span.part(record.begin, record.len)
    }

    /// True if its writer left the checksums out (`set_crc32_options(False)`): all are 0.
    pub(crate) fn has_no_sums(&self) -> bool {
        self.records.iter().all(|record| record.crc == 0)
            && self.records.iter().any(|record| record.len > 0)
    }

    /// Computes the checksum of a record.
    pub(crate) fn check(&self, record: &Record, read: impl Fn(u64)) -> Result<Sum, Flaw> {
        let mut sum = crc32fast::Hasher::new();
        self.open_record(record)?.each_block(|block| {
            sum.update(block);
            read(block.len() as u64);
        })?;
        let computed = sum.finalize();
        Ok(match computed == record.crc {
            true => Sum::Right,
            false => Sum::Wrong { stored: record.crc, computed },
        })
    }
}

/// Where the directory is.
struct Directory {
    begin: u64,
    len: u64,
    records: u64,
}

impl Directory {
    fn find(span: &Span) -> Result<Self, Flaw> {
        let tail_bytes = TAIL_BYTES.min(span.len());
        let tail_begin = span.len() - tail_bytes;
        let tail = span.bytes(tail_begin, tail_bytes, TAIL_BYTES)?;
        let at = (0..(tail.len() + 1).saturating_sub(END_BYTES))
            .rev()
            .find(|at| tail[*at..].starts_with(&END))
            .ok_or_else(|| {
                Flaw::content("it has no zip directory at its end: it was cut, or never finished")
            })?;
        let end = &tail[at..];
        let small = Self {
            records: u64::from(u16_at(end, 10)),
            len: u64::from(u32_at(end, 12)),
            begin: u64::from(u32_at(end, 16)),
        };
        let is_large =
            small.records == 0xffff || small.len == 0xffff_ffff || small.begin == 0xffff_ffff;
        let end_at = tail_begin + at as u64;
        let directory = match end_at.checked_sub(LOCATOR_BYTES) {
            Some(locator) if is_large => Self::large(span, locator)?.unwrap_or(small),
            _ => small,
        };
        match directory.begin.checked_add(directory.len) {
            Some(end) if end <= end_at => Ok(directory),
            _ => Err(Flaw::content("its zip directory sticks out of the file")),
        }
    }

    /// The one that a zip64 file tells of.
    fn large(span: &Span, locator: u64) -> Result<Option<Self>, Flaw> {
        let locator = span.bytes(locator, LOCATOR_BYTES, LOCATOR_BYTES)?;
        if !locator.starts_with(&LOCATOR64) {
            return Ok(None);
        }
        let end = span.bytes(u64_at(&locator, 8), 56, 56)?;
        if !end.starts_with(&END64) {
            return Err(Flaw::content("its zip64 end record is damaged"));
        }
        Ok(Some(Self { records: u64_at(&end, 32), len: u64_at(&end, 40), begin: u64_at(&end, 48) }))
    }
}

/// The next record of the directory, and where its local header says that it begins.
fn record(span: &Span, rest: &mut &[u8]) -> Result<Record, Flaw> {
    let cut = || Flaw::content("its zip directory is damaged");
    let head =
        rest.get(..CENTRAL_BYTES).filter(|head| head.starts_with(&CENTRAL)).ok_or_else(cut)?;
    let (name_len, extra_len) = (usize::from(u16_at(head, 28)), usize::from(u16_at(head, 30)));
    let behind = usize::from(u16_at(head, 32)) + name_len + extra_len + CENTRAL_BYTES;
    let name = rest.get(CENTRAL_BYTES..CENTRAL_BYTES + name_len).ok_or_else(cut)?;
    let extra = &rest.get(CENTRAL_BYTES + name_len..behind).ok_or_else(cut)?[..extra_len];
    let name = String::from_utf8_lossy(name).into_owned();
    let sizes = [u32_at(head, 24), u32_at(head, 20), u32_at(head, 42)];
    let [len, packed, local] = large_sizes(sizes, extra).ok_or_else(cut)?;
    let (method, crc) = (u16_at(head, 10), u32_at(head, 16));
    *rest = &rest[behind..];
    if method == STORED && len != packed {
        return Err(Flaw::content(format!("record {name:?} has {len} bytes and stores {packed}")));
    }
    let local_head = span.bytes(local, LOCAL_BYTES, LOCAL_BYTES)?;
    let before = u64::from(u16_at(&local_head, 26)) + u64::from(u16_at(&local_head, 28));
    let begin = local + LOCAL_BYTES + before;
    if !local_head.starts_with(&LOCAL) {
        return Err(Flaw::content(format!(
            "record {name:?} does not begin where the directory says"
        )));
    }
    span.part(begin, packed).map_err(|flaw| Flaw::content(format!("record {name:?}: {flaw}")))?;
    Ok(Record { name, begin, len: packed, crc, method })
}

/// Sizes that do not fit 32 bits stand, in this order, in the extra field of zip64.
fn large_sizes(small: [u32; 3], extra: &[u8]) -> Option<[u64; 3]> {
    let mut sizes = small.map(u64::from);
    if !small.contains(&u32::MAX) {
        return Some(sizes);
    }
    let mut rest = extra;
    while rest.len() >= 4 {
        let (id, len) = (u16_at(rest, 0), usize::from(u16_at(rest, 2)));
        let mut body = rest.get(4..4 + len)?;
        if id == 1 {
            for (size, small) in sizes.iter_mut().zip(small) {
                if small == u32::MAX {
                    *size = u64_at(body.get(..8)?, 0);
                    body = &body[8..];
                }
            }
            return Some(sizes);
        }
        rest = &rest[4 + len..];
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
