//! PyTorch's distributed checkpoints: `.metadata`, and `.distcp` files in which each chunk of a tensor is a
//! file of `torch.save` of its own.
//!
//! `torch.distributed.checkpoint` checks neither that the chunks of a tensor cover it, nor the CRC-32 that
//! `torch.save` gives each of them.

mod metadata;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::Path;

use lastgood_format::layout::{NdBox, check_disjoint};
pub(crate) use metadata::{Item, Metadata, Tensor};

use super::files;
use crate::doctor::Audit;
use crate::doctor::discover::{Folder, number_behind};
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::pickle::Node;
use crate::doctor::report::{Checkpoint, Coverage, Finding, Findings};
use crate::doctor::{tensors, torch};

/// The commit mark, and the table of everything.
pub(crate) const METADATA: &str = ".metadata";
/// Pairs of parts of all tensors that are looked at for overlaps.
pub(crate) const PAIRS_MAX: u64 = 50_000_000;
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

/// The number at the end of `step-100`, `checkpoint_100`, `100`, or of Lightning's `epoch=1-step=100.ckpt`.
fn step_in_name(name: &str) -> Option<u64> {
    let name = name.strip_suffix(".ckpt").unwrap_or(name);
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
    let ranks: BTreeSet<u64> = folder.files.iter().filter_map(|file| rank_of_table(file)).collect();
    let names: Vec<String> = match folder.has(METADATA) {
        true => vec![METADATA.to_owned()],
        false => ranks.iter().map(|rank| format!("__{rank}{METADATA}")).collect(),
    };
    if names.is_empty() {
        return findings.add(uncommitted(named(METADATA)));
    }
    let mut told = BTreeSet::new();
    for name in &names {
        let Some((metadata, span)) = table(audit, path, prefix, name, findings, coverage) else {
            return;
        };
        compare(&metadata, findings);
        let payload = Payload { audit, path, prefix, folder, metadata: &metadata };
        payload.check(findings, coverage);
        payload.check_times(&span, findings);
        told.extend(metadata.by_file().into_keys().map(str::to_owned));
    }
    for file in
        folder.files.iter().filter(|file| file.ends_with(".distcp") && !told.contains(*file))
    {
        match rank_of_data(file).filter(|_| !folder.has(METADATA)) {
            Some(rank) if !ranks.contains(&rank) => {
                findings.add(uncommitted(named(&format!("__{rank}{METADATA}"))));
            }
            _ => findings.add(
                Finding::note("leftover", named(file))
                    .expected("files that the table names")
                    .found("one that it does not: of another save into this folder")
                    .remedy("save into a folder of its own each time"),
            ),
        }
    }
}

/// The rank whose own table `__N.metadata` is: each rank leaves one with `use_collectives=False`.
fn rank_of_table(file: &str) -> Option<u64> {
    number_behind(file.strip_suffix(METADATA)?, "__")
}

/// The rank that wrote `__N_M.distcp`.
fn rank_of_data(file: &str) -> Option<u64> {
    number_behind(file.rsplit_once('_')?.0, "__")
}

fn uncommitted(table: String) -> Finding {
    Finding::damage("uncommitted", table)
        .expected("the table of the checkpoint, which is written last")
        .found("it is not there: the save was not finished")
        .remedy("take an older checkpoint")
}

/// The table called `name`, and its file.
fn table(
    audit: &Audit<'_>,
    path: &Path,
    prefix: &str,
    name: &str,
    findings: &mut Findings,
    coverage: &mut Coverage,
) -> Option<(Metadata, Span)> {
    let object = format!("{prefix}{name}");
    let span = files::open_in(path, prefix, name, findings)?;
    coverage.uncheckable += span.len();
    let read = Metadata::read(&span).and_then(|(pickle, metadata)| {
        torch::names_of(audit, &object, &pickle, findings);
        metadata
    });
    match read {
        Ok(metadata) => Some((metadata, span)),
        Err(flaw) => {
            findings.add(Finding::flaw(object, "DCP's table", &flaw));
            None
        }
    }
}

