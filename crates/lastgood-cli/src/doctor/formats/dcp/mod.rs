//! PyTorch's distributed checkpoints: `.metadata`, and `.distcp` files in which each chunk of a tensor is a
//! file of `torch.save` of its own.
//!
//! `torch.distributed.checkpoint` checks neither that the chunks of a tensor cover it, nor the CRC-32 that
//! `torch.save` gives each of them.

mod metadata;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lastgood_format::layout::{NdBox, check_disjoint};
pub(crate) use metadata::{Item, Metadata, Tensor};

use super::files;
use crate::doctor::Audit;
use crate::doctor::discover::Folder;
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::report::{Checkpoint, Coverage, Finding, Findings};
use crate::doctor::{tensors, torch};

/// The commit mark, and the table of everything.
pub(crate) const METADATA: &str = ".metadata";
/// Above that many parts that are cut along several dimensions, overlaps are not looked for.
const PARTS_MAX: usize = 1000;
/// How much newer than `.metadata` a file is that it should be older than.
const CLOCK_SLACK_S: u64 = 2;

pub(super) fn audit(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    checkpoint.step = checkpoint.path.file_name().and_then(|n| n.to_str()).and_then(step_in_name);
    let Checkpoint { path, findings, coverage, .. } = checkpoint;
    audit_folder(audit, path, "", folder, findings, coverage);
    // Lightning keeps what is no tensor beside it.
    for name in ["meta.pt", "common.pt"].iter().filter(|name| folder.has(name)) {
        files::torch(audit, checkpoint, name);
    }
}

/// The number at the end of `step-100`, `checkpoint_100` or `100`.
pub(super) fn step_in_name(name: &str) -> Option<u64> {
    name.rsplit(['-', '_', '=']).next()?.parse().ok()
}

/// Checks one folder of DCP; `prefix` is where it is below its checkpoint, with a slash, or nothing.
pub(crate) fn audit_folder(
    audit: &Audit<'_>,
    path: &Path,
    prefix: &str,
    folder: &Folder,
    findings: &mut Findings,
    coverage: &mut Coverage,
) {
    let named = |name: &str| format!("{prefix}{name}");
    if folder.has(".metadata.tmp") {
        findings.add(
            Finding::note("unfinished-save", named(".metadata.tmp"))
                .expected("no temporary file")
                .found("one: a save into this folder was interrupted or is under way")
                .remedy("save into a folder of its own each time"),
        );
    }
    if !folder.has(METADATA) {
        return findings.add(
            Finding::damage("uncommitted", named(METADATA))
                .expected("the table of the checkpoint, which is written last")
                .found("it is not there: the save was not finished")
                .remedy("take an older checkpoint"),
        );
    }
    let Some(span) = files::open(path, METADATA, findings) else { return };
    let (pickle, metadata) = match Metadata::read(&span) {
        Ok(read) => read,
        Err(flaw) => return findings.add(Finding::flaw(named(METADATA), "DCP's table", &flaw)),
    };
    coverage.uncheckable += span.len();
    torch::names_of(audit, &named(METADATA), &pickle, findings);
    drop(pickle);
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(flaw) => return findings.add(Finding::flaw(named(METADATA), "DCP's table", &flaw)),
    };
    tables(&metadata, findings);
    let mut payload = Payload { audit, path, prefix, folder, metadata: &metadata };
    payload.check(findings, coverage);
    payload.check_times(&span, findings);
}

