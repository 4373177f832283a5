//! Travels: the state of any step as a checkpoint of a branch, at the cost of one interval at most.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::tool::{Ran, command, on};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lastgood");

/// The command of a training that digests every state.
fn job<'a>(steps: &'a str, every: &'a str) -> Vec<&'a str> {
    let words = ["--", PROGRAM, "__demo-rank", "--rest-ms", "0", "--digest-every", "1"];
    [&words[..], &["--steps", steps, "--every", every]].concat()
}

fn train(folder: &Path, ranks: &str, job: &[&str]) {
    on(folder, &[&["run", "--run", "small", "--ranks", ranks], job].concat()).exits(0);
}

fn travel(folder: &Path, to: u64, job: &[&str]) -> Value {
    let to = to.to_string();
    let args = ["replay", "--json", "--run", "small", "--mode", "travel", "--to", &to];
    on(folder, &[&args[..], job].concat()).exits(0).json().pop().unwrap()
}

/// Every object below a folder.
fn objects(folder: &Path) -> BTreeSet<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { objects(&path) } else { [path].into() };
    paths.flat_map(below).collect()
}

#[test]
fn a_branch_tells_where_it_comes_from_and_its_source_is_only_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let job = job("24", "8");
    train(folder, "2", &job);
    let source = folder.join("store/runs/small");
    let before = objects(&source);
    let made = travel(folder, 13, &job);
    travel(folder, 5, &job);
    assert_eq!(before, objects(&source));

    let descriptor = fs::read_to_string(folder.join("store/lastgood.json")).unwrap();
    let descriptor: Value = serde_json::from_str(descriptor.lines().next().unwrap()).unwrap();
    let entries = on(folder, &["log", "--json", "--run", "small-at-13"]).exits(0).json();
    let entry = &entries[1];
    assert_eq!(
        (&entry["kind"], &entry["actor"]),
        (&"branch.created".into(), &"lastgood replay".into())
    );
    let mut origin = json!({"repository": descriptor["repository"], "run": "small",
        "from": made["from"], "from_step": 8, "step": 13, "at": entry["at"], "actor": entry["actor"]});
    assert_eq!((&entry["source"], &entry["from"]), (&"small".into(), &made["from"]));
    let text = on(folder, &["log", "--run", "small-at-13"]).exits(0).out;
    assert!(text.contains("step 13 of run small, re-executed from step 8 ("), "{text}");

    let mut command = command(&["ls", "--json"]);
    command.env("LASTGOOD_STORE", folder.join("store"));
    let runs = Ran::from(command.output().unwrap()).exits(0).json();
    let of = |name: &str| &runs.iter().find(|run| run["run"] == name).unwrap()["origin"];
    assert_eq!((of("small"), of("small-at-13")), (&Value::Null, &origin));
    let shown = on(folder, &["show", "--json", "--run", "small-at-13"]).exits(0).json();
    assert_eq!(shown[0]["origin"], origin);
    let text = on(folder, &["show", "--run", "small-at-5"]).exits(0).out;
    let line =
        "origin      step 5 of run small, re-executed from the beginning, by lastgood replay at 2";
    assert!(text.contains(line), "{text}");
    origin["from"] = Value::Null;
    for (name, value) in [("from_step", 0), ("step", 5)] {
        origin[name] = value.into();
    }
    origin["at"] = of("small-at-5")["at"].clone();
    assert_eq!(of("small-at-5"), &origin);
    // It is a run like any other: verified, and its own record is whole.
    on(folder, &["verify", "--run", "small-at-13"]).exits(0);
}

/// Some steps of 1 to `last` that follow from a seed.
fn some(count: usize, last: u64) -> BTreeSet<u64> {
    let mut seed = 20_261_128_u64;
    let mut steps = BTreeSet::new();
    while steps.len() < count {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        steps.insert(1 + (seed >> 33) % last);
    }
    steps
}

/// Five of the thousand steps; fifty if more is asked for.
#[test]
fn any_of_a_thousand_steps_comes_to_its_recorded_state_within_one_interval() {
    const STEPS: u64 = 1000;
    const EVERY: u64 = 50;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let job = job("1000", "50");
    train(folder, "1", &job);
    let is_slow = std::env::var("LASTGOOD_SLOW").is_ok_and(|slow| slow == "1");
    for step in some(if is_slow { 50 } else { 5 }, STEPS) {
        let made = travel(folder, step, &job);
        let from = made["from_step"].as_u64().unwrap();
        assert!(from < step && step - from <= EVERY, "step {step} from {from}");
        assert_eq!((&made["equal"], &made["level"]), (&true.into(), &"D2".into()), "{made}");
        let states: Vec<u64> = (from + 1..=step).collect();
        assert_eq!(made["states"], json!(states), "each state on the way, and step {step} itself");
        let branch = made["branch"].as_str().unwrap();
        let shown = on(folder, &["show", "--json", "--run", branch]).exits(0).json();
        assert_eq!((&shown[0]["step"], &shown[0]["id"]), (&step.into(), &made["saved"]));
    }
}
