//! `lastgood replay --mode resume`: a run goes on, and does again what is recorded behind its checkpoint.

use std::path::Path;

use crate::json::{documented, keys};
use crate::tool::{Ran, on};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lastgood");
const JOB: [&str; 8] =
    ["--", PROGRAM, "__demo-rank", "--steps", "20", "--every", "4", "--digest-every"];

/// Saves at step 8 and crashes in step 11.
fn crashed(folder: &Path) {
    let run = ["run", "--run", "llm", "--ranks", "2", "--restarts", "0"];
    on(folder, &[&run[..], &JOB, &["1", "--crash", "11"]].concat()).exits(1);
}

fn resume(folder: &Path, asked: &[&str], job: &[&str]) -> Ran {
    let replay = ["replay", "--mode", "resume", "--run", "llm"];
    on(folder, &[&replay[..], asked, &JOB, &["1"], job].concat())
}

#[test]
fn a_crashed_run_does_its_last_steps_again_and_is_live() {
    for ranks in ["2", "1"] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        crashed(folder);
        let said = resume(folder, &["--ranks", ranks, "--json"], &[]).exits(0).json();
        let came = said.last().unwrap();
        assert_eq!(keys(came), documented("replay: resumed"));
        let from = came["from_step"].as_u64().unwrap();
        assert!([4, 8].contains(&from) && came["equal"] == true, "{came}");
        assert!(came["attempt"] == 2 && came["recorded_by"] == 1, "{came}");
        // A crash takes the events of the last moments with it.
        let to = came["to"].as_u64().unwrap();
        let states = came["states"].as_array().unwrap();
        assert!((9..=11).contains(&to) && states.len() as u64 + 3 >= to - from, "{came}");
        assert!(said.iter().any(|line| line["event"] == "finished"), "{said:?}");
        let text = on(folder, &["log", "--run", "llm", "--journal", "--kind", "resumed"]).exits(0);
        assert_eq!(text.out.lines().count(), 1 + ranks.parse::<usize>().unwrap(), "{}", text.out);
    }
}

#[test]
fn what_comes_to_something_else_ends_it_before_it_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    crashed(folder);
    let said = resume(folder, &[], &["--flip", "9"]).exits(6);
    assert!(
        said.out.contains("DIVERGED    attempt 2 comes to something else than attempt 1"),
        "{}",
        said.out
    );
    assert!(said.err.contains("the steps that attempt 1 did after the checkpoint"), "{}", said.err);
    // It would come to the same again: there is no third attempt.
    let log = on(folder, &["log", "--run", "llm"]).exits(0).out;
    assert_eq!(log.matches("attempt.started").count(), 2, "{log}");
    assert!(log.contains("attempt 2 comes to something else than attempt 1 at step"), "{log}");
    assert_eq!(log.matches("checkpoint.committed").count(), 2, "{log}");
    // Undisturbed it goes on, to the same as if nothing had been.
    let said = resume(folder, &[], &[]).exits(0);
    assert!(said.out.contains("resumed     attempt 3 did steps "), "{}", said.out);
    assert!(said.out.contains(" again as attempt 1 recorded them"), "{}", said.out);
    // There is nothing left to do again.
    let said = resume(folder, &[], &[]).exits(0);
    assert!(
        said.out.contains("live        nothing was recorded behind the checkpoint"),
        "{}",
        said.out
    );
}

#[test]
fn what_it_needs_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let none = resume(folder.path(), &[], &[]);
    assert_ne!(none.code, 0);
    crashed(folder.path());
    let replay = ["replay", "--mode", "resume", "--run", "llm"];
    let said = on(folder.path(), &replay).exits(2);
    assert!(said.err.contains("no command is given to run again"), "{}", said.err);
    let run = ["run", "--run", "llm", "--resume", "again", "--", "true"];
    let said = on(folder.path(), &run).exits(2);
    assert!(said.err.contains("`live` or `replay`"), "{}", said.err);
}
