//! Files of `torch.save`: zip files since 1.6, and the older row of pickles.

mod imports;

use std::collections::BTreeMap;

use super::Audit;
use super::disk::Span;
use super::flaw::Flaw;
use super::pickle::{Node, Pickle, STREAM_BYTES_MAX};
use super::report::{Coverage, Finding, Findings};
use super::tensors::{self, Storage};
use super::zip::{Archive, Sum, is_zip};
pub(crate) use imports::names_of;
use imports::{bare_pickle, legacy_imports, other_pickles};

/// The number that the older format begins with, pickled.
const LEGACY_MAGIC: [u8; 12] =
    [0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The pickles that the older format begins with.
const LEGACY_PICKLES: usize = 5;

/// How much of an older file is looked at for its pickles.
const LEGACY_HEAD_BYTES: u64 = 64 << 20;

/// A file of `torch.save`, or a part of a file that is one.
#[derive(Debug)]
pub(crate) struct TorchFile {
    /// What was saved, as plain data.
    pub(crate) pickle: Pickle,
    /// Where storages are.
    pub(crate) place: Place,
}

/// Where storages begin, and how long they are, by key.
type Places = BTreeMap<String, (u64, u64)>;

/// Where the storages of a file are.
#[derive(Debug)]
pub(crate) enum Place {
    /// Records `PREFIX/data/KEY` of a zip file.
    Zip { archive: Archive, prefix: String, big_endian: bool },
    /// Behind the pickles of an older file, by key.
    Legacy { span: Span, storages: Places, end: u64 },
}

/// What a file begins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Zip,
    Legacy,
    /// A pickle that `torch.save` did not write.
    Pickle,
    Other,
}

pub(crate) fn kind(span: &Span) -> Result<Kind, Flaw> {
    let mut head = [0; 32];
    let len = span.len().min(32) as usize;
    span.read(0, &mut head[..len])?;
    let head = &head[..len];
    Ok(if is_zip(span)? {
        Kind::Zip
    } else if is_legacy(head) {
        Kind::Legacy
    } else if head.len() > 1 && head[0] == 0x80 && (2..=5).contains(&head[1]) {
        Kind::Pickle
    } else {
        Kind::Other
    })
}

/// True if a file begins with the number of the older format. `torch.save` takes any protocol.
fn is_legacy(head: &[u8]) -> bool {
    let number = match head {
        // A frame and its length stand before the number since protocol 4.
        [0x80, 4..=5, 0x95, rest @ ..] => rest.get(8..).unwrap_or_default(),
        [0x80, 2..=5, rest @ ..] => rest,
        _ => return false,
    };
    number.starts_with(&LEGACY_MAGIC)
}

impl TorchFile {
    /// Reads what the file says, not the bytes of its tensors.
    pub(crate) fn open(span: &Span) -> Result<Self, Flaw> {
        match kind(span)? {
            Kind::Zip => Self::open_zip(Archive::open(span.clone())?),
            Kind::Legacy => Self::open_legacy(span),
            Kind::Pickle | Kind::Other if span.len() == 0 => Err(Flaw::content("0 bytes")),
            Kind::Pickle => Err(Flaw::limit("a pickle that torch.save did not write")),
            Kind::Other => Err(Flaw::content("it does not begin as a file of torch.save does")),
        }
    }

    fn open_zip(archive: Archive) -> Result<Self, Flaw> {
        let first = archive.records.first();
        let prefix = first.and_then(|record| record.name.split_once('/')).map_or("", |(p, _)| p);
        let prefix = prefix.to_owned();
        let named = |name: &str| archive.find(&format!("{prefix}/{name}"));
        let record =
            named("data.pkl").ok_or_else(|| Flaw::content("the zip file has no data.pkl in it"))?;
        let stream = archive.open_record(record)?.all(STREAM_BYTES_MAX)?;
        let big_endian = match named("byteorder") {
            Some(record) => archive.open_record(record)?.all(16)? == b"big",
            None => false,
        };
        let pickle = Pickle::read(stream, 0);
        Ok(Self { pickle, place: Place::Zip { archive, prefix, big_endian } })
    }

