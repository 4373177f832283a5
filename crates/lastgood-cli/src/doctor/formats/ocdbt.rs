//! TensorStore's OCDBT: a B+tree of keys and values in a manifest and data files.
//!
//! The source is `tensorstore/kvstore/ocdbt/index.rst`. Manifest and nodes end in a CRC-32C; values, which
//! are the arrays' chunks, have none.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;

const MANIFEST_MAGIC: u32 = 0x0cdb_3a2a;
const NODE_MAGIC: u32 = 0x0cdb_20de;
/// The largest encoded and decoded node; tensorstore writes 8 MiB.
const NODE_BYTES_MAX: u64 = 64 << 20;
/// The decoded nodes of a whole tree.
const TREE_BYTES_MAX: u64 = 4 << 30;
/// Keys of a whole tree, entries of one node, and nodes that are still to be read.
const KEYS_MAX: usize = 4_000_000;
/// The names of the data files of one node.
const FILE_NAME_BYTES_MAX: usize = 8 << 20;
const NAME_BYTES_MAX: usize = 512 << 20;
const DEPTH_MAX: usize = 32;

/// A place in a data file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Location {
    pub(super) file: Arc<str>,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// What is put before the files that a node there names.
    pub(super) base: Arc<str>,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Inline(Vec<u8>),
    At(Location),
}

/// All keys of the newest version.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) values: BTreeMap<String, Value>,
    /// The bytes of nodes whose checksum is right.
    pub(super) checked: u64,
    name_bytes: usize,
}

/// Reads the tree in `folder`.
pub(super) fn read(folder: &Path) -> Result<Tree, Flaw> {
    let span = Span::open(&folder.join("manifest.ocdbt"))?;
    let mut tree = Tree { checked: span.len(), ..Tree::default() };
    let body = decode(&span.all(NODE_BYTES_MAX)?, MANIFEST_MAGIC)?;
    let Some(root) = newest(&mut Bytes(&body))? else { return Ok(tree) };
    let mut seen = BTreeSet::new();
    let mut open = vec![(root, String::new(), 0)];
    let mut decoded = 0;
    while let Some((location, prefix, depth)) = open.pop() {
        let nodes = seen.len().max(open.len());
        if depth > DEPTH_MAX || nodes > KEYS_MAX || decoded > TREE_BYTES_MAX {
            return Err(Flaw::limit("a tree of more nodes than are read here"));
        }
        // A node that two others name is read once: with other prefixes its keys would differ, which
        // tensorstore does not write.
        if !seen.insert(location.clone()) {
            continue;
        }
        let about = |flaw: Flaw| {
            flaw.about(&format!("the node at {} of {}", location.offset, location.file))
        };
        let bytes =
            inside(folder, &location).and_then(|span| span.all(NODE_BYTES_MAX)).map_err(about)?;
        let body = decode(&bytes, NODE_MAGIC).map_err(about)?;
        tree.checked += location.len;
        decoded += body.len() as u64;
        let children = node(&body, &location.base, &prefix, &mut tree).map_err(about)?;
        open.extend(children.into_iter().map(|(location, prefix)| (location, prefix, depth + 1)));
    }
    Ok(tree)
}

/// The bytes at `location`, which must be in a file below `folder`.
pub(super) fn inside(folder: &Path, location: &Location) -> Result<Span, Flaw> {
    data_file(folder, location)?
        .part(location.offset, location.len)
        .map_err(|flaw| Flaw::content(format!("data file {}: {flaw}", location.file)))
}

/// The whole file that `location` is in.
pub(super) fn data_file(folder: &Path, location: &Location) -> Result<Span, Flaw> {
    let escapes = location.file.split('/').any(|part| part == ".." || part.is_empty());
    if escapes || location.file.contains('\0') {
        return Err(Flaw::content(format!("a data file called {:?}", location.file)));
    }
    Span::open(&folder.join(&*location.file))
        .map_err(|flaw| flaw.about(&format!("data file {}", location.file)))
}

