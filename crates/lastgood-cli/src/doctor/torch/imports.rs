//! What loading the pickles of a file would import.

use super::{LEGACY_PICKLES, legacy_head};
use crate::doctor::Audit;
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::pickle::names::{Standing, judge};
use crate::doctor::pickle::{Pickle, STREAM_BYTES_MAX};
use crate::doctor::report::{Finding, Findings, Severity};
use crate::doctor::zip::Archive;

/// Pickles in one file that are looked at.
const PICKLES_MAX: usize = 10_000;

/// A file of pickles that `torch.save` did not write. Whoever loads it may load one of them, or all.
pub(super) fn bare_pickle(audit: &Audit<'_>, name: &str, span: &Span, findings: &mut Findings) {
    let mut bytes = match span.all(STREAM_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(flaw) => return findings.add(Finding::flaw(name, "a pickle", &flaw)),
    };
    let mut at = 0;
    for number in 0..PICKLES_MAX {
        let pickle = Pickle::read(bytes, at);
        if number == 0 {
            names_of(audit, name, &pickle, findings);
        } else {
            imports_of(audit, name, &pickle, findings);
        }
        if pickle.root().is_none() {
            match number {
                0 => return,
                _ => break,
            }
        }
        at = pickle.end();
        bytes = pickle.into_bytes();
        if at == bytes.len() {
            return;
        }
    }
    let flaw = Flaw::limit(format!("behind byte {at} stands something else, or more than is read"));
    findings.add(Finding::flaw(name, "a pickle, or several", &flaw));
}

/// What loading the pickles that an older file begins with would import.
pub(super) fn legacy_imports(audit: &Audit<'_>, name: &str, span: &Span, findings: &mut Findings) {
    // If it cannot be read, opening the file says so.
    let Ok((mut bytes, _)) = legacy_head(span) else { return };
    let mut at = 0;
    for _ in 0..LEGACY_PICKLES {
        let pickle = Pickle::read(bytes, at);
        imports_of(audit, name, &pickle, findings);
        if pickle.root().is_none() {
            return;
        }
        at = pickle.end();
        bytes = pickle.into_bytes();
    }
}

/// Reports every name that loading a pickle would import and that has no place there, and why it cannot be
/// read to its end.
pub(crate) fn names_of(audit: &Audit<'_>, object: &str, pickle: &Pickle, findings: &mut Findings) {
    imports_of(audit, object, pickle, findings);
    if let Some(flaw) = pickle.flaw() {
        let flaw = match pickle.is_too_large() {
            true => Flaw::limit(flaw),
            false => Flaw::content(format!("its pickle, {flaw}")),
        };
        findings.add(Finding::flaw(object, "a whole pickle", &flaw));
    }
}

fn imports_of(audit: &Audit<'_>, object: &str, pickle: &Pickle, findings: &mut Findings) {
    let mut classes = Vec::new();
    for name in pickle.names() {
        // `getattr(name, "member")` is a name of its own.
        if name.is_getattr() && !pickle.is_used(name) {
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
    findings.add_classes(object, classes);
    for what in pickle.opaque() {
        findings.add(
            Finding::new(Severity::Danger, "pickled-danger", object)
                .expected("names that stand in the file")
                .found(*what)
                .remedy("do not load it"),
        );
    }
}

/// Pickles of a zip file that are not the one that `torch.load` takes first; TorchScript has some.
pub(super) fn other_pickles(
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