/// What the table says, compared with itself.
fn tables(metadata: &Metadata, findings: &mut Findings) {
    const REMEDY: &str = "dcp.load leaves the gap as it is in memory, and says nothing";
    for tensor in &metadata.tensors {
        if let Some(what) = gap(&tensor.shape, &tensor.chunks) {
            findings.add(
                Finding::damage("coverage", &tensor.name)
                    .expected(format!("chunks that cover {:?}", tensor.shape))
                    .found(what)
                    .remedy(REMEDY),
            );
        }
        for chunk in &tensor.chunks {
            let stored = metadata.item(&tensor.name, &chunk.offsets).is_some();
            if !stored && chunk.elements() != Some(0) {
                findings.add(
                    Finding::damage("missing-chunk", &tensor.name)
                        .expected(format!("stored bytes of the chunk at {:?}", chunk.offsets))
                        .found("none: the thread that should have written them failed")
                        .remedy("dcp.load fails with a KeyError; take an older checkpoint"),
                );
            }
        }
    }
    for name in metadata.objects.iter().filter(|name| metadata.object(name).is_none()) {
        findings.add(
            Finding::damage("missing-chunk", name)
                .expected("stored bytes of this object")
                .found("none")
                .remedy("dcp.load fails with a KeyError; take an older checkpoint"),
        );
    }
}

/// A hole in, or an overlap of, the parts of a tensor.
pub(crate) fn gap(shape: &[u64], parts: &[NdBox]) -> Option<String> {
    let whole = NdBox::whole(shape);
    if let Some(out) = parts.iter().find(|part| !part.is_inside(shape)) {
        return Some(format!("the one at {:?} sticks out", out.offsets));
    }
    let Some(expected) = whole.elements() else { return Some("a size that overflows".to_owned()) };
    let found: u128 =
        parts.iter().map(|part| part.elements().map_or(u128::MAX >> 64, u128::from)).sum();
    if found != u128::from(expected) {
        return Some(format!("{found} of {expected} elements"));
    }
    let starts = |d: usize| parts.iter().map(|part| part.offsets[d]).collect::<BTreeSet<_>>().len();
    let one_axis = (0..shape.len()).any(|d| starts(d) == parts.len());
    match one_axis || parts.len() <= PARTS_MAX {
        true => check_disjoint(parts).err().map(|error| error.message().to_owned()),
        false => None,
    }
}

/// The files that the table tells of.
struct Payload<'a> {
    audit: &'a Audit<'a>,
    path: &'a Path,
    prefix: &'a str,
    folder: &'a Folder,
    metadata: &'a Metadata,
}