/// The body of a manifest or node whose frame and checksum are right.
fn decode(bytes: &[u8], magic: u32) -> Result<Vec<u8>, Flaw> {
    let cut = || Flaw::content("it is too short");
    let end = bytes.len().checked_sub(4).ok_or_else(cut)?;
    let mut head = Bytes(&bytes[..end]);
    let found = u32::from_be_bytes(head.array()?);
    if found != magic {
        return Err(Flaw::content(format!("it begins with {found:08x} instead of {magic:08x}")));
    }
    let len = u64::from_le_bytes(head.array()?);
    if len != bytes.len() as u64 {
        return Err(Flaw::content(format!("it says {len} bytes and has {}", bytes.len())));
    }
    let stored = u32::from_le_bytes(Bytes(&bytes[end..]).array()?);
    let computed = crc32c(&bytes[..end]);
    if stored != computed {
        return Err(Flaw::content(format!("CRC-32C {stored:08x} expected, {computed:08x} found")));
    }
    if head.varint()? != 0 {
        return Err(Flaw::limit("a version that is not known here"));
    }
    match head.varint()? {
        0 => Ok(head.0.to_vec()),
        1 => {
            let wrong = |e| Flaw::content(format!("zstd: {e}"));
            let decoder = zstd::stream::read::Decoder::new(head.0).map_err(wrong)?;
            let mut body = Vec::new();
            decoder.take(NODE_BYTES_MAX + 1).read_to_end(&mut body).map_err(wrong)?;
            match body.len() as u64 > NODE_BYTES_MAX {
                true => Err(Flaw::limit("a node that is larger than what is read here")),
                false => Ok(body),
            }
        }
        other => Err(Flaw::limit(format!("compression {other}"))),
    }
}

/// The root of the newest version that a manifest names.
fn newest(body: &mut Bytes<'_>) -> Result<Option<Location>, Flaw> {
    body.take(16)?;
    let kind = body.varint()?;
    body.varint()?;
    body.varint()?;
    body.take(1)?;
    match body.varint()? {
        0 => {}
        1 => drop(body.take(4)?),
        other => return Err(Flaw::limit(format!("compression {other}"))),
    }
    if kind != 0 {
        return Err(Flaw::limit("a manifest in numbered files"));
    }
    let files = files(body, "")?;
    let count = body.count()?;
    for _ in 0..count {
        body.varint()?;
    }
    body.take(count)?;
    let locations = locations(body, count, &files)?;
    // A version without a root has a place of zeros.
    Ok(locations.into_iter().next_back().flatten().filter(|location| location.len > 0))
}

/// The path of a data file, and what the files that nodes in it name begin with.
type DataFile = (Arc<str>, Arc<str>);

/// A table of data files.
fn files(body: &mut Bytes<'_>, base: &str) -> Result<Vec<DataFile>, Flaw> {
    let count = body.count()?;
    let prefixes = body.varints(count.saturating_sub(1))?;
    let suffixes = body.varints(count)?;
    let bases = body.varints(count)?;
    let mut files: Vec<DataFile> = Vec::new();
    let mut last: Vec<u8> = Vec::new();
    let mut total = 0;
    for i in 0..count {
        let prefix = if i == 0 { 0 } else { prefixes[i - 1] as usize };
        if prefix > last.len() {
            return Err(Flaw::content("a prefix that is longer than the name before"));
        }
        last.truncate(prefix);
        last.extend(body.take(suffixes[i] as usize)?);
        total += 2 * base.len() + last.len() + size_of::<DataFile>();
        let base_bytes = last.get(..bases[i] as usize);
        let base_bytes = base_bytes.ok_or_else(|| Flaw::content("a base longer than its path"))?;
        if last.len() > 65_535 || total > FILE_NAME_BYTES_MAX {
            return Err(Flaw::limit("names of files without end"));
        }
        let text = |bytes: &[u8]| format!("{base}{}", String::from_utf8_lossy(bytes)).into();
        files.push((text(&last), text(base_bytes)));
    }
    Ok(files)
}

/// Places, column by column; `None` for a file that is not in the table.
fn locations(
    body: &mut Bytes<'_>,
    count: usize,
    files: &[DataFile],
) -> Result<Vec<Option<Location>>, Flaw> {
    let (ids, offsets, lens) = (body.varints(count)?, body.varints(count)?, body.varints(count)?);
    let place = |i: usize| {
        let (file, base) = files.get(usize::try_from(ids[i]).ok()?)?.clone();
        Some(Location { file, offset: offsets[i], len: lens[i], base })
    };
    Ok((0..count).map(place).collect())
}

