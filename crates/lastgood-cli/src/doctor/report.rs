//! What was found, in the words that a person and `--json` get.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::flaw::Flaw;

/// Findings of one kind that are told one by one; the rest is counted. A hostile file may earn millions.
const TOLD_OF_A_KIND: u64 = 10;
/// Files, and classes in them, that one note names.
const NAMED_IN_A_NOTE: usize = 3;
/// Characters of a text that came from a file.
const TEXT_CHARS_MAX: usize = 300;

/// Every kind of finding. They are stable: `docs/reference/json.md` lists them.
const KINDS: &[&str] = &[
    "checksum",
    "coverage",
    "empty",
    "incomplete",
    "leftover",
    "missing",
    "missing-chunk",
    "missing-shard",
    "missing-tensor",
    "missing-tracker",
    "newer-than-index",
    "no-checksum",
    "no-commit-mark",
    "not-read",
    "optimizer-step",
    "overlap",
    "pickled-class",
    "pickled-code",
    "pickled-danger",
    "scheduler-step",
    "stale-tracker",
    "state-missing",
    "step",
    "tensor",
    "torchscript",
    "torn",
    "total-size",
    "truncated",
    "uncommitted",
    "unfinished-save",
    "unreadable",
];

/// What a finding does to the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Worth knowing; changes nothing.
    Note,
    /// It may be whole, but that cannot be shown, or what is there would resume something else.
    Doubt,
    /// Loading it can run code.
    Danger,
    /// It is not whole.
    Damage,
}

/// What is to be thought of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Everything that its format can show was looked at and is right.
    Trusted,
    /// It may be whole, but should not be relied on.
    Suspect,
    /// It is not whole.
    Broken,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Suspect => "suspect",
            Self::Broken => "broken",
        }
    }
}

/// One thing that is not as it should be, or that should be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// Stable, in lower case with dashes.
    pub(crate) kind: &'static str,
    /// The file or tensor that it is about.
    pub(crate) object: String,
    pub(crate) expected: String,
    pub(crate) found: String,
    pub(crate) remedy: String,
}

impl Finding {
    pub(crate) fn new(severity: Severity, kind: &'static str, object: impl AsRef<str>) -> Self {
        debug_assert!(KINDS.contains(&kind), "{kind} is no kind of finding");
        Self {
            severity,
            kind,
            object: clean(object.as_ref()),
            expected: String::new(),
            found: String::new(),
            remedy: String::new(),
        }
    }

    pub(crate) fn damage(kind: &'static str, object: impl AsRef<str>) -> Self {
        Self::new(Severity::Damage, kind, object)
    }

    pub(crate) fn doubt(kind: &'static str, object: impl AsRef<str>) -> Self {
        Self::new(Severity::Doubt, kind, object)
    }

    pub(crate) fn note(kind: &'static str, object: impl AsRef<str>) -> Self {
        Self::new(Severity::Note, kind, object)
    }

    /// What a flaw of a file is as a finding: bytes that are wrong are damage; bytes that this process
    /// was not given may be right.
    pub(crate) fn flaw(object: impl AsRef<str>, expected: &str, flaw: &Flaw) -> Self {
        match flaw {
            Flaw::Content(found) => Self::damage("unreadable", object)
                .expected(expected)
                .found(found)
                .remedy("do not load it; take an older checkpoint, or a copy"),
            Flaw::Limit(found) => Self::doubt("not-read", object)
                .expected(expected)
                .found(found)
                .remedy("check it with the tool that wrote it"),
            Flaw::Io(found) => Self::doubt("not-read", object)
                .expected("a file that can be read")
                .found(found)
                .remedy("run doctor as a user who can read it; an I/O error is a sick disk"),
        }
    }

    /// The same, of another kind.
    pub(crate) fn of_kind(self, kind: &'static str) -> Self {
        debug_assert!(KINDS.contains(&kind), "{kind} is no kind of finding");
        Self { kind, ..self }
    }

    pub(crate) fn expected(mut self, text: impl AsRef<str>) -> Self {
        self.expected = clean(text.as_ref());
        self
    }

    pub(crate) fn found(mut self, text: impl AsRef<str>) -> Self {
        self.found = clean(text.as_ref());
        self
    }

    pub(crate) fn remedy(mut self, text: impl AsRef<str>) -> Self {
        self.remedy = clean(text.as_ref());
        self
    }
}

