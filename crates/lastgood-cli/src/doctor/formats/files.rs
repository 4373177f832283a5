//! Single files, alone or as a part of a checkpoint.

use std::path::Path;

use super::{Format, lightning, safetensors};
use crate::doctor::Audit;
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::report::{Checkpoint, Coverage, Finding, Findings};
use crate::doctor::torch::{self, TorchFile};

/// The largest JSON file that is read: an index of half a million tensors.
pub(super) const JSON_BYTES_MAX: u64 = 64 << 20;
/// The largest file that holds one name or number.
pub(super) const TRACKER_BYTES_MAX: u64 = 4096;

/// True for the name of a file beside the one that names it, and not of one somewhere else.
pub(super) fn is_beside(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\']) && name != ".."
}

/// A table or an index that names what is not beside it.
pub(super) fn not_beside(table: impl AsRef<str>, name: &str) -> Finding {
    Finding::damage("unreadable", table)
        .expected("names of files beside it")
        .found(format!("{name:?}"))
        .remedy("do not load it")
}

/// Opens a file of a checkpoint, and reports it if it is missing or empty.
pub(super) fn open(root: &Path, name: &str, findings: &mut Findings) -> Option<Span> {
    open_in(root, "", name, findings)
}

/// The same of a file in a folder that is at `prefix` below its checkpoint.
pub(super) fn open_in(
    root: &Path,
    prefix: &str,
    name: &str,
    findings: &mut Findings,
) -> Option<Span> {
    let object = format!("{prefix}{name}");
    match Span::open(&root.join(name)) {
        Ok(span) if span.len() == 0 => {
            findings.add(
                Finding::damage("empty", object)
                    .expected("a file with something in it")
                    .found("0 bytes")
                    .remedy("the machine died before it was written out; take an older checkpoint"),
            );
            None
        }
        Ok(span) => Some(span),
        Err(flaw) if !root.join(name).exists() => {
            findings.add(
                Finding::damage("missing", object)
                    .expected("a file")
                    .found(format!("{flaw}"))
                    .remedy("the checkpoint is not whole; take an older one"),
            );
            None
        }
        Err(flaw) => {
            findings.add(Finding::flaw(object, "a file that can be read", &flaw));
            None
        }
    }
}

/// Looks at a file of `torch.save` of a checkpoint.
pub(super) fn torch(
    audit: &Audit<'_>,
    checkpoint: &mut Checkpoint,
    name: &str,
) -> Option<TorchFile> {
    let Checkpoint { path, findings, coverage, .. } = checkpoint;
    torch_in(audit, path, name, findings, coverage)
}

pub(super) fn torch_in(
    audit: &Audit<'_>,
    root: &Path,
    name: &str,
    findings: &mut Findings,
    coverage: &mut Coverage,
) -> Option<TorchFile> {
    let span = open(root, name, findings)?;
    torch::audit(audit, name, &span, findings, coverage)
}

/// A JSON file of a checkpoint.
pub(super) fn json(root: &Path, name: &str, findings: &mut Findings) -> Option<serde_json::Value> {
    let span = open(root, name, findings)?;
    match span.all(JSON_BYTES_MAX).and_then(|bytes| parse(&bytes)) {
        Ok(value) => Some(value),
        Err(flaw) => {
            findings.add(Finding::flaw(name, "JSON", &flaw));
            None
        }
    }
}

/// JSON as Python writes and reads it: a loss that is `NaN` or `Infinity` stands there as it is.
fn parse(bytes: &[u8]) -> Result<serde_json::Value, Flaw> {
    serde_json::from_slice(bytes).or_else(|error| {
        serde_json::from_slice(&without_odd_numbers(bytes))
            .map_err(|_| Flaw::content(format!("it is no JSON: {error}")))
    })
}

/// `null` in place of the numbers that JSON does not have.
fn without_odd_numbers(bytes: &[u8]) -> Vec<u8> {
    let mut cleaned = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    let mut in_text = false;
    while let Some(byte) = rest.first() {
        let odd =
            ["NaN", "Infinity", "-Infinity"].iter().find(|odd| rest.starts_with(odd.as_bytes()));
        let len = match odd {
            Some(odd) if !in_text => {
                cleaned.extend(b"null");
                rest = &rest[odd.len()..];
                continue;
            }
            _ if in_text && *byte == b'\\' => rest.len().min(2),
            _ => 1,
        };
        in_text ^= *byte == b'"';
        cleaned.extend(&rest[..len]);
        rest = &rest[len..];
    }
    cleaned
}

/// Looks at a checkpoint that is one file.
pub(super) fn audit(audit: &Audit<'_>, format: Format, checkpoint: &mut Checkpoint) {
    let path = checkpoint.path.clone();
    let (Some(root), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return;
    };
    checkpoint.step = lightning::step_in_name(name);
    let Checkpoint { findings, coverage, .. } = checkpoint;
    if format == Format::Safetensors {
        if let Some(span) = open(root, name, findings) {
            safetensors::audit_file(name, &span, findings, coverage);
        }
        return;
    }
    if let Some(file) = torch_in(audit, root, name, findings, coverage) {
        lightning::audit(&file, name, checkpoint);
    }
}

#[cfg(test)]
mod tests;
