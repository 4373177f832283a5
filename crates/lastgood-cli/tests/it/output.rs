//! Exit codes, help, errors and JSON.

use std::fs;

use crate::tool::{lastgood, on};

#[test]
fn every_command_has_help_and_bad_usage_exits_with_2() {
    let commands =
        ["run", "ls", "show", "log", "verify", "mark", "import", "export", "demo", "completions"];
    let help = lastgood(&["--help"]).exits(0).out;
    for command in commands {
        assert!(help.contains(command), "{help}");
        lastgood(&[command, "--help"]).exits(0);
        lastgood(&[command, "--no-such-option"]).exits(2);
    }
    assert!(help.contains("Examples:") && help.contains("Exit codes:"));
    lastgood(&["no-such-command"]).exits(2);
    lastgood(&["ls"]).exits(2);
}

#[test]
fn shells_get_their_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = lastgood(&["completions", shell]).exits(0).out;
        // fish writes a long option as `-l component`.
        let option = if shell == "fish" { "-l component" } else { "--component" };
        assert!(script.contains("lastgood") && script.contains(option), "{shell}");
    }
}

#[test]
fn what_is_not_there_exits_with_4() {
    let folder = tempfile::tempdir().unwrap();
    let absent = on(folder.path(), &["ls"]).exits(4);
    assert!(absent.err.contains("error[LG"), "{}", absent.err);
    let file = folder.path().join("x.safetensors");
    let empty = safetensors::serialize(
        std::iter::empty::<(&str, safetensors::tensor::TensorView<'_>)>(),
        None,
    );
    fs::write(&file, empty.unwrap()).unwrap();
    on(folder.path(), &["import", file.to_str().unwrap(), "--step", "3"]).exits(0);
    for args in
        [&["show", "--at", "4"][..], &["show", "--run", "other"], &["verify", "--at", "deadbeef"]]
    {
        on(folder.path(), args).exits(4);
    }
}

#[test]
fn a_store_that_nobody_answers_for_exits_with_7() {
    let mut command = crate::tool::command(&["ls", "--store", "s3://bucket/x"]);
    command.envs([
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_REGION", "us-east-1"),
    ]);
    let ran = crate::tool::Ran::from(command.output().unwrap()).exits(7);
    assert!(ran.err.contains("error[LG"), "{}", ran.err);
}

#[test]
fn every_command_speaks_json() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = folder.join("x.safetensors");
    let data = [0u8; 400];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![100], &data);
    fs::write(&file, safetensors::serialize([("w", view.unwrap())], None).unwrap()).unwrap();
    let to = folder.join("out");
    let (file, to) = (file.to_str().unwrap(), to.to_str().unwrap());
    let commands: &[&[&str]] = &[
        &["import", file, "--step", "3", "--json"],
        &["ls", "--json"],
        &["show", "--json", "--tensors"],
        &["log", "--json"],
        &["verify", "--json"],
        &["mark", "good", "--json"],
        &["export", "--to", to, "--json"],
    ];
    for args in commands {
        let ran = on(folder, args).exits(0);
        assert!(!ran.json().is_empty(), "{args:?} says nothing");
    }
    let failed = on(folder, &["show", "--at", "9", "--json"]).exits(4);
    let error: serde_json::Value = serde_json::from_str(&failed.err).unwrap();
    assert_eq!(error["error"]["kind"], "not found", "{error}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = crate::tool::command(&["completions", "bash"]).stdout(full).output();
    let ran = crate::tool::Ran::from(output.unwrap()).exits(1);
    assert!(ran.err.contains("could not be written"), "{}", ran.err);
}

#[test]
fn every_help_has_an_example_and_nothing_but_a_terminal_gets_colours() {
    let commands =
        ["run", "ls", "show", "log", "verify", "mark", "import", "export", "demo", "completions"];
    for command in commands {
        let help = lastgood(&[command, "--help"]).exits(0).out;
        assert!(help.contains(&format!("Examples:\n  lastgood {command}")), "{help}");
        assert!(!help.contains('\u{1b}'), "{help}");
    }
    assert!(!lastgood(&["ls", "--no-such-option"]).exits(2).err.contains('\u{1b}'));
}

#[test]
fn what_is_not_there_says_what_is() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = folder.join("in.safetensors");
    fs::write(&file, crate::tensors::sample(1)).unwrap();
    for step in ["10", "20"] {
        on(folder, &["import", file.to_str().unwrap(), "--step", step]).exits(0);
    }
    let cases: &[(&[&str], &str)] = &[
        (&["show", "--run", "x"], "it has: r"),
        (&["ls", "--run", "x"], "it has: r"),
        (&["show", "--at", "13"], "steps 10 and 20"),
        (&["verify", "--at", "99"], "step 20"),
        (&["import", "nothing.safetensors", "--step", "1"], "nothing.safetensors"),
        (&["export", "--to", "x", "--component", "y"], "there are: model"),
    ];
    for (args, part) in cases {
        let ran = on(folder, args).exits(4);
        assert!(ran.err.contains(part), "{args:?}: {}", ran.err);
    }
    for selector in ["last_good", "newest", "-1", "abc", "12345678x"] {
        let ran = on(folder, &["show", &format!("--at={selector}")]).exits(2);
        assert!(ran.err.contains("last-good, latest, a step"), "{}", ran.err);
    }
    let store = folder.join("store");
    let ran = on(folder, &["import", store.to_str().unwrap(), "--step", "1"]).exits(2);
    assert!(ran.err.contains("0 safetensors files"), "{}", ran.err);
}

#[test]
fn hundreds_of_checkpoints_are_listed_in_order_and_the_last_ones_alone() {
    let place = crate::tool::Place::local();
    let run = "r".parse().unwrap();
    let options = lastgood::RunOptions::default();
    let mut run = lastgood::Run::open(&place.repository(), &run, options).unwrap();
    for step in 1..=150 {
        run.save(step, lastgood::save::Mode::Sync, |capture| {
            let durable = lastgood::state::Durability::Durable;
            capture.component("c", "test", durable)?.value("step", &step)
        })
        .unwrap();
    }
    run.close().unwrap();
    let all = place.on(&["ls"]).exits(0).out;
    let steps: Vec<u64> =
        all.lines().skip(1).map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(steps.iter().copied().eq(1..=150));
    let last = place.on(&["ls", "--last", "3", "--json"]).exits(0).json();
    let steps: Vec<u64> = last.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [148, 149, 150]);
    let at = last[0]["at"].as_str().unwrap();
    assert!(at.ends_with('Z') && at.as_bytes()[10] == b'T', "{at}");
    assert_eq!(place.on(&["log", "--last", "5"]).exits(0).out.lines().count(), 6);
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let line = format!(
        "{} completions bash | head -n 1; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_lastgood")
    );
    let ran = std::process::Command::new("bash").args(["-c", &line]).current_dir(&folder).output();
    let ran = crate::tool::Ran::from(ran.unwrap()).exits(0);
    assert!(ran.err.is_empty(), "{}", ran.err);
}
