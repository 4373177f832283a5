//! `lastgood doctor`: which checkpoint of somebody else's can be trusted.
//!
//! [`discover`] recognises what is in a folder, a module of [`formats`] looks at each checkpoint, and
//! [`report`] holds what they found. Nothing that is read is trusted: a length is checked before memory is
//! taken for it, and no pickle is ever run.

pub(crate) mod discover;
pub(crate) mod disk;
pub(crate) mod flaw;
pub(crate) mod formats;
pub(crate) mod pickle;
pub(crate) mod report;
pub(crate) mod tensors;
pub(crate) mod torch;
pub(crate) mod zip;

use std::path::Path;

use indicatif::ProgressBar;
use lastgood::{Error, Result};
use report::Series;

/// How checkpoints are looked at.
#[derive(Debug)]
pub(crate) struct Audit<'a> {
    /// Sizes and structure only, not the bytes of tensors.
    pub(crate) quick: bool,
    /// Names and modules in pickles that the user vouches for.
    pub(crate) allowed: &'a [String],
    /// Counts the bytes that are read.
    pub(crate) bar: ProgressBar,
}

impl Audit<'_> {
    /// So many bytes were read.
    pub(crate) fn read(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

/// Looks at every checkpoint at and below `path`.
///
/// # Errors
/// `NotFound` if there is nothing at `path`, or no checkpoint that is known here; `Denied` if it cannot be
/// read; `Invalid` if it is a lastgood repository, whose checkpoints `lastgood verify` checks.
pub(crate) fn examine(audit: &Audit<'_>, path: &Path) -> Result<Vec<Series>> {
    let found = discover::discover(path)?;
    if found.is_empty() {
        return Err(Error::not_found(format!("{} holds no checkpoint", path.display())).with_remedy(
            "known are folders of Hugging Face Trainer, DCP, Lightning, DeepSpeed, Megatron, Orbax and \
             safetensors, and files of torch.save",
        ));
    }
    audit.bar.set_length(found.iter().map(discover::Group::bytes).sum());
    let mut series = Vec::new();
    let mut done = 0;
    for group in &found {
        let mut checkpoints = Vec::new();
        for place in &group.places {
            checkpoints.push(formats::audit(audit, group.format, place));
            done += place.bytes;
            audit.bar.set_position(done);
        }
        checkpoints.sort_by(|one, other| one.age().cmp(&other.age()));
        series.push(formats::finish(group, checkpoints));
    }
    Ok(series)
}

#[cfg(test)]
pub(crate) mod tests;
