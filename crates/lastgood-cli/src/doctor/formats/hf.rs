//! Folders of Hugging Face's Trainer: `checkpoint-N`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::{dcp, deepspeed, files, optimizer, safetensors};
use crate::doctor::Audit;
use crate::doctor::discover::{Folder, number_behind};
use crate::doctor::report::{Checkpoint, Finding, Severity};

/// What a save that SIGTERM asked for leaves until it is whole.
pub(super) const SENTINEL: &str = "checkpoint-is-incomplete.txt";
const STATE: &str = "trainer_state.json";

/// True if a folder of any name is a checkpoint of the Trainer. The folder that its checkpoints are in may
/// have the weights and the state of the end too, but nothing to resume from.
pub(super) fn is(folder: &Folder) -> bool {
    let resumes = ["optimizer.pt", "scheduler.pt"].iter().any(|name| folder.has(name));
    folder.has(SENTINEL) || (folder.has(STATE) && resumes)
}

/// What Accelerate leaves for each rank.
pub(super) const RANDOM_STATES: &str = "random_states_";

/// True if a folder that is called as the Trainer's are is another tool's: of DCP, of DeepSpeed, or of
/// Accelerate, which scripts of diffusers call `checkpoint-N`.
pub(super) fn is_of_another(folder: &Folder) -> bool {
    let other = |file: &str| file.ends_with(".distcp") || file.starts_with(RANDOM_STATES);
    let another = folder.has(dcp::METADATA) || folder.any(other) || deepspeed::is("", folder);
    another && !folder.has(STATE) && !folder.has(SENTINEL)
}

/// Weights that are pickled, where no index names them; gives their names.
pub(super) fn pickled_weights(
    audit: &Audit<'_>,
    folder: &Folder,
    checkpoint: &mut Checkpoint,
) -> Vec<&'static str> {
    let known = ["pytorch_model.bin", "adapter_model.bin", "model.pt", "pytorch_model_fsdp.bin"];
    let there: Vec<&str> = known.into_iter().filter(|name| folder.has(name)).collect();
    for name in &there {
        files::torch(audit, checkpoint, name);
    }
    there
}

pub(super) fn audit(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let name = checkpoint.path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    let named = number_behind(name, "checkpoint-");
    checkpoint.step = named;
    if folder.has(SENTINEL) {
        checkpoint.findings.add(
            Finding::damage("incomplete", SENTINEL)
                .expected("no such mark, which the Trainer removes when a save is whole")
                .found("it is there; the Trainer writes it and never reads it")
                .remedy("take an older checkpoint"),
        );
    }
    let mut some = !safetensors::weights(audit, folder, checkpoint).is_empty();
    some |= sharded_folders(audit, folder, checkpoint);
    if !some {
        checkpoint.findings.add(
            Finding::damage("missing", "model.safetensors")
                .expected("weights")
                .found("there are none: the save was cut off")
                .remedy("take an older checkpoint"),
        );
    }
    let step = state(folder, checkpoint, named);
    optimizer_state(audit, folder, checkpoint, step);
    scheduler(audit, folder, checkpoint, step);
    random_numbers(audit, folder, checkpoint);
    for extra in ["training_args.bin", "scaler.pt"].iter().filter(|name| folder.has(name)) {
        files::torch(audit, checkpoint, extra);
    }
}

/// What FSDP and DeepSpeed leave in folders.
fn sharded_folders(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) -> bool {
    let mut some = false;
    for inner in &folder.folders {
        let path = checkpoint.path.join(inner);
        let Ok(below) = Folder::read(&path) else { continue };
        let prefix = format!("{inner}/");
        if inner.starts_with("pytorch_model_fsdp") || inner.starts_with("optimizer") {
            let Checkpoint { findings, coverage, .. } = &mut *checkpoint;
            dcp::audit_folder(audit, &path, &prefix, &below, findings, coverage);
            some |= inner.starts_with("pytorch_model_fsdp");
        } else if inner.starts_with("global_step") {
            deepspeed::audit_folder(audit, &path, &prefix, &below, checkpoint);
            some = true;
        }
    }
    if folder.folders.iter().any(|inner| inner.starts_with("global_step")) {
        deepspeed_tracker(folder, checkpoint);
    }
    some
}

/// `latest` names the folder of DeepSpeed's that is loaded; without it the Trainer stops.
fn deepspeed_tracker(folder: &Folder, checkpoint: &mut Checkpoint) {
    let name = deepspeed::TRACKER;
    let Checkpoint { path, findings, .. } = checkpoint;
    if !folder.has(name) {
        return findings.add(
            Finding::doubt("missing-tracker", name)
                .expected("the file that names DeepSpeed's folder in here; it is written last")
                .found("it is not there: the save may have been cut off")
                .remedy(
                    "take an older checkpoint, or write the folder's name into it if that is whole",
                ),
        );
    }
    let Some(span) = files::open(path, name, findings) else { return };
    let text = span.all(files::TRACKER_BYTES_MAX);
    let named = text.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    match named {
        Ok(named) if folder.has_folder(&named) => {}
        Ok(named) => findings.add(
            Finding::damage("stale-tracker", name)
                .expected("the name of a folder that is in here")
                .found(format!("{named:?}, which is not there"))
                .remedy("the files are of different saves; take an older checkpoint"),
        ),
        Err(flaw) => findings.add(Finding::flaw(name, "the name of a folder", &flaw)),
    }
}

