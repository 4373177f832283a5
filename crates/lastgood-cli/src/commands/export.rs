//! `lastgood export`: a checkpoint becomes a folder, whole or not at all.

mod target;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use lastgood::Repository;
use lastgood::restore::{Contents, Selector, resolve};
use lastgood::safetensors::{Content, Export};
use lastgood_format::Hash;
use serde_json::json;
use target::{MARKER, Target};
pub(crate) use target::{PARTIAL, sweep};

use crate::args::RunArgs;
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::{output, session};

/// The longest part of a file's name that is made from a component's.
const STEM_BYTES_MAX: usize = 200;

pub(super) struct Request {
    pub(super) run: RunArgs,
    pub(super) at: Selector,
    pub(super) to: PathBuf,
    pub(super) components: Vec<String>,
    pub(super) force: bool,
}

pub(super) fn run(request: &Request, as_json: bool) -> Result<Exit> {
    let (repository, ledger) = session::ledger(&request.run)?;
    let checkpoint = resolve(ledger.history(), &request.at)?;
    let (id, step) = (checkpoint.id, checkpoint.step);
    let target = Target::new(&request.to, &repository.store().location(), request.force)?;
    let contents = repository.contents(&ledger, &id)?;
    let mut files = files(&repository, &contents, &request.components)?;
    let interrupt = Interrupt::watch()?;
    let bytes = files.iter().map(|(_, export)| export.bytes()).sum();
    let bar = output::bar("exporting", bytes, as_json);
    let partial = target.begin()?;
    let mut names = Vec::new();
    for (name, export) in &mut files {
        write(&partial.path().join(&name), export, &interrupt, &bar)?;
        names.push(name.clone());
    }
    let manifest = contents.manifest();
    let marker = json!({"checkpoint": id, "run": manifest.run, "step": manifest.step,
        "attempt": manifest.attempt, "files": names});
    write_marker(&partial.path().join(MARKER), &format!("{marker:#}\n"))?;
    names.push(MARKER.to_owned());
    interrupt.check()?;
    partial.publish()?;
    bar.finish_and_clear();
    if as_json {
        output::json(&json!({"checkpoint": id, "step": step, "to": request.to, "files": names}))?;
    } else {
        names.iter().for_each(|name| output::line(request.to.join(name).display()));
    }
    Ok(Exit::Done)
}

/// The files of the components that were asked for, or of all.
fn files<'c>(
    repository: &'c Repository,
    contents: &'c Contents,
    asked: &'c [String],
) -> Result<Vec<(String, Export<'c>)>> {
    let components: BTreeSet<&str> = match asked {
        [] => contents.components().into_keys().collect(),
        asked => asked.iter().map(String::as_str).collect(),
    };
    let mut files = Vec::new();
    for component in components {
        let stem = file_stem(component);
        for (content, suffix) in [(Content::Tensors, ""), (Content::Blobs, ".blobs")] {
            if let Some(export) = Export::new(repository, contents, component, content)? {
                files.push((format!("{stem}{suffix}.safetensors"), export));
            }
        }
    }
    Ok(files)
}

fn write(
    path: &Path,
    export: &mut Export<'_>,
    interrupt: &Interrupt,
    bar: &ProgressBar,
) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut file = File::create_new(path).with_context(failed)?;
    while let Some(bytes) = export.next_bytes()? {
        interrupt.check()?;
        file.write_all(bytes).with_context(failed)?;
        bar.inc(bytes.len() as u64);
    }
    file.sync_all().with_context(failed)
}

fn write_marker(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut file = File::create_new(path).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.sync_all().with_context(failed)
}

/// A component's name as part of a file name: everything unusual as `%` and two digits. One that is too
/// long for a file system is cut, and told from its likes by a hash.
fn file_stem(component: &str) -> String {
    let mut stem = String::new();
    for byte in component.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => stem.push(char::from(byte)),
            _ => stem.push_str(&format!("%{byte:02x}")),
        }
    }
    if stem.len() > STEM_BYTES_MAX {
        stem.truncate(STEM_BYTES_MAX - 16);
        stem.push('~');
        stem.push_str(&Hash::of(component.as_bytes()).short());
    }
    stem
}
