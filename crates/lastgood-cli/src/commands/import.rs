//! `lastgood import`: a safetensors file becomes a checkpoint.

use std::path::Path;

use anyhow::Context;
use lastgood::save::Mode;
use lastgood::{Run, RunOptions, safetensors};
use serde_json::json;

use crate::args::RunArgs;
use crate::exit::Exit;
use crate::{output, session};

pub(super) fn run(
    file: &Path,
    args: &RunArgs,
    step: u64,
    component: &str,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let named = |e: lastgood::Error| e.with_object(file.display().to_string());
    // The file is checked before a run is touched: an import that cannot succeed fences nobody.
    let mut trial = lastgood::state::Capture::new(lastgood::state::World::ALONE);
    safetensors::capture(&bytes, component, "import", &mut trial).map_err(named)?;
    drop(trial);
    let repository = session::create_repository(&args.store.store)?;
    let mut run = Run::open(&repository, &args.run, RunOptions::default())?;
    let handle = run.save(step, Mode::Sync, |capture| {
        safetensors::capture(&bytes, component, "import", capture)
    })?;
    let id = handle.wait()?;
    run.close()?;
    if as_json {
        output::json(&json!({"checkpoint": id, "step": step, "bytes": bytes.len()}))?;
    } else {
        output::line(format!(
            "imported {} ({}) as checkpoint {id} at step {step} of run {}",
            file.display(),
            output::size(bytes.len() as u64),
            args.run
        ));
    }
    Ok(Exit::Done)
}