/// The children of a node; what is in a leaf goes into the tree.
fn node(
    body: &[u8],
    base: &str,
    prefix: &str,
    tree: &mut Tree,
) -> Result<Vec<(Location, String)>, Flaw> {
    let mut body = Bytes(body);
    let [height] = body.array()?;
    let files = files(&mut body, base)?;
    let count = body.count()?;
    if count > KEYS_MAX {
        return Err(Flaw::limit(format!("a node of more than {KEYS_MAX} entries")));
    }
    let prefixes = body.varints(count.saturating_sub(1))?;
    let suffixes = body.varints(count)?;
    let commons = if height > 0 { body.varints(count)? } else { Vec::new() };
    let mut keys: Vec<String> = Vec::new();
    let mut last: Vec<u8> = Vec::new();
    for i in 0..count {
        let shared = if i == 0 { 0 } else { prefixes[i - 1] as usize };
        if shared > last.len() {
            return Err(Flaw::content("a prefix that is longer than the key before"));
        }
        last.truncate(shared);
        last.extend(body.take(suffixes[i] as usize)?);
        let end = if height > 0 { commons[i] as usize } else { last.len() };
        let key = last.get(..end).ok_or_else(|| Flaw::content("a prefix longer than its key"))?;
        let key = format!("{prefix}{}", String::from_utf8_lossy(key));
        tree.name_bytes += key.len();
        if last.len() > 65_535 || tree.name_bytes > NAME_BYTES_MAX {
            return Err(Flaw::limit("keys without end"));
        }
        keys.push(key);
    }
    let odd = || Flaw::content("a data file that is not in the table");
    if height > 0 {
        let places = locations(&mut body, count, &files)?;
        return places.into_iter().zip(keys).map(|(p, k)| Ok((p.ok_or_else(odd)?, k))).collect();
    }
    let lens = body.varints(count)?;
    let kinds = body.take(count)?.to_vec();
    let apart: Vec<usize> = (0..count).filter(|i| kinds[*i] == 1).collect();
    let (ids, offsets) = (body.varints(apart.len())?, body.varints(apart.len())?);
    let mut values: BTreeMap<usize, Value> = BTreeMap::new();
    for (n, i) in apart.into_iter().enumerate() {
        let file = usize::try_from(ids[n]).ok().and_then(|id| files.get(id)).ok_or_else(odd)?;
        let (file, base) = file.clone();
        values.insert(i, Value::At(Location { file, offset: offsets[n], len: lens[i], base }));
    }
    for (i, key) in keys.into_iter().enumerate() {
        let value = match values.remove(&i) {
            Some(value) => value,
            None if kinds[i] == 0 => Value::Inline(body.take(lens[i] as usize)?.to_vec()),
            None => return Err(Flaw::content(format!("a value of kind {}", kinds[i]))),
        };
        tree.values.insert(key, value);
    }
    match tree.values.len() > KEYS_MAX {
        true => Err(Flaw::limit(format!("more than {KEYS_MAX} keys"))),
        false => Ok(Vec::new()),
    }
}

/// Bytes that are taken from the front.
struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], Flaw> {
        match self.0.split_at_checked(count) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => Err(Flaw::content(format!(
                "{count} more bytes are needed, {} are left",
                self.0.len()
            ))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn varint(&mut self) -> Result<u64, Flaw> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Flaw::content("a number of more than 64 bits"))
    }

    /// How many things follow: each needs a byte at least.
    fn count(&mut self) -> Result<usize, Flaw> {
        let count = self.varint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.0.len() => Ok(count),
            _ => Err(Flaw::content(format!("{count} entries in {} bytes", self.0.len()))),
        }
    }

    fn varints(&mut self, count: usize) -> Result<Vec<u64>, Flaw> {
        if count > self.0.len() {
            return Err(Flaw::content(format!("{count} numbers in {} bytes", self.0.len())));
        }
        (0..count).map(|_| self.varint()).collect()
    }
}

/// CRC-32C (Castagnoli). Only small nodes are hashed with it, so a table is fast enough.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    let step = |crc: u32, byte: &u8| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize];
    !bytes.iter().fold(!0, step)
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests;
