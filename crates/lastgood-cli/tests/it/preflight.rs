//! `lastgood preflight` on the demo: what it says, what it refuses, and what is accepted on the record.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::json::{documented, keys};
use crate::tool::{Ran, on};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lastgood");

/// In a folder whose name a shell and a URL would take for something else.
fn trained() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("it's 100%25 ").tempdir().unwrap();
    let args = ["demo", "--kills", "0", "--seed", "3", "--steps", "20", "--ranks", "2"];
    on(folder.path(), &args).exits(0);
    folder
}

/// Asks the demo's job, of so many steps.
fn ask(folder: &Path, options: &[&str], steps: &str) -> Ran {
    let job = ["--", PROGRAM, "__demo-rank", "--steps", steps, "--every", "5"];
    on(folder, &[&["preflight", "--run", "demo"], options, &job].concat())
}

fn check<'v>(said: &'v Value, name: &str) -> &'v Value {
    let checks = said["checks"].as_array().unwrap();
    checks.iter().find(|check| check["check"] == name).unwrap()
}

fn entries(folder: &Path) -> usize {
    on(folder, &["log", "--run", "demo", "--json"]).exits(0).json().len()
}

#[test]
fn the_job_itself_says_whether_it_can_go_on() {
    let folder = trained();
    let folder = folder.path();
    let before = entries(folder);
    let said = ask(folder, &["--json", "--data", "full"], "20").exits(0).json().pop().unwrap();
    assert_eq!(keys(&said), documented("preflight"));
    assert_eq!((&said["verdict"], &said["step"]), (&"passed".into(), &20.into()));
    assert_eq!(said["read"], said["bytes"]);
    for name in ["environment", "topology", "data", "coverage", "time"] {
        assert_eq!(check(&said, name)["outcome"], "ok", "{said}");
    }
    let ranks = said["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 2);
    assert!(ranks.iter().all(|rank| rank["environment"] == "alike"), "{said}");
    // Parameters are read by both of them.
    let read: u64 = ranks.iter().map(|rank| rank["bytes"].as_u64().unwrap()).sum();
    assert!(read > 0 && ranks[0]["bytes"].as_u64().unwrap() < read, "{said}");
    assert_eq!(keys(&ranks[0]), documented("preflight: ranks"));
    assert_eq!(entries(folder), before, "looking changes nothing");
    let fewer = ask(folder, &["--json", "--ranks", "1"], "20").exits(0).json().pop().unwrap();
    assert_eq!(check(&fewer, "topology")["outcome"], "note");
    assert_eq!(fewer["ranks"].as_array().unwrap().len(), 1);
}

#[test]
fn a_job_that_asks_for_something_else_is_refused_by_name() {
    let folder = trained();
    let folder = folder.path();
    let job = ["--", PROGRAM, "__demo-rank", "--steps", "20", "--every", "5"];
    let asked = ["preflight", "--run", "demo", "--json"];
    let forgets = [&asked[..], &job, &["--forget", "optimizer"]].concat();
    let said = on(folder, &forgets).exits(5).json().pop().unwrap();
    let coverage = check(&said, "coverage");
    assert_eq!(coverage["outcome"], "refused", "{said}");
    let text = coverage["found"].as_str().unwrap();
    assert!(text.contains("optimizer") && text.contains("is only in the checkpoint"), "{text}");
}

#[test]
fn another_configuration_is_refused_and_can_be_accepted() {
    let folder = trained();
    let folder = folder.path();
    let refused = ask(folder, &[], "40").exits(5);
    assert!(refused.out.contains("REFUSED"), "{}", refused.out);
    assert!(refused.out.contains("code.configuration was"), "{}", refused.out);
    // The job refuses by itself too, changes nothing, and says how to go on.
    let job = ["--", PROGRAM, "__demo-rank", "--steps", "40", "--every", "5"];
    let run = ["run", "--run", "demo", "--ranks", "2", "--restarts", "0"];
    let stopped = on(folder, &[&run[..], &job].concat()).exits(1);
    assert!(stopped.err.contains("--accept code. --reason"), "{}", stopped.err);
    // What the refused attempt found is known without asking the job again.
    let said = on(folder, &["preflight", "--run", "demo", "--json"]).exits(5).json().pop().unwrap();
    assert_eq!(said["ranks"][0]["findings"][0]["key"], "code.configuration");
    // Only what differs can be accepted, and only with a reason.
    let args = ["preflight", "--run", "demo", "--accept", "torch."];
    on(folder, &args).exits(2);
    let unknown = on(folder, &[&args[..], &["--reason", "x"]].concat()).exits(4);
    assert!(unknown.err.contains("code.configuration"), "{}", unknown.err);
    // The command that it names is whole: a person says why, and where they are does not matter.
    let (_, command) = stopped.err.split_once("`lastgood preflight").unwrap();
    let (rest, _) = command.split_once('`').unwrap();
    let command = format!("\"$0\" preflight{}", rest.replace("TEXT", "longer"));
    let mut shell = Command::new("sh");
    shell.args(["-c", &command, PROGRAM]).current_dir("/").env_remove("LASTGOOD_STORE");
    let accepted = Ran::from(shell.output().unwrap()).exits(0);
    assert!(
        accepted.out.contains("recorded in the ledger: code.configuration"),
        "{}",
        accepted.out
    );
    let log = on(folder, &["log", "--run", "demo"]).exits(0);
    assert!(log.out.contains("code.configuration: longer"), "{}", log.out);
    let said = ask(folder, &["--json"], "40").exits(0).json().pop().unwrap();
    assert_eq!(said["verdict"], "accepted");
    on(folder, &[&run[..], &job].concat()).exits(0);
}

#[test]
fn accepted_with_the_start_itself() {
    let folder = trained();
    let folder = folder.path();
    let run = ["run", "--run", "demo", "--ranks", "2", "--restarts", "0"];
    let job = ["--", PROGRAM, "__demo-rank", "--steps", "40", "--every", "5"];
    let accept = ["--accept", "code.", "--reason", "longer"];
    on(folder, &[&run[..], &accept, &job].concat()).exits(0);
    let log = on(folder, &["log", "--run", "demo"]).exits(0);
    assert_eq!(log.out.matches("code.configuration: longer").count(), 1, "{}", log.out);
}

fn packs(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => packs(&path, found),
            false if path.extension().is_some_and(|e| e == "pack") => found.push(path),
            false => {}
        }
    }
}

#[test]
fn missing_data_and_a_job_that_never_restores_are_told() {
    let folder = trained();
    let folder = folder.path();
    let asked = ["preflight", "--run", "demo", "--", "true"];
    let nothing = on(folder, &asked).exits(4);
    assert!(nothing.err.contains("before it came to a restore"), "{}", nothing.err);
    let failed = on(folder, &["preflight", "--run", "demo", "--", "false"]).exits(1);
    assert!(failed.err.contains("did not come to its end"), "{}", failed.err);
    let mut found = Vec::new();
    packs(folder, &mut found);
    found.sort();
    fs::remove_file(found.pop().unwrap()).unwrap();
    let damaged = on(folder, &["preflight", "--run", "demo"]).exits(3);
    assert!(damaged.out.contains("DAMAGED"), "{}", damaged.out);
    assert!(damaged.out.contains("no such object"), "{}", damaged.out);
}