impl Payload<'_> {
    fn check(&mut self, findings: &mut Findings, coverage: &mut Coverage) {
        for (file, items) in self.metadata.by_file() {
            let object = format!("{}{file}", self.prefix);
            if file.contains(['/', '\\']) || file == ".." || file.is_empty() {
                findings.add(
                    Finding::damage("unreadable", METADATA)
                        .expected("names of files beside it")
                        .found(format!("{file:?}"))
                        .remedy("do not load it"),
                );
                continue;
            }
            if !self.folder.has(file) {
                findings.add(
                    Finding::damage("missing-shard", object)
                        .expected(format!("a file with {} items", items.len()))
                        .found("it is not there")
                        .remedy("the checkpoint is not whole; take an older one"),
                );
                continue;
            }
            let Some(span) = files::open(self.path, file, findings) else { continue };
            self.check_file(&object, &span, &items, findings, coverage);
        }
        let named: BTreeSet<&str> = self.metadata.by_file().into_keys().collect();
        let distcp = |file: &&String| file.ends_with(".distcp") && !named.contains(file.as_str());
        for file in self.folder.files.iter().filter(distcp) {
            findings.add(
                Finding::note("leftover", format!("{}{file}", self.prefix))
                    .expected("files that the table names")
                    .found("one that it does not: of another save into this folder")
                    .remedy("save into a folder of its own each time"),
            );
        }
    }

    fn check_file(
        &self,
        object: &str,
        span: &Span,
        items: &[(&str, Option<&[u64]>, &Item)],
        findings: &mut Findings,
        coverage: &mut Coverage,
    ) {
        let mut free = 0;
        for (name, offsets, item) in items {
            let about = format!("{name} in {object}");
            // Items that overlap could be millions of readings of one file.
            if item.offset < free {
                findings.add(
                    Finding::damage("overlap", about)
                        .expected("items one behind the other")
                        .found(format!("one at {} where another ends at {free}", item.offset))
                        .remedy("table and file are of different saves"),
                );
                continue;
            }
            free = item.offset.saturating_add(item.len);
            match span.part(item.offset, item.len) {
                Ok(part) => {
                    self.check_item(&about, name, *offsets, item, &part, findings, coverage)
                }
                Err(flaw) => findings.add(
                    Finding::flaw(about, "bytes that are in the file", &flaw).of_kind("truncated"),
                ),
            }
        }
        if free < span.len() {
            findings.add(
                Finding::doubt("torn", object)
                    .expected(format!("{free} bytes, where the last item of the table ends"))
                    .found(format!("{} bytes", span.len()))
                    .remedy("table and file may be of different saves"),
            );
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one item: what it is called, where it is, its bytes"
    )]
    fn check_item(
        &self,
        about: &str,
        name: &str,
        offsets: Option<&[u64]>,
        item: &Item,
        part: &Span,
        findings: &mut Findings,
        coverage: &mut Coverage,
    ) {
        let tensor = self.metadata.tensor(name);
        let known = !item.transformed && matches!(torch::kind(part), Ok(torch::Kind::Zip));
        if !known && tensor.is_some() && item.transformed {
            coverage.uncheckable += part.len();
            return findings.add(
                Finding::note("not-read", about)
                    .expected("bytes of torch.save")
                    .found("bytes that an extension has changed, such as compressed")
                    .remedy("they cannot be checked here"),
            );
        }
        let file = torch::audit(self.audit, about, part, findings, coverage);
        let (Some(file), Some(tensor), Some(offsets)) = (file, tensor, offsets) else { return };
        let chunk = tensor.chunk(offsets);
        let root = file.pickle.root().and_then(|root| tensors::view(&file.pickle, root));
        let said = match root {
            Some(Ok(view)) => Ok((view.dtype, view.shape)),
            Some(Err(flaw)) => Err(flaw),
            None => Err(Flaw::content("it is no tensor")),
        };
        let Some(chunk) = chunk else { return };
        match said {
            Ok((dtype, shape)) if shape == chunk.sizes && dtype == tensor.dtype => {}
            Ok((dtype, shape)) => findings.add(
                Finding::damage("torn", about)
                    .expected(format!("{} {:?}, as the table says", tensor.dtype, chunk.sizes))
                    .found(format!("{dtype} {shape:?}"))
                    .remedy("table and file are of different saves; take an older checkpoint"),
            ),
            Err(flaw) => findings.add(Finding::flaw(about, "a tensor", &flaw)),
        }
    }

    /// `.metadata` is written when all else is. A file that is newer was written by a later save that did
    /// not get so far.
    fn check_times(&self, metadata: &Span, findings: &mut Findings) {
        let Some(committed) = metadata.modified() else { return };
        let mut newer = Vec::new();
        let mut older = 0;
        for file in self.metadata.by_file().into_keys().filter(|file| self.folder.has(file)) {
            let Ok(span) = Span::open(&self.path.join(file)) else { continue };
            let after = span.modified().and_then(|time| time.duration_since(committed).ok());
            match after.is_some_and(|by| by.as_secs() >= CLOCK_SLACK_S) {
                true => newer.push(file.to_owned()),
                false => older += 1,
            }
        }
        let Some(first) = newer.first() else { return };
        findings.add(
            Finding::doubt("torn", format!("{}{first}", self.prefix))
                .expected("data that is older than .metadata, which is written last")
                .found(format!(
                    "{} of {} files are newer (only by the time of change: a copy does that too)",
                    newer.len(),
                    newer.len() + older
                ))
                .remedy("if nobody copied it, a later save into this folder was cut off: do not load it"),
        );
    }
}

/// The chunks of a tensor by where they are.
pub(crate) type Items<'m> = BTreeMap<&'m str, Vec<(&'m str, Option<&'m [u64]>, &'m Item)>>;
