//! Files of `torch.save`: zip files since 1.6, and the older row of pickles.

use std::collections::BTreeMap;

use super::Audit;
use super::disk::Span;
use super::flaw::Flaw;
use super::pickle::names::{Standing, judge};
use super::pickle::{Node, Pickle, STREAM_BYTES_MAX};
use super::report::{Coverage, Finding, Findings, Severity};
use super::tensors::{self, Storage};
use super::zip::{Archive, Sum, is_zip};

/// The number that the older format begins with, pickled.
const LEGACY_MAGIC: [u8; 13] =
    [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50];

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

/// Where the storages of a file are.
#[derive(Debug)]
pub(crate) enum Place {
    /// Records `PREFIX/data/KEY` of a zip file.
    Zip { archive: Archive, prefix: String, big_endian: bool },
    /// Behind the pickles of an older file, by key.
    Legacy { span: Span, storages: BTreeMap<String, (u64, u64)> },
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
    let mut head = [0; 16];
    let len = span.len().min(16) as usize;
    span.read(0, &mut head[..len])?;
    let head = &head[..len];
    Ok(if is_zip(span)? {
        Kind::Zip
    } else if head.starts_with(&LEGACY_MAGIC) {
        Kind::Legacy
    } else if head.len() > 1 && head[0] == 0x80 && (2..=5).contains(&head[1]) {
        Kind::Pickle
    } else {
        Kind::Other
    })
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
        let head = span.len().min(LEGACY_HEAD_BYTES);
        let mut bytes = span.bytes(0, head, LEGACY_HEAD_BYTES)?;
        let mut at = 0;
        for _ in 0..3 {
            let pickle = Pickle::read(bytes, at);
            if let Some(flaw) = pickle.flaw() {
                return Err(Flaw::content(format!("one of its first pickles: {flaw}")));
            }
            at = pickle.end();
            bytes = pickle.into_bytes();
        }
        let pickle = Pickle::read(bytes.clone(), at);
        if pickle.flaw().is_some() {
            let storages = BTreeMap::new();
            return Ok(Self { pickle, place: Place::Legacy { span: span.clone(), storages } });
        }
        let keys = Pickle::read(bytes, pickle.end());
        let storages = legacy_storages(span, &pickle, &keys)?;
        Ok(Self { pickle, place: Place::Legacy { span: span.clone(), storages } })
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
            Place::Legacy { span, storages } => {
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

/// Where each storage of an older file is.
fn legacy_storages(
    span: &Span,
    pickle: &Pickle,
    keys: &Pickle,
) -> Result<BTreeMap<String, (u64, u64)>, Flaw> {
    let list = keys.root().and_then(|root| keys.items(root));
    let list = list.ok_or_else(|| Flaw::content("the list of its storages cannot be read"))?;
    let mut sizes = BTreeMap::new();
    for (number, node) in pickle.nodes().iter().enumerate() {
        if matches!(node, Node::Persistent(_)) {
            let storage = tensors::storage(pickle, pickle.id(number))?;
            sizes.insert(storage.key.clone(), storage.bytes()?);
        }
    }
    let mut at = keys.end() as u64;
    let mut storages = BTreeMap::new();
    for key in list {
        let key = keys.text(*key).ok_or_else(|| Flaw::content("a storage without a name"))?;
        let len = *sizes.get(key).ok_or_else(|| {
            Flaw::content(format!("storage {key:?} is there, and nothing refers to it"))
        })?;
        // The number of elements stands before the bytes.
        span.part(at, 8)?;
        span.part(at + 8, len)?;
        storages.insert(key.to_owned(), (at + 8, len));
        at += 8 + len;
    }
    Ok(storages)
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
    let file = match TorchFile::open(span) {
        Ok(file) => file,
        Err(flaw) => {
            findings.add(flawed(&flaw));
            return None;
        }
    };
    names_of(audit, name, &file.pickle, findings);
    match &file.place {
        Place::Zip { archive, prefix, .. } => {
            other_pickles(audit, name, archive, prefix, findings);
            sums(audit, name, archive, findings, coverage);
        }
        Place::Legacy { .. } => {
            coverage.uncheckable += span.len();
            findings.add(no_sums(name, "files of this older format have no checksums"));
        }
    }
    storages(name, &file, findings);
    file.pickle.root()?;
    Some(file)
}

fn bare_pickle(audit: &Audit<'_>, name: &str, span: &Span, findings: &mut Findings) {
    match span.all(STREAM_BYTES_MAX) {
        Ok(bytes) => names_of(audit, name, &Pickle::read(bytes, 0), findings),
        Err(flaw) => findings.add(Finding::flaw(name, "a pickle", &flaw)),
    }
}

/// Reports every name that loading a pickle would import and that has no place there.
pub(crate) fn names_of(audit: &Audit<'_>, object: &str, pickle: &Pickle, findings: &mut Findings) {
    /// Names of a trainer's classes that are told.
    const CLASSES_TOLD: usize = 3;
    let mut classes = Vec::new();
    for name in pickle.names() {
        if name.full() == "builtins.getattr" && !pickle.is_called(name) {
            continue;
        }
        let (kind, severity, why) = match judge(name, audit.allowed) {
            Standing::Usual => continue,
            Standing::Framework => {
                classes.push(name.full());
                continue;
            }
            Standing::Unknown => {
                ("pickled-code", Severity::Danger, "it is on no list of plain data")
            }
            Standing::Dangerous => ("pickled-danger", Severity::Danger, "it can run anything"),
        };
        findings.add(
            Finding::new(severity, kind, object)
                .expected("names that checkpoints are made of")
                .found(format!("loading it would import {}: {why}", name.full()))
                .remedy(match kind {
                    "pickled-code" => format!(
                        "do not load it unless you know who wrote it; --allow {} if it is yours",
                        name.full()
                    ),
                    _ => "do not load it".to_owned(),
                }),
        );
    }
    if !classes.is_empty() {
        let count = classes.len();
        classes.truncate(CLASSES_TOLD);
        findings.add(
            Finding::note("pickled-class", object)
                .expected("plain data and tensors")
                .found(format!("{count} classes of a trainer, such as {}", classes.join(", ")))
                .remedy("torch.load needs weights_only=False for it"),
        );
    }
    for what in pickle.opaque() {
        findings.add(
            Finding::new(Severity::Danger, "pickled-danger", object)
                .expected("names that stand in the file")
                .found(*what)
                .remedy("do not load it"),
        );
    }
    if let Some(flaw) = pickle.flaw() {
        let flaw = match pickle.is_too_large() {
            true => Flaw::limit(flaw),
            false => Flaw::content(format!("its pickle, {flaw}")),
        };
        findings.add(Finding::flaw(object, "a whole pickle", &flaw));
    }
}

/// Pickles of a zip file that are not the one that `torch.load` takes first; TorchScript has some.
fn other_pickles(
    audit: &Audit<'_>,
    name: &str,
    archive: &Archive,
    prefix: &str,
    findings: &mut Findings,
) {
    if let Some(twice) = archive.duplicate() {
        findings.add(
            Finding::new(Severity::Danger, "pickled-danger", name)
                .expected("one record of each name")
                .found(format!(
                    "two of the name {twice:?}: which one is read depends on the reader"
                ))
                .remedy("do not load it"),
        );
    }
    let main = format!("{prefix}/data.pkl");
    for record in &archive.records {
        if record.name.starts_with(&format!("{prefix}/code/")) {
            findings.add(
                Finding::note("torchscript", name)
                    .expected("tensors")
                    .found(format!("a program: {:?}", record.name))
                    .remedy("torch.jit.load runs it"),
            );
            break;
        }
    }
    for record in archive.records.iter().filter(|r| r.name.ends_with(".pkl")) {
        if record.name == main && archive.duplicate().is_none() {
            continue;
        }
        let object = format!("{name}:{}", record.name);
        match archive.open_record(record).and_then(|span| span.all(STREAM_BYTES_MAX)) {
            Ok(bytes) => names_of(audit, &object, &Pickle::read(bytes, 0), findings),
            Err(flaw) => findings.add(Finding::flaw(object, "a pickle", &flaw)),
        }
    }
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
