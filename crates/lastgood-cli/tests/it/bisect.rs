//! The search for the first difference: in a run that is executed again, and between two runs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::json::{documented, keys};
use crate::tool::on;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lastgood");

/// The command of a training, with nothing that is planted in it.
fn job<'a>(steps: &'a str, every: &'a str, digest_every: &'a str) -> Vec<&'a str> {
    let words = ["--", PROGRAM, "__demo-rank", "--rest-ms", "0", "--steps", steps];
    [&words[..], &["--every", every, "--digest-every", digest_every]].concat()
}

/// Trains `run` on so many ranks, with more arguments for each of them.
fn train(folder: &Path, run: &str, ranks: &str, job: &[&str]) {
    on(folder, &[&["run", "--run", run, "--ranks", ranks], job].concat()).exits(0);
}

fn bisect(folder: &Path, run: &str, options: &[&str], code: i32) -> Value {
    let args = [&["bisect", "--json", "--run", run], options].concat();
    on(folder, &args).exits(code).json().pop().unwrap()
}

#[test]
fn runs_that_did_the_same_are_equal_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let job = job("24", "8", "1");
    train(folder, "one", "1", &job);
    train(folder, "two", "2", &job);
    let said = bisect(folder, "one", &["--against", "two"], 0);
    assert_eq!(keys(&said), documented("bisect"));
    assert_eq!((&said["step"], &said["first"]), (&Value::Null, &Value::Null));
    assert_eq!((&said["equal_to"], &said["executions"]), (&24.into(), &0.into()), "{said}");
    let text = on(folder, &["bisect", "--run", "two", "--against", "one"]).exits(0).out;
    assert_eq!(text, "equal       to step 24, in 96 step records and 24 states of both\n");
}

#[test]
fn where_two_runs_part_is_named_by_what_both_have_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let often = job("24", "8", "1");
    train(folder, "whole", "2", &often);
    train(folder, "saved", "2", &[&often[..], &["--flip", "16"]].concat());
    train(folder, "between", "2", &[&often[..], &["--flip", "13"]].concat());
    train(folder, "seldom", "2", &[&job("24", "8", "8")[..], &["--flip", "13"]].concat());

    // The other run has saved the state that the bit is in, so that its bytes can be looked at.
    let said = bisect(folder, "whole", &["--against", "saved"], 6);
    assert_eq!((&said["step"], &said["equal_to"]), (&16.into(), &15.into()), "{said}");
    assert_eq!((&said["first"]["code"], &said["executions"]), (&"LG-ND-001".into(), &0.into()));
    assert_eq!((&said["element"]["bits"], &said["tensor"]), (&1.into(), &said["first"]), "{said}");
    let causes = said["causes"].to_string();
    assert!(causes.contains("flipped in one of the runs"), "{causes}");
    // Each of them says what the other one says.
    let turned = bisect(folder, "saved", &["--against", "whole"], 6);
    let element = |said: &Value, name: &str| said["element"][name].clone();
    assert_eq!(element(&turned, "recorded"), element(&said, "replayed"));
    assert_eq!(element(&turned, "replayed"), element(&said, "recorded"));
    let text = on(folder, &["bisect", "--run", "whole", "--against", "saved"]).exits(6).out;
    assert!(text.contains("saved has F32 of") && !text.contains("re-executed"), "{text}");
    assert!(text.contains("and saved has -0.") && !text.contains("would be"), "{text}");
    assert!(text.contains("the state is equal to step 15"), "{text}");

    let said = bisect(folder, "whole", &["--against", "between"], 6);
    assert_eq!((&said["step"], &said["equal_to"]), (&13.into(), &12.into()), "{said}");
    assert_eq!((&said["first"]["code"], &said["element"]), (&"LG-ND-001".into(), &Value::Null));

    // Without digests between the saves the first loss after it tells, and the save after that which tensors.
    let said = bisect(folder, "seldom", &["--against", "whole"], 6);
    assert_eq!((&said["step"], &said["equal_to"]), (&14.into(), &8.into()), "{said}");
    assert_eq!((&said["first"]["what"], &said["tensor"]["step"]), (&"loss".into(), &16.into()));
}

#[test]
fn the_other_run_may_be_in_another_store_and_its_record_is_read_first() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (here, there) = (here.path(), there.path());
    let job = job("16", "8", "1");
    train(here, "llm", "1", &job);
    train(there, "llm", "2", &[&job[..], &["--flip", "12"]].concat());
    let store = there.join("store").display().to_string();
    let options = ["--against", "llm", "--against-store", &store];
    let said = bisect(here, "llm", &options, 6);
    assert_eq!((&said["step"], &said["equal_to"]), (&12.into(), &11.into()), "{said}");

    let segment = first_segment(&there.join("store/runs/llm/journal"));
    let mut bytes = fs::read(&segment).unwrap();
    bytes[300] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let said = bisect(here, "llm", &options, 3);
    assert!(said["damage"][0].as_str().unwrap().contains("run llm: "), "{said}");
    assert_eq!((&said["step"], &said["equal_to"]), (&Value::Null, &0.into()));
}

fn first_segment(folder: &Path) -> PathBuf {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let first = paths.into_iter().find(|path| !path.ends_with("control")).unwrap();
    if first.is_dir() { first_segment(&first) } else { first }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    train(folder, "llm", "1", &job("4", "2", "0"));
    let file = folder.join("in.safetensors");
    fs::write(&file, crate::tensors::sample(1)).unwrap();
    on(folder, &["import", file.to_str().unwrap(), "--run", "imported", "--step", "4"]).exits(0);
    for (options, code, text) in [
        (&["--against", "llm"][..], 2, "compared with itself"),
        (&["--against", "imported", "--from", "2"], 2, "--from"),
        (&["--against-store", "elsewhere"], 2, "--against"),
        (&["--against", "nobody"], 4, "no run nobody"),
        (&["--against", "imported"], 4, "no step of the same number"),
    ] {
        let ran = on(folder, &[&["bisect", "--run", "llm"], options].concat()).exits(code);
        assert!(ran.err.contains(text), "{}", ran.err);
    }
}

/// However few checkpoints there are, and however few steps.
#[test]
fn a_flipped_bit_is_found_in_as_many_executions_as_the_steps_can_be_halved() {
    for (steps, every, flip, bound) in
        [("40", "24", "24", 6), ("40", "24", "9", 6), ("8", "1", "8", 3), ("3", "3", "3", 2)]
    {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let clean = job(steps, every, "1");
        train(folder, "llm", "2", &[&clean[..], &["--flip", flip]].concat());
        let said = bisect(folder, "llm", &clean, 6);
        let step: u64 = flip.parse().unwrap();
        assert_eq!(
            (&said["step"], &said["equal_to"]),
            (&step.into(), &(step - 1).into()),
            "{said}"
        );
        assert_eq!(said["element"]["bits"], 1, "{said}");
        assert!(said["causes"].to_string().contains("one bit of one element was flipped"));
        let executions = said["executions"].as_u64().unwrap();
        assert!(executions <= bound, "{executions} executions of {steps} steps");
    }
}
