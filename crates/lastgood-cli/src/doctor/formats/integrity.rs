//! `integrity.json`, which newer Megatron leaves with `--verify-integrity`: the SHA-256 of every other file.

use std::fmt::Write as _;
use std::path::Path;

use ring::digest::{Context, SHA256};
use serde_json::Value;

use super::files;
use crate::doctor::Audit;
use crate::doctor::discover::Folder;
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::report::{Coverage, Finding, Findings};

pub(super) const NAME: &str = "integrity.json";

/// Checks every file that it names. What it proves of files for which nothing else does counts as proven.
pub(super) fn audit(
    audit: &Audit<'_>,
    root: &Path,
    folder: &Folder,
    findings: &mut Findings,
    coverage: &mut Coverage,
) {
    let Some(value) = files::json(root, NAME, findings) else { return };
    let algorithm = value.get("algorithm").and_then(Value::as_str);
    let listed = value.get("files").and_then(Value::as_object);
    let (Some("sha256"), Some(listed)) = (algorithm, listed) else {
        return findings.add(Finding::flaw(
            NAME,
            "the SHA-256 of each file",
            &Flaw::limit("another algorithm, or no list of files"),
        ));
    };
    // Of what it does not name it proves nothing.
    let is_named = |file: &String| file == NAME || listed.contains_key(file);
    let mut all_right = !audit.quick && folder.files.iter().all(is_named);
    for (name, expected) in listed {
        let (true, Some(expected)) = (files::is_beside(name), expected.as_str()) else {
            all_right = false;
            findings.add(
                Finding::damage("unreadable", NAME)
                    .expected("names of files beside it, each with its SHA-256")
                    .found(format!("{name:?}"))
                    .remedy("do not load it"),
            );
            continue;
        };
        let Some(span) = files::open(root, name, findings) else {
            all_right = false;
            continue;
        };
        if audit.quick {
            continue;
        }
        match sha256(&span) {
            Ok(found) if found == expected => {}
            Ok(found) => {
                all_right = false;
                findings.add(
                    Finding::damage("checksum", name)
                        .expected(format!("SHA-256 {expected}, which {NAME} has for it"))
                        .found(found)
                        .remedy("Megatron notices it with --verify-integrity only; take an older iteration"),
                );
            }
            Err(flaw) => {
                all_right = false;
                findings.add(Finding::flaw(name, "a file that can be read", &flaw));
            }
        }
    }
    if all_right {
        coverage.checked += coverage.uncheckable;
        coverage.uncheckable = 0;
    }
}

fn sha256(span: &Span) -> Result<String, Flaw> {
    let mut context = Context::new(&SHA256);
    span.each_block(|block| context.update(block))?;
    let mut text = String::new();
    for byte in context.finish().as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}
