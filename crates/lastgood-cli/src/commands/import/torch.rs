//! A file of `torch.save`, or a Lightning checkpoint, as a component.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;
use lastgood::state::{Capture, Durability, Part};
use lastgood::{Error, Result};

use super::leaves::Leaves;
use super::part::Stored;
use super::{OWNER, Package, audit, error_of, refuse_damage};
use crate::doctor::disk::Span;
use crate::doctor::report::{Coverage, Findings};
use crate::doctor::tensors::{View, dtype_of_name};
use crate::doctor::torch::{self, TorchFile};

/// How many bytes all tensors together may have, beyond twice those of the file: one storage can be behind
/// a million tensors.
const EXPANDED_BYTES: u64 = 64 << 20;

/// What a file holds, and where.
#[derive(Debug)]
pub(super) struct Torch {
    leaves: Leaves,
    tensors: Tensors,
}

impl Torch {
    pub(super) fn open(path: &Path, bar: &ProgressBar) -> Result<Self> {
        let span = Span::open(path).map_err(error_of)?;
        bar.set_length(span.len());
        let (mut findings, mut coverage) = (Findings::default(), Coverage::default());
        let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        let file = torch::audit(&audit(bar), &name, &span, &mut findings, &mut coverage);
        refuse_damage(&findings)?;
        let file = file.ok_or_else(|| Error::incompatible("its pickle cannot be read here"))?;
        let mut leaves = Leaves::of(&file, "")?;
        let mut tensors = Tensors::new(span.len());
        for (name, view) in std::mem::take(&mut leaves.tensors) {
            tensors.add(&Arc::new(path.to_owned()), &file, name, view, bar)?;
        }
        Ok(Self { leaves, tensors })
    }
}

impl Package for Torch {
    fn bytes(&self) -> u64 {
        self.tensors.bytes
    }

    fn capture<'p>(&'p self, component: &str, capture: &mut Capture<'p>) -> Result<()> {
        let mut part = capture.component(component, OWNER, Durability::Durable)?;
        self.tensors.capture(&mut part)?;
        capture_values(&self.leaves, &mut part)
    }

    fn left_out(&self) -> &[String] {
        &self.leaves.left_out
    }
}

pub(super) fn capture_values<'p>(leaves: &'p Leaves, part: &mut Part<'_, 'p>) -> Result<()> {
    for (name, value) in &leaves.values {
        part.value(named(name), value)?;
    }
    for (name, bytes) in &leaves.blobs {
        part.blob(named(name), bytes.as_slice())?;
    }
    Ok(())
}

/// What is saved without a container around it has no name.
fn named(name: &str) -> &str {
    if name.is_empty() { "value" } else { name }
}

/// Tensors of files of `torch.save`; those that are the same memory are stored once.
#[derive(Debug)]
pub(super) struct Tensors {
    stored: Vec<(String, View, Stored)>,
    ties: Vec<(String, String)>,
    seen: BTreeMap<(PathBuf, View), String>,
    bytes: u64,
    bytes_max: u64,
}

impl Tensors {
    pub(super) fn new(file_bytes: u64) -> Self {
        Self {
            stored: Vec::new(),
            ties: Vec::new(),
            seen: BTreeMap::new(),
            bytes: 0,
            bytes_max: file_bytes.saturating_mul(2).saturating_add(EXPANDED_BYTES),
        }
    }

    pub(super) fn add(
        &mut self,
        path: &Arc<PathBuf>,
        file: &TorchFile,
        name: String,
        view: View,
        bar: &ProgressBar,
    ) -> Result<()> {
        let name = named(&name).to_owned();
        let key = (path.as_ref().clone(), view.clone());
        if let Some(first) = self.seen.get(&key) {
            self.ties.push((name, first.clone()));
            return Ok(());
        }
        let about = |e: Error| e.context(name.clone());
        let storage = file.storage(&view.storage).map_err(error_of).map_err(about)?;
        let stored = Stored::new(path, &storage, &view, bar).map_err(about)?;
        self.bytes = self.bytes.saturating_add(stored.bytes());
        if self.bytes > self.bytes_max {
            return Err(Error::incompatible(format!(
                "its tensors have {} bytes, more than twice those of the file",
                self.bytes
            ))
            .with_remedy("save clones of tensors that are expanded"));
        }
        self.seen.insert(key, name.clone());
        self.stored.push((name, view, stored));
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn capture<'p>(&'p self, part: &mut Part<'_, 'p>) -> Result<()> {
        for (name, view, stored) in &self.stored {
            let dtype = dtype_of_name(&view.dtype)
                .ok_or_else(|| Error::incompatible(format!("{name}: dtype {}", view.dtype)))?;
            part.source(name, dtype, &view.shape, stored)?;
        }
        for (name, of) in &self.ties {
            part.tied(name, of)?;
        }
        Ok(())
    }
}
