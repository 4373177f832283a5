//! `lastgood run` with real processes and signals.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::tool::{Ran, command, on};

#[test]
fn lines_carry_their_rank_and_a_failed_rank_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"echo "hello $RANK"; [ "$TORCHELASTIC_RESTART_COUNT" = 1 ] || exit 9"#;
    let args = ["run", "--ranks", "2", "--", "sh", "-c", script];
    let ran = on(folder.path(), &args).exits(0);
    for line in ["[rank 0] hello 0", "[rank 1] hello 1"] {
        assert!(ran.out.contains(line), "{}", ran.out);
    }
    for part in ["ended with code 9", "starting again", "done in 2 attempts"] {
        assert!(ran.err.contains(part), "{}", ran.err);
    }
    let log = on(folder.path(), &["log"]).exits(0).out;
    assert!(log.contains("attempt 2"), "{log}");
}

#[test]
fn a_job_that_cannot_go_on_is_given_up_with_a_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["run", "--", "sh", "-c", "echo 'no module named torch' >&2; exit 1"];
    let ran = on(folder.path(), &args).exits(1);
    for part in ["given up", "same failure twice", "its last words: no module named torch"] {
        assert!(ran.err.contains(part), "{}", ran.err);
    }
}

#[test]
fn a_program_that_does_not_exist_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let ran = on(folder.path(), &["run", "--", "no-such-program", "--epochs", "3"]).exits(4);
    assert!(ran.err.contains("no-such-program"), "{}", ran.err);
    assert!(!folder.path().join("store").exists(), "nothing was created");
}

#[test]
fn events_are_lines_of_json() {
    let folder = tempfile::tempdir().unwrap();
    let ran = on(folder.path(), &["run", "--json", "--", "sh", "-c", "echo hi"]).exits(0);
    let events: Vec<_> =
        ran.json().iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(events, ["started", "line", "ended", "finished"]);
}

/// `lastgood run` of a script, once its rank has printed the line `ready`.
fn started(
    folder: &std::path::Path,
    script: &str,
) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command(&["run", "--run", "r", "--grace", "20s", "--", "sh", "-c", script])
        .env("LASTGOOD_STORE", folder.join("store"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "[rank 0] ready\n");
    (child, out)
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn sigterm_and_ctrl_c_are_passed_on_with_time_to_save() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = tempfile::tempdir().unwrap();
        let script = "trap 'echo saved; exit 0' TERM; echo ready; while true; do sleep 0.05; done";
        let (child, mut out) = started(folder.path(), script);
        send(&child, signal);
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "[rank 0] saved\n");
        let ran = Ran::from(child.wait_with_output().unwrap()).exits(1);
        assert!(ran.err.contains("stopped before the job was done"), "{}", ran.err);
    }
}

#[test]
fn ranks_do_not_outlive_a_supervisor_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let script = format!("echo $$ >'{}'; echo ready; exec sleep 1000", pid.display());
    let (mut child, _out) = started(folder.path(), &script);
    send(&child, Signal::KILL);
    child.wait().unwrap();
    let stat = format!("/proc/{}/stat", fs::read_to_string(&pid).unwrap().trim());
    let until = Instant::now() + Duration::from_secs(5);
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < until, "the rank lives");
        std::thread::sleep(Duration::from_millis(20));
    }
}
