//! Error codes have pages, and documentation says which kind a caller gets.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};

use super::Findings;
use crate::{markdown, repo};

const SOURCE: &str = "crates/lastgood-format/src/error.rs";

/// Files whose errors are those of the operating system or of anyhow, which have no kind of ours.
const FOREIGN_ERRORS: &[&str] =
    &["crates/lastgood-cli", "crates/lastgood-chaos", "crates/lastgood-store/src/disk.rs"];

/// Every code with the name of its kind.
pub(crate) struct Kind {
    pub(crate) variant: String,
    pub(crate) code: String,
}

/// The kinds of errors, read from the source.
pub(crate) fn kinds() -> Result<Vec<Kind>> {
    let source = repo::read(SOURCE)?;
    let kinds: Vec<Kind> = source.lines().filter_map(code_arm).collect();
    ensure!(!kinds.is_empty(), "{SOURCE} names no code");
    Ok(kinds)
}

/// A line like `Self::Invalid => "LG001",`.
fn code_arm(line: &str) -> Option<Kind> {
    let (variant, code) = line.trim().strip_prefix("Self::")?.split_once(" => \"LG")?;
    let digits = code.strip_suffix("\",")?;
    Some(Kind { variant: variant.into(), code: format!("LG{digits}") })
}

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    let kinds = kinds()?;
    check_pages(&kinds, findings);
    let names: Vec<String> = kinds.iter().map(|kind| format!("`{}`", kind.variant)).collect();
    let ours = |path: &&std::path::PathBuf| {
        path.starts_with("crates") && !FOREIGN_ERRORS.iter().any(|other| path.starts_with(other))
    };
    for path in repo::files("rs")?.iter().filter(ours) {
        for (line, section) in error_sections(&repo::read(path)?) {
            // A link takes the kinds over from what it links to.
            let named = section.contains("[`") || names.iter().any(|name| section.contains(name));
            if !named {
                findings.error(path, line, "`# Errors` names no kind of error");
            }
        }
    }
    Ok(())
}

fn check_pages(kinds: &[Kind], findings: &mut Findings) {
    for kind in kinds {
        let path = format!("docs/errors/{}.md", kind.code);
        let Ok(page) = repo::read(&path) else {
            findings.error(&path, 0, "the page of this code does not exist");
            continue;
        };
        let title = format!("# {}: {}", kind.code, kind.variant);
        if page.lines().next() != Some(title.as_str()) {
            findings.error(&path, 1, format!("the page begins with `{title}`"));
        }
        let headings: BTreeSet<&str> =
            markdown::prose(&page).filter_map(|(_, line)| line.strip_prefix("## ")).collect();
        for part in ["What happened", "What is safe", "What to do", "Exit code"] {
            if !headings.contains(part) {
                findings.error(&path, 0, format!("the page has no part `## {part}`"));
            }
        }
    }
    let known = |path: &Path| {
        path.file_stem().is_some_and(|stem| kinds.iter().any(|kind| stem == kind.code.as_str()))
    };
    let pages = repo::files("md").unwrap_or_default();
    for page in pages.iter().filter(|page| page.starts_with("docs/errors") && !known(page)) {
        findings.error(page, 0, "no error has this code");
    }
}

/// The `# Errors` sections of a source file, each with its line.
fn error_sections(source: &str) -> Vec<(usize, String)> {
    let mut sections: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (line, text) in (1..).zip(source.lines()) {
        let comment = text.trim().strip_prefix("///").or(text.trim().strip_prefix("//!"));
        match comment.map(str::trim) {
            Some("# Errors") => {
                sections.push((line, String::new()));
                open = true;
            }
            Some(comment) if !comment.starts_with('#') && open => {
                if let Some((_, section)) = sections.last_mut() {
                    section.push_str(comment);
                    section.push(' ');
                }
            }
            _ => open = false,
        }
    }
    sections
}

#[cfg(test)]
mod tests;