/// Text that may have come from a hostile file, on one line and no longer than a person reads.
pub(crate) fn clean(text: &str) -> String {
    let reorders = |c: &char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::new();
    for c in text.chars().take(TEXT_CHARS_MAX) {
        match c.is_control() || reorders(&c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    if text.chars().nth(TEXT_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Findings, with a bound on how many of one kind are kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    told: Vec<Finding>,
    counts: BTreeMap<(&'static str, Severity), u64>,
    classes: Classes,
}

/// Pickles that classes of a trainer are in. Every file of every rank has some, so that one note is for all.
#[derive(Clone, Debug, Default)]
struct Classes {
    files: u64,
    /// The first few.
    named_files: Vec<String>,
    named: Vec<String>,
    has_more: bool,
}

impl Classes {
    fn note(&self) -> Option<Finding> {
        let mut object = self.named_files.join(", ");
        match self.files - self.named_files.len() as u64 {
            0 if self.files == 0 => return None,
            0 => {}
            more => object.push_str(&format!(" and {more} more")),
        }
        let such = if self.has_more { ", such as" } else { ":" };
        Some(
            Finding::note("pickled-class", object)
                .expected("plain data and tensors")
                .found(format!("classes of a trainer{such} {}", self.named.join(", ")))
                .remedy("torch.load needs weights_only=False for it"),
        )
    }
}

impl Findings {
    pub(crate) fn add(&mut self, finding: Finding) {
        let count = self.counts.entry((finding.kind, finding.severity)).or_default();
        *count += 1;
        if *count <= TOLD_OF_A_KIND {
            self.told.push(finding);
        }
    }

    /// Takes note of classes of a trainer that a pickle has.
    pub(crate) fn add_classes(&mut self, object: &str, classes: Vec<String>) {
        if classes.is_empty() {
            return;
        }
        let Classes { files, named_files, named, has_more } = &mut self.classes;
        *files += 1;
        if named_files.len() < NAMED_IN_A_NOTE {
            named_files.push(clean(object));
        }
        for class in classes {
            match named.len() < NAMED_IN_A_NOTE {
                _ if named.contains(&class) => {}
                true => named.push(class),
                false => *has_more = true,
            }
        }
    }

    pub(crate) fn worst(&self) -> Option<Severity> {
        self.counts.keys().map(|(_, severity)| *severity).max()
    }

    /// True if there is a finding of this kind.
    pub(crate) fn has(&self, kind: &str) -> bool {
        self.counts.keys().any(|(of, _)| *of == kind)
    }

    /// Everything, the worst first, with a last line for each kind of which not all is told.
    pub(crate) fn all(&self) -> Vec<Finding> {
        let mut all = self.told.clone();
        all.extend(self.classes.note());
        for ((kind, severity), count) in &self.counts {
            if *count > TOLD_OF_A_KIND {
                let more = count - TOLD_OF_A_KIND;
                let told = self.told.iter().find(|f| f.kind == *kind && f.severity == *severity);
                let remedy = told.map_or("", |finding| finding.remedy.as_str());
                all.push(
                    Finding::new(*severity, kind, format!("{more} more"))
                        .found(format!("{count} findings of this kind"))
                        .remedy(remedy),
                );
            }
        }
        all.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        all
    }
}

/// How much of a checkpoint's bytes something in it can prove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Coverage {
    /// Bytes whose checksum was computed and is right.
    pub(crate) checked: u64,
    /// Bytes for which the format keeps no checksum, or whose checksum was not computed.
    pub(crate) uncheckable: u64,
}

/// One checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) path: PathBuf,
    pub(crate) format: &'static str,
    pub(crate) step: Option<u64>,
    pub(crate) bytes: u64,
    pub(crate) modified: Option<SystemTime>,
    pub(crate) coverage: Coverage,
    pub(crate) findings: Findings,
}

impl Checkpoint {
    pub(crate) fn new(path: &Path, format: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            format,
            step: None,
            bytes: 0,
            modified: None,
            coverage: Coverage::default(),
            findings: Findings::default(),
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        match self.findings.worst() {
            Some(Severity::Damage) => Verdict::Broken,
            Some(Severity::Doubt | Severity::Danger) => Verdict::Suspect,
            Some(Severity::Note) | None => Verdict::Trusted,
        }
    }

    /// Newer ones are greater.
    pub(crate) fn age(&self) -> (Option<u64>, Option<SystemTime>, &Path) {
        (self.step, self.modified, &self.path)
    }
}

/// What the tool that wrote a series would do with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Stock {
    pub(crate) tool: &'static str,
    /// The checkpoint that it would take, if it would take one.
    #[serde(serialize_with = "lossy")]
    pub(crate) takes: Option<PathBuf>,
    /// What happens then.
    pub(crate) outcome: String,
}

/// A path in JSON, which has no bytes that are no text.
fn lossy<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(to)
}

/// The checkpoints of one folder that one tool wrote, the oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) path: PathBuf,
    pub(crate) format: &'static str,
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// Of the folder itself, such as a stale tracker.
    pub(crate) findings: Findings,
    pub(crate) stock: Option<Stock>,
}

impl Series {
    /// The newest checkpoint that can be trusted.
    pub(crate) fn last_trusted(&self) -> Option<&Checkpoint> {
        self.checkpoints.iter().rev().find(|c| c.verdict() == Verdict::Trusted)
    }

    /// The newest checkpoint that may be whole and runs no code of a stranger, for when none can be
    /// trusted.
    pub(crate) fn last_suspect(&self) -> Option<&Checkpoint> {
        self.checkpoints.iter().rev().find(|c| c.findings.worst() == Some(Severity::Doubt))
    }

    /// The newest checkpoint that nothing is wrong with but that loading it may run code.
    pub(crate) fn last_dangerous(&self) -> Option<&Checkpoint> {
        self.checkpoints.iter().rev().find(|c| c.findings.worst() == Some(Severity::Danger))
    }

    pub(crate) fn is_clean(&self) -> bool {
        let folder = self.findings.worst().is_none_or(|worst| worst == Severity::Note);
        folder && self.checkpoints.iter().all(|c| c.verdict() == Verdict::Trusted)
    }
}

#[cfg(test)]
mod tests;