/// `trainer_state.json`; gives the step that it says.
fn state(folder: &Folder, checkpoint: &mut Checkpoint, named: Option<u64>) -> Option<u64> {
    let findings = &mut checkpoint.findings;
    if !folder.has(STATE) {
        findings.add(
            Finding::damage("missing", STATE)
                .expected("where the training stands; it is written last")
                .found("it is not there: the save was cut off")
                .remedy("train(resume_from_checkpoint=True) fails on it; take an older checkpoint"),
        );
        return None;
    }
    let value = files::json(&checkpoint.path, STATE, findings)?;
    let Some(step) = value.get("global_step").and_then(Value::as_u64) else {
        findings.add(
            Finding::damage("unreadable", STATE)
                .expected("a global_step")
                .found("none")
                .remedy("take an older checkpoint"),
        );
        return None;
    };
    if let Some(named) = named.filter(|named| *named != step) {
        findings.add(
            Finding::doubt("torn", STATE)
                .expected(format!("global_step {named}, as the folder's name says"))
                .found(format!("{step}"))
                .remedy("the folder was renamed, or holds parts of two saves"),
        );
    }
    checkpoint.step = named.or(Some(step));
    Some(step)
}

fn lacks(name: &str, expected: &str, remedy: &str) -> Finding {
    Finding::doubt("state-missing", name).expected(expected).found("it is not there").remedy(remedy)
}

fn optimizer_state(
    audit: &Audit<'_>,
    folder: &Folder,
    checkpoint: &mut Checkpoint,
    step: Option<u64>,
) {
    let single = ["optimizer.pt", "optimizer.bin"].into_iter().find(|name| folder.has(name));
    let sharded = |name: &String| name.starts_with("optimizer_") || name.starts_with("global_step");
    let Some(name) = single else {
        if !folder.folders.iter().any(sharded) {
            checkpoint.findings.add(lacks(
                "optimizer.pt",
                "the optimizer's state",
                "the Trainer resumes with a fresh optimizer, and says nothing",
            ));
        }
        return;
    };
    let Some(file) = files::torch(audit, checkpoint, name) else { return };
    let (Some(steps), Some(step)) =
        (file.pickle.root().and_then(|root| optimizer::steps(&file, root)), step)
    else {
        return;
    };
    let found = |severity, remedy: &str| {
        Finding::new(severity, "optimizer-step", name)
            .expected(format!("an optimizer that has done {step} steps, as {STATE} says"))
            .found(format!("{steps}"))
            .remedy(remedy)
    };
    if steps > step {
        checkpoint.findings.add(found(
            Severity::Doubt,
            "the files are of different saves; take another checkpoint",
        ));
    } else if steps < step - step / 10 {
        checkpoint.findings.add(found(
            Severity::Doubt,
            "the run was resumed with a fresh optimizer before this save, or the files are of different saves",
        ));
    } else if steps < step {
        checkpoint.findings.add(found(Severity::Note, "a loss scaler skips steps"));
    }
}

fn scheduler(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint, step: Option<u64>) {
    if !folder.has("scheduler.pt") {
        // DeepSpeed keeps its own schedule in its own files.
        if folder.folders.iter().any(|inner| inner.starts_with("global_step")) {
            return;
        }
        return checkpoint.findings.add(lacks(
            "scheduler.pt",
            "the state of the learning rate's schedule",
            "the Trainer resumes with a fresh schedule, and says nothing",
        ));
    }
    let Some(file) = files::torch(audit, checkpoint, "scheduler.pt") else { return };
    let epoch = file
        .pickle
        .root()
        .and_then(|root| file.pickle.get(root, "last_epoch"))
        .and_then(|id| file.pickle.size(id));
    if let (Some(epoch), Some(step)) = (epoch, step)
        && epoch != step
    {
        checkpoint.findings.add(
            Finding::note("scheduler-step", "scheduler.pt")
                .expected(format!("a schedule that has done {step} steps"))
                .found(format!("{epoch}"))
                .remedy("a schedule of its own may count differently; otherwise the files are of different saves"),
        );
    }
}

/// One file, or one for each rank from 0.
fn random_numbers(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let rank = |name: &String| number_behind(name.strip_suffix(".pth")?, "rng_state_");
    let ranks: BTreeSet<u64> = folder.files.iter().filter_map(rank).collect();
    let names: Vec<String> = folder
        .files
        .iter()
        .filter(|name| *name == "rng_state.pth" || rank(name).is_some())
        .cloned()
        .collect();
    if names.is_empty() {
        checkpoint.findings.add(lacks(
            "rng_state.pth",
            "the state of random numbers",
            "the resumed run draws other numbers, and the Trainer says so at log level info",
        ));
    }
    for name in &names {
        files::torch(audit, checkpoint, name);
    }
    let most = ranks.last().copied().unwrap_or(0).min(100_000);
    for missing in (0..most).filter(|rank| !ranks.contains(rank)) {
        checkpoint.findings.add(lacks(
            &format!("rng_state_{missing}.pth"),
            &format!("the state of random numbers of ranks 0 to {most}"),
            "this rank draws other numbers after a resume",
        ));
    }
}

/// What the Trainer would do with the folder that its checkpoints are in.
pub(super) fn is_checkpoint_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    number_behind(name, "checkpoint-").is_some()
}
