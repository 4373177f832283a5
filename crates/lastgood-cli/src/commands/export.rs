//! `lastgood export`: a checkpoint becomes a folder, whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lastgood::restore::{Contents, Selector, resolve};
use lastgood::{Repository, safetensors};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use crate::args::RunArgs;
use crate::exit::Exit;
use crate::{output, session};

/// Marks a folder as an export, and says of what.
const MARKER: &str = "lastgood-export.json";

pub(super) struct Request {
    pub(super) run: RunArgs,
    pub(super) at: Selector,
    pub(super) to: PathBuf,
    pub(super) components: Vec<String>,
    pub(super) force: bool,
}

pub(super) fn run(request: &Request, as_json: bool) -> anyhow::Result<Exit> {
    let (repository, ledger) = session::ledger(&request.run)?;
    let checkpoint = resolve(ledger.history(), &request.at)?;
    let (id, step) = (checkpoint.id, checkpoint.step);
    check_target(&request.to, request.force)?;
    let contents = repository.contents(&ledger, &id)?;
    let parent = match request.to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let partial = parent.join(format!(".lastgood-export-{}", std::process::id()));
    let _ = fs::remove_dir_all(&partial);
    let written = write_all(request, &repository, &contents, &partial)
        .and_then(|files| publish(&partial, &request.to, &parent).map(|()| files));
    if written.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    let files = written?;
    if as_json {
        output::json(&json!({"checkpoint": id, "step": step, "to": request.to, "files": files}))?;
    } else {
        for file in files {
            output::line(request.to.join(file).display());
        }
    }
    Ok(Exit::Done)
}

fn check_target(to: &Path, force: bool) -> anyhow::Result<()> {
    let occupied = match fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).context(format!("cannot look at {}", to.display())),
    };
    if occupied && !force && !to.join(MARKER).exists() {
        bail!(
            lastgood::Error::invalid(format!(
                "{} is not empty and no earlier export",
                to.display()
            ))
            .with_remedy("choose another folder, or --force to replace it")
        );
    }
    Ok(())
}

fn write_all(
    request: &Request,
    repository: &Repository,
    contents: &Contents,
    partial: &Path,
) -> anyhow::Result<Vec<String>> {
    fs::create_dir(partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let mut files = Vec::new();
    let components: Vec<String> = match request.components.is_empty() {
        true => contents.components().keys().map(|name| (*name).to_owned()).collect(),
        false => request.components.clone(),
    };
    for component in components {
        let exported = safetensors::export(repository, contents, &component)?;
        let stem = file_stem(&component);
        for (name, bytes) in [
            (format!("{stem}.safetensors"), exported.tensors),
            (format!("{stem}.blobs.safetensors"), exported.blobs),
        ] {
            if let Some(bytes) = bytes {
                write_file(&partial.join(&name), &bytes)?;
                files.push(name);
            }
        }
    }
    let manifest = contents.manifest();
    let marker = json!({"checkpoint": contents.id(), "run": manifest.run, "step": manifest.step,
        "attempt": manifest.attempt, "files": files});
    write_file(&partial.join(MARKER), format!("{marker:#}\n").as_bytes())?;
    files.push(MARKER.to_owned());
    sync_folder(partial)?;
    Ok(files)
}

fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn sync_folder(path: &Path) -> anyhow::Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("cannot sync {}", path.display()))
}

/// Gives the finished folder its name. An earlier export is exchanged in one step and then removed,
/// so that there is a whole export under the name at every moment.
fn publish(partial: &Path, to: &Path, parent: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot give {} its name", to.display());
    if to.exists() {
        renameat_with(CWD, partial, CWD, to, RenameFlags::EXCHANGE).with_context(failed)?;
        fs::remove_dir_all(partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    } else {
        fs::rename(partial, to).with_context(failed)?;
    }
    sync_folder(parent)
}

/// A component's name as part of a file name: everything unusual as `%` and two digits.
fn file_stem(component: &str) -> String {
    component
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => char::from(byte).to_string(),
            _ => format!("%{byte:02x}"),
        })
        .collect()
}
