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
fn a_job_that_may_shrink_says_who_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"[ "$TORCHELASTIC_RESTART_COUNT" = 1 ] && exec echo "$RANK of $WORLD_SIZE"
        [ "$RANK" = 1 ] && kill -9 $$; exec sleep 60"#;
    let args = ["run", "--ranks", "3", "--shrink", "--min-ranks", "2", "--", "sh", "-c", script];
    let ran = on(folder.path(), &args).exits(0);
    for part in ["rank 1 is not replaced: 2 ranks go on", "attempt 2: 2 ranks"] {
        assert!(ran.err.contains(part), "{}", ran.err);
    }
    for line in ["[rank 0] 0 of 2", "[rank 1] 1 of 2"] {
        assert!(ran.out.contains(line), "{}", ran.out);
    }
    let log = on(folder.path(), &["log"]).exits(0).out;
    for part in ["attempt 1 of 3 ranks", "rank 1 is not replaced", "attempt 2 of 2 ranks"] {
        assert!(log.contains(part), "{log}");
    }
    for wrong in [
        &["--min-ranks", "1"][..],
        &["--shrink", "--min-ranks", "0"],
        &["--shrink", "--min-ranks", "4"],
    ] {
        let args = [&["run", "--ranks", "3"], wrong, &["--", "true"]].concat();
        on(folder.path(), &args).exits(2);
    }
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
    // A rank itself, and what a rank has started.
    for script in [
        "echo $$ >$PID; echo ready; exec sleep 1000",
        "sleep 1000 & echo $! >$PID; echo ready; wait",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("PID='{}'; {script}", pid.display());
        let (mut child, _out) = started(folder.path(), &script);
        send(&child, Signal::KILL);
        child.wait().unwrap();
        ends(&pid);
    }
}

/// Waits until the process ends whose number is in the file.
fn ends(pid: &std::path::Path) {
    let stat = format!("/proc/{}/stat", fs::read_to_string(pid).unwrap().trim());
    let until = Instant::now() + Duration::from_secs(10);
    // It is gone, or a zombie that nobody has reaped yet.
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < until, "it lives: {stat}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_second_ctrl_c_does_not_wait_for_a_rank_that_is_deaf() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let script = format!(
        "trap '' TERM INT; echo $$ >'{}'; echo ready; while true; do sleep 0.05; done",
        pid.display()
    );
    let (mut child, _out) = started(folder.path(), &script);
    send(&child, Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the grace time is 20 s");
    let begin = Instant::now();
    send(&child, Signal::INT);
    let ran = Ran::from(child.wait_with_output().unwrap()).exits(1);
    assert!(begin.elapsed() < Duration::from_secs(10), "{}", ran.err);
    ends(&pid);
}

#[test]
fn a_process_that_leaves_its_rank_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    // It keeps the rank's output open.
    let script = format!("setsid sleep 1000 & echo $! >'{}'; echo done", pid.display());
    let begin = Instant::now();
    let ran = on(folder.path(), &["run", "--", "sh", "-c", &script]).exits(0);
    let left: i32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert_eq!(ran.out, "[rank 0] done\n");
}

#[test]
fn output_comes_through_whole_whatever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let script = "yes 0123456789012345678901234567890123456789 | head -n 50000; \
                  printf '\\377\\000binary\\n'; printf 'no line feed'";
    let mut command = crate::tool::command_on(folder.path(), &["run", "--", "sh", "-c", script]);
    let output = command.output().unwrap();
    assert!(output.status.success());
    let lines: Vec<&[u8]> = output.stdout.split(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), 50_003, "with what is behind the last line feed");
    let long = b"[rank 0] 0123456789012345678901234567890123456789";
    assert!(lines[..50_000].iter().all(|line| line == long));
    assert_eq!(lines[50_000], b"[rank 0] \xff\x00binary");
    assert_eq!(lines[50_001], b"[rank 0] no line feed");
}

#[test]
fn a_file_that_may_not_be_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.py");
    fs::write(&file, "print()").unwrap();
    let ran = on(folder.path(), &["run", "--", file.to_str().unwrap()]).exits(5);
    assert!(ran.err.contains("may not be run"), "{}", ran.err);
    for args in [&["run", "--ranks", "0", "--", "true"][..], &["run"], &["run", "--"]] {
        on(folder.path(), args).exits(2);
    }
    assert!(!folder.path().join("store/runs").exists(), "no attempt was started");
}

#[test]
fn a_verdict_says_where_to_look_and_how_to_go_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in.safetensors");
    fs::write(&file, crate::tensors::sample(1)).unwrap();
    on(folder.path(), &["import", file.to_str().unwrap(), "--step", "10"]).exits(0);
    let args = ["run", "--restarts", "1", "--", "sh", "-c", "kill -9 $$"];
    let ran = on(folder.path(), &args).exits(1);
    for part in ["signal 9 (SIGKILL)", "out-of-memory", "goes on from step 10", "mark bad"] {
        assert!(ran.err.contains(part), "{}", ran.err);
    }
    // What it says to type works.
    let line = ran.err.lines().find(|line| line.trim().starts_with("lastgood mark bad")).unwrap();
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    on(folder.path(), &words).exits(0);
    assert!(on(folder.path(), &["ls"]).exits(0).out.contains("bad"));
}

#[test]
fn worlds_of_up_to_eight_ranks_share_one_port() {
    for ranks in ["1", "3", "8"] {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo $RANK $WORLD_SIZE $MASTER_PORT";
        let args = ["run", "--ranks", ranks, "--", "sh", "-c", script];
        let out = on(folder.path(), &args).exits(0).out;
        let count: usize = ranks.parse().unwrap();
        assert_eq!(out.lines().count(), count, "{out}");
        let port = out.lines().next().unwrap().split(' ').nth(4).unwrap().to_owned();
        for rank in 0..count {
            let line = format!("[rank {rank}] {rank} {ranks} {port}");
            assert!(out.lines().any(|said| said == line), "{line}: {out}");
        }
    }
}
