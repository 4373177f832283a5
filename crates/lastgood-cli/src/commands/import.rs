//! `lastgood import`: a safetensors file becomes a checkpoint.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;
use indicatif::ProgressBar;
use lastgood::save::Mode;
use lastgood::state::{Capture, Source, World};
use lastgood::{Error, ErrorKind, Run, RunOptions, safetensors};
use serde_json::json;

use crate::args::RunArgs;
use crate::exit::Exit;
use crate::{output, session};

/// Who owns what was imported.
const OWNER: &str = "import";

pub(super) fn run(
    path: &Path,
    args: &RunArgs,
    step: u64,
    component: &str,
    as_json: bool,
) -> Result<Exit> {
    let named = |e: Error| e.with_object(path.display().to_string());
    let (file, bytes) = open(path).map_err(named)?;
    let file = OnDisk { file, bar: output::bar("reading", bytes, as_json) };
    let reader = safetensors::Reader::open(&file, bytes).map_err(named)?;
    // Everything is checked before a run is touched: an import that cannot succeed fences nobody.
    let mut trial = Capture::new(World::ALONE);
    reader.capture(component, OWNER, &mut trial).map_err(named)?;
    drop(trial);
    let repository = session::create_repository(&args.store.store)?;
    let mut run = Run::open(&repository, &args.run, RunOptions::default())?;
    let handle = run
        .save(step, Mode::Async, |capture| reader.capture(component, OWNER, capture))
        .map_err(named)?;
    file.bar.finish_and_clear();
    let waiting = output::spinner("writing", as_json);
    let id = handle.wait()?;
    run.close()?;
    waiting.finish_and_clear();
    if as_json {
        output::json(&json!({"checkpoint": id, "run": args.run, "step": step, "bytes": bytes}))?;
    } else {
        output::line(format!(
            "imported {} ({}) as checkpoint {id} at step {step} of run {}",
            path.display(),
            output::size(bytes),
            args.run
        ));
    }
    Ok(Exit::Done)
}

/// The file and its size.
fn open(path: &Path) -> lastgood::Result<(File, u64)> {
    let file = File::open(path).map_err(|e| cannot_read(&e))?;
    let metadata = file.metadata().map_err(|e| cannot_read(&e))?;
    if !metadata.is_file() {
        return Err(Error::invalid("this is no file that can be read")
            .with_remedy("give a safetensors file"));
    }
    Ok((file, metadata.len()))
}

fn cannot_read(error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("cannot read the file: {error}"))
}

/// The file, read where the capture asks for it.
#[derive(Debug)]
struct OnDisk {
    file: File,
    bar: ProgressBar,
}

impl Source for OnDisk {
    fn read(&self, offset: usize, into: &mut [u8]) -> lastgood::Result<()> {
        self.bar.inc(into.len() as u64);
        self.file.read_exact_at(into, offset as u64).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::corrupt("the file became shorter meanwhile"),
            _ => cannot_read(&error),
        })
    }
}