    /// Five pickles (a number, a version, the system, what was saved, the keys of the storages) and then
    /// each storage: its number of elements, and its bytes.
    fn open_legacy(span: &Span) -> Result<Self, Flaw> {
        let (mut bytes, is_whole) = legacy_head(span)?;
        let wrong = |what: String| match is_whole {
            true => Flaw::content(what),
            false => {
                Flaw::limit(format!("pickles of more than {LEGACY_HEAD_BYTES} bytes, or {what}"))
            }
        };
        let mut at = 0;
        for _ in 0..LEGACY_PICKLES - 2 {
            let pickle = Pickle::read(bytes, at);
            if let Some(flaw) = pickle.flaw() {
                return Err(wrong(format!("one of its first pickles: {flaw}")));
            }
            at = pickle.end();
            bytes = pickle.into_bytes();
        }
        let pickle = Pickle::read(bytes, at);
        if let Some(flaw) = pickle.flaw() {
            return Err(wrong(format!("its pickle, {flaw}")));
        }
        let begin = pickle.end() as u64;
        let keys_bytes = (span.len() - begin).min(LEGACY_HEAD_BYTES);
        let keys = Pickle::read(span.bytes(begin, keys_bytes, LEGACY_HEAD_BYTES)?, 0);
        let (storages, end) = legacy_storages(span, &pickle, &keys, begin)?;
        Ok(Self { pickle, place: Place::Legacy { span: span.clone(), storages, end } })
    }

    /// True if its numbers are stored the other way round.
    pub(crate) fn is_big_endian(&self) -> bool {
        matches!(self.place, Place::Zip { big_endian: true, .. })
    }

    /// The bytes of a storage, if they are as many as the pickle says.
    pub(crate) fn storage(&self, storage: &Storage) -> Result<Span, Flaw> {
        let expected = storage.bytes()?;
        let span = match &self.place {
            Place::Zip { archive, prefix, .. } => {
                let name = format!("{prefix}/data/{}", storage.key);
                let record = archive.find(&name);
                let record =
                    record.ok_or_else(|| Flaw::content(format!("there is no record {name:?}")))?;
                archive.open_record(record)?
            }
            Place::Legacy { span, storages, .. } => {
                let (begin, len) = storages.get(&storage.key).ok_or_else(|| {
                    Flaw::content(format!("there is no storage {:?}", storage.key))
                })?;
                span.part(*begin, *len)?
            }
        };
        match span.len() == expected {
            true => Ok(span),
            false => Err(Flaw::content(format!(
                "storage {:?} has {} bytes, its tensors say {expected}",
                storage.key,
                span.len()
            ))),
        }
    }

    /// The value of a tensor of one element, as a number.
    pub(crate) fn scalar(&self, id: super::pickle::Id) -> Option<f64> {
        if let Node::Float(float) = self.pickle.node(id) {
            return Some(*float);
        }
        if let Some(int) = self.pickle.int(id) {
            return Some(int as f64);
        }
        let view = tensors::view(&self.pickle, id)?.ok()?;
        view.check().ok()?;
        if view.elements() != Some(1) {
            return None;
        }
        let span = self.storage(&view.storage).ok()?;
        let (begin, end) = view.extent()?;
        let bytes = span.bytes(begin, end - begin, 8).ok()?;
        Some(match view.dtype.as_str() {
            "float32" => f64::from(f32::from_le_bytes(bytes.try_into().ok()?)),
            "float64" => f64::from_le_bytes(bytes.try_into().ok()?),
            "int64" => i64::from_le_bytes(bytes.try_into().ok()?) as f64,
            "int32" => f64::from(i32::from_le_bytes(bytes.try_into().ok()?)),
            _ => return None,
        })
    }
}

/// What an older file has its pickles in, and whether that is all of it.
fn legacy_head(span: &Span) -> Result<(Vec<u8>, bool), Flaw> {
    let head = span.len().min(LEGACY_HEAD_BYTES);
    Ok((span.bytes(0, head, LEGACY_HEAD_BYTES)?, head == span.len()))
}

/// Where each storage of an older file is, and where the last one ends; `keys` begins at `begin`.
fn legacy_storages(
    span: &Span,
    pickle: &Pickle,
    keys: &Pickle,
    begin: u64,
) -> Result<(Places, u64), Flaw> {
    let list = keys.root().and_then(|root| keys.items(root));
    let list = list.ok_or_else(|| Flaw::content("the list of its storages cannot be read"))?;
    let mut known = BTreeMap::new();
    for (number, node) in pickle.nodes().iter().enumerate() {
        if matches!(node, Node::Persistent(_)) {
            let storage = tensors::storage(pickle, pickle.id(number))?;
            known.insert(storage.key.clone(), storage);
        }
    }
    let mut at = begin + keys.end() as u64;
    let mut storages = BTreeMap::new();
    for key in list {
        let key = keys.text(*key).ok_or_else(|| Flaw::content("a storage without a name"))?;
        let storage = known.get(key).ok_or_else(|| {
            Flaw::content(format!("storage {key:?} is there, and nothing refers to it"))
        })?;
        let (count, len) = (storage.count, storage.bytes()?);
        // The number of elements stands before the bytes, in the order of bytes of the machine.
        let mut said = [0; 8];
        span.read(at, &mut said)?;
        if u64::from_le_bytes(said) != count && u64::from_be_bytes(said) != count {
            return Err(Flaw::content(format!(
                "before storage {key:?} stands that it has {} elements, its tensors say {count}",
                u64::from_le_bytes(said)
            )));
        }
        span.part(at + 8, len)?;
        storages.insert(key.to_owned(), (at + 8, len));
        at += 8 + len;
    }
    Ok((storages, at))
}