/// What the table says, compared with itself.
fn compare(metadata: &Metadata, findings: &mut Findings) {
    let mut pairs = PAIRS_MAX;
    for tensor in &metadata.tensors {
        if let Some(flaw) = gap(&tensor.shape, &tensor.chunks, &mut pairs) {
            let expected = format!("chunks that cover {:?}", tensor.shape);
            findings.add(hole(&tensor.name, &expected, &flaw, "dcp.load"));
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

/// What parts that do not cover a tensor are as a finding; `reader` is what loads it.
pub(crate) fn hole(tensor: &str, expected: &str, flaw: &Flaw, reader: &str) -> Finding {
    match flaw {
        Flaw::Content(found) => Finding::damage("coverage", tensor)
            .expected(expected)
            .found(found)
            .remedy(format!("{reader} leaves the gap as it is in memory, and says nothing")),
        flaw => Finding::flaw(tensor, expected, flaw),
    }
}

/// True if it begins with nothing but zeros, which no compressor writes.
fn is_zeros(part: &Span) -> bool {
    const HEAD_BYTES: u64 = 512;
    let head = part.bytes(0, part.len().min(HEAD_BYTES), HEAD_BYTES);
    head.is_ok_and(|head| head.iter().all(|byte| *byte == 0))
}

/// A hole in, or an overlap of, the parts of a tensor; `pairs` is how many pairs may still be looked at.
pub(crate) fn gap(shape: &[u64], parts: &[NdBox], pairs: &mut u64) -> Option<Flaw> {
    if let Some(out) = parts.iter().find(|part| !part.is_inside(shape)) {
        return Some(Flaw::content(format!("the one at {:?} sticks out", out.offsets)));
    }
    let Some(expected) = NdBox::whole(shape).elements() else {
        return Some(Flaw::content("a size that overflows"));
    };
    let found: u128 =
        parts.iter().map(|part| part.elements().map_or(u128::MAX >> 64, u128::from)).sum();
    if found != u128::from(expected) {
        return Some(Flaw::content(format!("{found} of {expected} elements")));
    }
    let Some(left) = pairs.checked_sub(pairs_of(shape.len(), parts)) else {
        return Some(Flaw::limit("parts that are cut so that overlaps are not looked for"));
    };
    *pairs = left;
    check_disjoint(parts).err().map(|error| Flaw::content(error.message()))
}

/// How many pairs of parts `check_disjoint` compares: those that meet along the axis with the most starts.
fn pairs_of(dims: usize, parts: &[NdBox]) -> u64 {
    let along = |d: usize| {
        let mut order: Vec<(u64, u64)> =
            parts.iter().map(|part| (part.offsets[d], part.offsets[d] + part.sizes[d])).collect();
        order.sort_unstable();
        let (mut starts, mut pairs, mut last) = (0u64, 0, None);
        let mut ends = BinaryHeap::new();
        for (begin, end) in order {
            while ends.peek().is_some_and(|Reverse(end)| *end <= begin) {
                ends.pop();
            }
            pairs += ends.len() as u64;
            ends.push(Reverse(end));
            starts += u64::from(last.replace(begin) != Some(begin));
        }
        (starts, pairs)
    };
    (0..dims).map(along).max().map_or(0, |(_, pairs)| pairs)
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
    fn check(&self, findings: &mut Findings, coverage: &mut Coverage) {
        for (file, items) in self.metadata.by_file() {
            let object = format!("{}{file}", self.prefix);
            if !files::is_beside(file) {
                findings.add(files::not_beside(format!("{}{METADATA}", self.prefix), file));
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
            let Some(span) = files::open_in(self.path, self.prefix, file, findings) else {
                continue;
            };
            self.check_file(&object, &span, &items, findings, coverage);
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
        if item.transformed && is_zeros(part) {
            let flaw = Flaw::content("zeros: the machine died before it was written out");
            return findings.add(Finding::flaw(
                about,
                "bytes that an extension has changed",
                &flaw,
            ));
        }
        if item.transformed {
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
        let root = file.pickle.root();
        let is_call = root.is_some_and(|root| matches!(file.pickle.node(root), Node::Call(_)));
        let root = root.and_then(|root| tensors::view(&file.pickle, root));
        let said = match root {
            Some(Ok(view)) => Ok((view.dtype, view.shape)),
            Some(Err(flaw)) => Err(flaw),
            // Quantized ones, and classes that are made of tensors.
            None if is_call => Err(Flaw::limit("a tensor of a kind that is not known here")),
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

#[cfg(test)]
mod tests;
