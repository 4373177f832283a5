//! What the tool that wrote the checkpoints of a folder would do with them.

use std::path::Path;

use super::{Format, deepspeed, files, hf, megatron, orbax};
use crate::doctor::disk;
use crate::doctor::report::{Checkpoint, Finding, Series, Stock, Verdict};

/// What would happen, and what is wrong with the files that steer it, as findings of the series.
pub(super) fn of(format: Format, series: &mut Series) -> Option<Stock> {
    match format {
        Format::HfTrainer => trainer(series),
        Format::Megatron => megatron_tracker(series),
        Format::DeepSpeed => deepspeed_tracker(series),
        Format::Orbax => orbax_latest(series),
        Format::Lightning => lightning_last(series),
        Format::Dcp | Format::Safetensors | Format::Torch => None,
    }
}

fn told(series: &Series, path: &Path) -> String {
    let Some(taken) = series.checkpoints.iter().find(|c| c.path == path) else {
        return "it fails".to_owned();
    };
    match taken.verdict() {
        Verdict::Trusted => "it resumes".to_owned(),
        verdict => {
            let instead = match series.last_trusted() {
                Some(last) => format!("; {} is never tried", name_of(&last.path)),
                None => String::new(),
            };
            format!("it takes one that is {}{instead}", verdict.name())
        }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `get_last_checkpoint`: the highest N of `checkpoint-N`, whatever is in it.
fn trainer(series: &Series) -> Option<Stock> {
    let taken = series.checkpoints.iter().rev().find(|c| hf::is_checkpoint_name(&c.path))?;
    let has = |kind: &str| taken.findings.has(kind);
    let outcome = match taken.verdict() {
        Verdict::Trusted => "it resumes".to_owned(),
        Verdict::Broken if has("incomplete") => {
            "it takes it: it never reads the mark that it is not whole".to_owned()
        }
        Verdict::Suspect if has("state-missing") => {
            "it resumes, and says nothing of the state that is missing".to_owned()
        }
        _ => told(series, &taken.path),
    };
    Some(Stock {
        tool: "Trainer.train(resume_from_checkpoint=True)",
        takes: Some(taken.path.clone()),
        outcome,
    })
}

fn stale(tracker: &str, expected: String, found: String, remedy: &str) -> Finding {
    Finding::damage("stale-tracker", tracker).expected(expected).found(found).remedy(remedy)
}

/// A file that names a checkpoint: what it should name is the newest one that can be trusted, of those that
/// it can name.
fn judge_tracker(
    series: &mut Series,
    tracker: &str,
    named: &str,
    can_name: impl Fn(&Checkpoint) -> bool,
) -> Option<Checkpoint> {
    let target = series.checkpoints.iter().find(|c| name_of(&c.path) == named).cloned();
    let mut good = series.checkpoints.iter().rev().filter(|c| can_name(c));
    let last = good.find(|c| c.verdict() == Verdict::Trusted);
    let last = last.map(|last| (last.step, name_of(&last.path)));
    let write = |name: &str| format!("write {name} into it, to resume from there");
    let Some(target) = target else {
        let good = last.map_or_else(nothing, |(_, name)| write(&name));
        series.findings.add(stale(
            tracker,
            "the name of a checkpoint that is there".to_owned(),
            format!("{named:?}, which is not there"),
            &good,
        ));
        return None;
    };
    match last {
        last if target.verdict() == Verdict::Broken => {
            let good = last.map_or_else(nothing, |(_, name)| write(&name));
            series.findings.add(stale(
                tracker,
                "a checkpoint that is whole".to_owned(),
                format!("{named}, which is broken"),
                &good,
            ));
        }
        Some((step, name)) if step > target.step => series.findings.add(
            Finding::doubt("stale-tracker", tracker)
                .expected(format!("{name}, the newest that can be trusted"))
                .found(format!("{named}, an older one"))
                .remedy(format!("{}, or know why not: work is lost otherwise", write(&name))),
        ),
        _ => {}
    }
    Some(target)
}

fn nothing() -> String {
    "there is none that can be trusted".to_owned()
}

/// The text of a tracker; what is wrong with it is a finding of the series.
fn tracker(series: &mut Series, name: &str) -> Option<String> {
    let path = series.path.join(name);
    if !path.exists() {
        series.findings.add(
            Finding::doubt("missing-tracker", name)
                .expected("the file that names the checkpoint to load")
                .found("it is not there")
                .remedy("write the name of the last one that can be trusted into it"),
        );
        return None;
    }
    match disk::text(&path, files::TRACKER_BYTES_MAX) {
        Ok(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Ok(_) => {
            series.findings.add(stale(
                name,
                "the name of a checkpoint".to_owned(),
                "nothing: the machine died while it was written".to_owned(),
                "write the name of the last one that can be trusted into it",
            ));
            None
        }
        Err(flaw) => {
            series.findings.add(Finding::flaw(name, "the name of a checkpoint", &flaw));
            None
        }
    }
}

fn megatron_tracker(series: &mut Series) -> Option<Stock> {
    let tool = "Megatron load_checkpoint";
    let exists = series.path.join(megatron::TRACKER).exists();
    let Some(text) = tracker(series, megatron::TRACKER) else {
        let outcome = match exists {
            true => "it stops: the tracker names no iteration",
            false => "it starts from random weights, and says so in one line",
        };
        return Some(Stock { tool, takes: None, outcome: outcome.to_owned() });
    };
    let named = match text.parse::<u64>() {
        Ok(number) => format!("iter_{number:07}"),
        Err(_) if text == "release" => text,
        Err(_) => {
            series.findings.add(stale(
                megatron::TRACKER,
                "a number, or release".to_owned(),
                format!("{text:?}"),
                "write the last iteration that can be trusted into it",
            ));
            return Some(Stock { tool, takes: None, outcome: "it stops".to_owned() });
        }
    };
    let target = judge_tracker(series, megatron::TRACKER, &named, |_| true);
    let outcome = target.as_ref().map_or("it fails".to_owned(), |t| told(series, &t.path));
    Some(Stock { tool, takes: target.map(|t| t.path), outcome })
}

/// `latest`, and `latest_universal` for what `ds_to_universal` made.
fn deepspeed_tracker(series: &mut Series) -> Option<Stock> {
    let is_universal = |c: &Checkpoint| deepspeed::is_universal(&c.path);
    let some_universal = series.checkpoints.iter().any(is_universal);
    let universal = some_universal.then(|| {
        let tool = "DeepSpeed load_checkpoint with load_universal";
        let name = deepspeed::TRACKER_UNIVERSAL;
        let fails = "it fails: it needs this file, or a tag";
        deepspeed_follow(series, tool, name, fails, is_universal)
    });
    if series.checkpoints.iter().all(is_universal) {
        return universal;
    }
    let fails = "it warns, loads nothing and goes on with fresh weights";
    let plain = |c: &Checkpoint| !is_universal(c);
    Some(deepspeed_follow(series, "DeepSpeed load_checkpoint", deepspeed::TRACKER, fails, plain))
}

fn deepspeed_follow(
    series: &mut Series,
    tool: &'static str,
    name: &str,
    fails: &str,
    can_name: impl Fn(&Checkpoint) -> bool,
) -> Stock {
    let Some(tag) = tracker(series, name) else {
        return Stock { tool, takes: None, outcome: fails.to_owned() };
    };
    let target = judge_tracker(series, name, &tag, can_name);
    let outcome = target.as_ref().map_or("it fails".to_owned(), |t| told(series, &t.path));
    Stock { tool, takes: target.map(|t| t.path), outcome }
}

/// `latest_step()`: the highest step whose folder has its final name.
fn orbax_latest(series: &Series) -> Option<Stock> {
    let is_final =
        |c: &&Checkpoint| !name_of(&c.path).contains(orbax::TEMPORARY) && c.step.is_some();
    let taken = series.checkpoints.iter().rev().find(is_final)?;
    let outcome = told(series, &taken.path);
    Some(Stock {
        tool: "CheckpointManager.latest_step()",
        takes: Some(taken.path.clone()),
        outcome,
    })
}

/// `ckpt_path="last"`: the file named `last*.ckpt` that was changed last.
fn lightning_last(series: &Series) -> Option<Stock> {
    let last = |c: &&Checkpoint| name_of(&c.path).starts_with("last");
    let taken = series.checkpoints.iter().filter(last).max_by_key(|c| c.modified)?;
    let outcome = told(series, &taken.path);
    Some(Stock {
        tool: "Trainer.fit(ckpt_path=\"last\")",
        takes: Some(taken.path.clone()),
        outcome,
    })
}