/// Checks everything that can be checked about a file of `torch.save` called `name`, and gives it if it can
/// be read.
pub(crate) fn audit(
    audit: &Audit<'_>,
    name: &str,
    span: &Span,
    findings: &mut Findings,
    coverage: &mut Coverage,
) -> Option<TorchFile> {
    const EXPECTED: &str = "a whole file of torch.save";
    let flawed = |flaw: &Flaw| Finding::flaw(name, EXPECTED, flaw);
    let kind = match kind(span) {
        Ok(kind) => kind,
        Err(flaw) => {
            findings.add(flawed(&flaw));
            return None;
        }
    };
    if kind == Kind::Pickle {
        bare_pickle(audit, name, span, findings);
        coverage.uncheckable += span.len();
        return None;
    }
    if kind == Kind::Legacy {
        legacy_imports(audit, name, span, findings);
    }
    let file = match TorchFile::open(span) {
        Ok(file) => file,
        Err(flaw) => {
            findings.add(flawed(&flaw));
            return None;
        }
    };
    match &file.place {
        Place::Zip { archive, prefix, .. } => {
            names_of(audit, name, &file.pickle, findings);
            other_pickles(audit, name, archive, prefix, findings);
            sums(audit, name, archive, findings, coverage);
        }
        Place::Legacy { end, .. } => {
            coverage.uncheckable += span.len();
            findings.add(no_sums(name, "files of this older format have no checksums"));
            if *end < span.len() {
                findings.add(
                    Finding::doubt("torn", name)
                        .expected(format!("{end} bytes, where its last storage ends"))
                        .found(format!("{} bytes", span.len()))
                        .remedy("what stands behind may be of another save; save it again, or take another"),
                );
            }
        }
    }
    storages(name, &file, findings);
    file.pickle.root()?;
    Some(file)
}

fn no_sums(name: &str, why: &str) -> Finding {
    Finding::note("no-checksum", name)
        .expected("a checksum of every record")
        .found(why)
        .remedy("its bytes cannot be checked; sizes and structure were")
}

/// The CRC-32 that every record has, and that PyTorch does not look at.
fn sums(
    audit: &Audit<'_>,
    name: &str,
    archive: &Archive,
    findings: &mut Findings,
    coverage: &mut Coverage,
) {
    let bytes = || archive.records.iter().map(|record| record.len).sum::<u64>();
    if archive.has_no_sums() {
        coverage.uncheckable += bytes();
        return findings.add(no_sums(name, "it was written with set_crc32_options(False)"));
    }
    if audit.quick {
        coverage.uncheckable += bytes();
        return;
    }
    for record in &archive.records {
        match archive.check(record, |count| audit.read(count)) {
            Ok(Sum::Right) => coverage.checked += record.len,
            Ok(Sum::Wrong { stored, computed }) => findings.add(
                Finding::damage("checksum", format!("{name}:{}", record.name))
                    .expected(format!("CRC-32 {stored:08x}, which the file has for it"))
                    .found(format!("{computed:08x} in its {} bytes", record.len))
                    .remedy("torch.load does not notice it; take an older checkpoint, or a copy"),
            ),
            Err(flaw) => {
                coverage.uncheckable += record.len;
                findings.add(Finding::flaw(
                    format!("{name}:{}", record.name),
                    "a record that is stored as it is",
                    &flaw,
                ));
            }
        }
    }
}

/// Every storage is there and has its size, and every tensor lies in its storage.
fn storages(name: &str, file: &TorchFile, findings: &mut Findings) {
    let pickle = &file.pickle;
    for number in 0..pickle.nodes().len() {
        let id = pickle.id(number);
        let flaw = match pickle.node(id) {
            Node::Persistent(_) => {
                tensors::storage(pickle, id).and_then(|storage| file.storage(&storage)).err()
            }
            Node::Call(_) => match tensors::view(pickle, id) {
                Some(view) => view.and_then(|view| view.check()).err(),
                None => None,
            },
            _ => None,
        };
        if let Some(flaw) = flaw {
            let finding = Finding::flaw(name, "tensors that are in the file", &flaw);
            findings.add(finding.of_kind("tensor"));
        }
    }
}
