//! The folder of an export: whole or not there, whatever happens.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

use crate::tool::{Ran, command_on, on};

/// A file of a few megabytes of one byte.
fn file_of(byte: u8) -> Vec<u8> {
    let data = vec![byte; 6 << 20];
    let views = ["a", "b", "c"].map(|name| {
        (name, TensorView::new(Dtype::U8, vec![data.len() / 3], &data[..data.len() / 3]).unwrap())
    });
    serialize(views, None).unwrap()
}

/// A store with checkpoints of steps 1 and 2, of which the bytes are 1 and 2.
fn stored() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for byte in [1, 2] {
        let file = folder.path().join("in.safetensors");
        fs::write(&file, file_of(byte)).unwrap();
        let args = ["import", file.to_str().unwrap(), "--step", &byte.to_string()];
        on(folder.path(), &args).exits(0);
    }
    folder
}

/// The step of the export in `to`, all of which must be there; `None` if there is none.
fn whole(to: &Path) -> Option<u8> {
    if !to.exists() {
        return None;
    }
    let marker = fs::read(to.join("lastgood-export.json")).unwrap();
    let marker: serde_json::Value = serde_json::from_slice(&marker).unwrap();
    let step = marker["step"].as_u64().unwrap() as u8;
    let file = fs::read(to.join("model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&file).unwrap();
    for name in ["a", "b", "c"] {
        assert!(read.tensor(name).unwrap().data().iter().all(|byte| *byte == step));
    }
    assert_eq!(fs::read_dir(to).unwrap().count(), 2);
    Some(step)
}

fn leavings(parent: &Path) -> usize {
    let names = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().starts_with(".lastgood-export-")).count()
}

#[test]
fn a_killed_export_leaves_the_folder_as_it_was() {
    let stored = stored();
    let parent = stored.path().join("exports");
    fs::create_dir(&parent).unwrap();
    let to = parent.join("out");
    let begin = Instant::now();
    let args = |step: &'static str| ["export", "--at", step, "--to", to.to_str().unwrap()];
    on(stored.path(), &args("1")).exits(0);
    let whole_takes = begin.elapsed();
    fs::remove_dir_all(&to).unwrap();
    let (mut killed, mut before) = (0, None);
    for i in 0..24u32 {
        // From the very beginning to after the end.
        let step = if i % 2 == 0 { "1" } else { "2" };
        let mut child =
            command_on(stored.path(), &args(step)).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole_takes.mul_f64(f64::from(i) / 20.0));
        child.kill().unwrap();
        let was_killed = child.wait().unwrap().signal() == Some(9);
        killed += u32::from(was_killed);
        let now = whole(&to);
        let wanted = step.parse().ok();
        assert!(now == before || now == wanted, "{before:?} became {now:?}, asked for {wanted:?}");
        before = now;
    }
    assert!(killed > 5, "only {killed} of 24 were killed before they were done");
    on(stored.path(), &args("2")).exits(0);
    assert_eq!(whole(&to), Some(2));
    assert_eq!(leavings(&parent), 0, "a later export removes what killed ones left");
}

#[test]
fn ctrl_c_removes_what_was_written_and_ends_the_command() {
    let stored = stored();
    let parent = stored.path().join("exports");
    let to = parent.join("out");
    let mut interrupted = 0;
    for i in 0..10u32 {
        let args = ["export", "--to", to.to_str().unwrap()];
        let mut child = command_on(stored.path(), &args).stdout(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !to.exists() && (!parent.exists() || leavings(&parent) == 0) {
            assert!(Instant::now() < until, "the export has not begun");
        }
        std::thread::sleep(Duration::from_millis(u64::from(i)));
        let signal = if i % 2 == 0 { Signal::INT } else { Signal::TERM };
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        // Either the signal ended it, or it was done before it looked.
        match status.signal() {
            Some(number) => {
                assert_eq!(number, signal.as_raw());
                interrupted += 1;
            }
            None => assert!(status.success(), "{status}"),
        }
        assert_eq!(leavings(&parent), 0, "{status}");
        whole(&to);
        fs::remove_dir_all(&to).ok();
    }
    assert!(interrupted > 0, "every export was done before it was interrupted");
}

#[test]
fn a_disk_that_is_full_is_told_and_nothing_is_left() {
    let stored = stored();
    let to = stored.path().join("exports").join("out");
    // Files may have 1 MiB: the write fails as on a disk without room.
    let line = format!(
        "trap '' XFSZ; ulimit -f 1024; exec '{}' export --to '{}'",
        env!("CARGO_BIN_EXE_lastgood"),
        to.display()
    );
    let mut command = std::process::Command::new("bash");
    command.args(["-c", &line]);
    command.env("LASTGOOD_STORE", stored.path().join("store")).env("LASTGOOD_RUN", "r");
    let ran = Ran::from(command.output().unwrap()).exits(1);
    assert!(ran.err.contains("cannot write") && ran.err.contains("model"), "{}", ran.err);
    assert!(!to.exists());
    assert_eq!(leavings(to.parent().unwrap()), 0);
}

#[test]
fn places_that_cannot_be_an_export_are_refused_with_their_reason() {
    let stored = stored();
    let folder = stored.path();
    fs::write(folder.join("file"), "x").unwrap();
    std::os::unix::fs::symlink(folder.join("store"), folder.join("link")).unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    let cases = [
        (at("store/x"), "is in the store"),
        (at("store"), "is in the store"),
        (at("link"), "is in the store"),
        (at("link/x/y"), "is in the store"),
        (at("."), "a folder that the store is in"),
        ("/".to_owned(), "cannot be replaced as a whole"),
        (at("file"), "is no folder"),
        (at("file/x"), "below a file"),
    ];
    for (to, reason) in cases {
        let ran = on(folder, &["export", "--force", "--to", &to]).exits(2);
        assert!(ran.err.contains(reason), "{to}: {}", ran.err);
    }
    on(folder, &["verify"]).exits(0);
    on(folder, &["export", "--to", "/proc/nowhere/x"]).exits(1);
}

#[test]
fn an_export_through_a_link_replaces_what_it_points_to() {
    let stored = stored();
    let folder = stored.path();
    fs::create_dir(folder.join("real")).unwrap();
    std::os::unix::fs::symlink(folder.join("real"), folder.join("link")).unwrap();
    let link = folder.join("link").display().to_string();
    for step in ["1", "2"] {
        on(folder, &["export", "--at", step, "--to", &link]).exits(0);
        assert_eq!(whole(&folder.join("real")), step.parse().ok());
        assert!(folder.join("link").is_symlink());
    }
}
