//! `lastgood replay --mode shadow`: windows of a run, chosen by chance, are run again beside it.

use std::path::Path;

use crate::json::{documented, keys};
use crate::tool::{Ran, on};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lastgood");
/// With digests no save is left out because the next one comes.
const JOB: [&str; 8] =
    ["--", PROGRAM, "__demo-rank", "--digest-every", "4", "--steps", "24", "--every"];

fn train(folder: &Path, more: &[&str]) {
    let run = ["run", "--run", "llm", "--ranks", "2"];
    on(folder, &[&run[..], &JOB, &["4"], more].concat()).exits(0);
}

fn shadow(folder: &Path, windows: &str) -> Ran {
    let asked = ["replay", "--mode", "shadow", "--run", "llm", "--windows", windows, "--json"];
    on(folder, &[&asked[..], &JOB, &["4"]].concat())
}

#[test]
fn an_undisturbed_run_is_equal_in_every_window() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    train(folder, &[]);
    // There are six windows, and each is looked at once.
    let said = shadow(folder, "20").exits(0).json();
    let mut ends: Vec<u64> = said.iter().map(|line| line["to"].as_u64().unwrap()).collect();
    ends.sort_unstable();
    assert_eq!(ends, [4, 8, 12, 16, 20, 24]);
    assert!(said.iter().all(|line| line["equal"] == true && line["verdict"].is_null()), "{said:?}");
    assert_eq!(keys(&said[0]), documented("replay: a line for each window of a shadow"));
}

#[test]
fn a_flipped_bit_is_found_and_told_in_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    train(folder, &["--flip", "14"]);
    let said = shadow(folder, "6").exits(6).json();
    let found = said.last().unwrap();
    assert_eq!((&found["from_step"], &found["to"]), (&12.into(), &16.into()), "{found}");
    let verdict = found["verdict"].as_str().unwrap();
    assert!(verdict.contains("the run was disturbed"), "{verdict}");
    assert!(found["first"]["step"].as_u64().unwrap() >= 14, "{found}");
    let log = on(folder, &["log", "--run", "llm"]).exits(0);
    assert!(log.out.contains("incident.opened"), "{}", log.out);
    assert!(log.out.contains("a shadow of steps 13 to 16 differs"), "{}", log.out);
}
