//! `--json`: what `docs/reference/json.md` says, on every command.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::tensors::sample;
use crate::tool::{Ran, lastgood, on};

/// The names in a section of the page, each in a line of its table as `| \`name\` | … |`.
pub(crate) fn documented(section: &str) -> BTreeSet<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/json.md");
    let page = fs::read_to_string(page).unwrap();
    let heading = format!("## {section}\n");
    let begin = page.find(&heading).unwrap_or_else(|| panic!("no section {section:?}"));
    let text = &page[begin + heading.len()..];
    let text = &text[..text.find("\n## ").unwrap_or(text.len())];
    let names = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    names.map(str::to_owned).collect()
}

pub(crate) fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn every_command_says_what_its_page_says() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = folder.join("in.safetensors");
    fs::write(&file, sample(1)).unwrap();
    let to = folder.join("out");
    let (file, to) = (file.to_str().unwrap(), to.to_str().unwrap());
    let commands: &[(&str, &[&str])] = &[
        ("import", &["import", file, "--step", "3"]),
        ("ls --run", &["ls"]),
        ("show", &["show", "--tensors"]),
        ("mark", &["mark", "good"]),
        ("export", &["export", "--to", to]),
    ];
    for (section, args) in commands {
        let ran = on(folder, &[args, &["--json"][..]].concat()).exits(0);
        let [line] = &ran.json()[..] else { panic!("{section}: {}", ran.out) };
        assert_eq!(keys(line), documented(section), "{section}");
    }
    let mut command = crate::tool::command(&["ls", "--json"]);
    command.env("LASTGOOD_STORE", folder.join("store"));
    let runs = Ran::from(command.output().unwrap()).exits(0).json();
    assert_eq!(keys(&runs[0]), documented("ls"));
    let mut verified = on(folder, &["verify", "--json"]).exits(0).json();
    assert_eq!(keys(&verified.pop().unwrap()), documented("verify: the last line"));
    assert_eq!(keys(&verified[0]), documented("verify: a line for each checkpoint"));
    assert_eq!(keys(&verified[1]["journal"]), documented("verify: the journal"));
    let log = on(folder, &["log", "--json"]).exits(0).json();
    let common = documented("log");
    assert!(log.iter().all(|entry| common.is_subset(&keys(entry))), "{log:?}");
    let mut examined = lastgood(&["doctor", file, "--json"]).exits(0).json();
    assert_eq!(keys(&examined.pop().unwrap()), documented("doctor: the last line"));
    assert_eq!(keys(&examined.pop().unwrap()), documented("doctor: a line for each folder"));
    assert_eq!(keys(&examined[0]), documented("doctor: a line for each checkpoint"));
    let script = lastgood(&["completions", "bash", "--json"]).exits(0).json();
    assert_eq!(keys(&script[0]), documented("completions"));
}

#[test]
fn events_of_jobs_are_those_of_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let script = "echo hi; [ $TORCHELASTIC_RESTART_COUNT = 1 ]";
    let ran = on(folder.path(), &["run", "--json", "--", "sh", "-c", script]).exits(0);
    for event in ran.json() {
        let section = format!("run: {}", event["event"].as_str().unwrap());
        let mut keys = keys(&event);
        keys.remove("event");
        assert_eq!(keys, documented(&section), "{section}");
    }
    let args = ["demo", "--json", "--kills", "1", "--steps", "20", "--ranks", "2", "--shrink"];
    for event in lastgood(&args).exits(0).json() {
        let section = format!("demo: {}", event["event"].as_str().unwrap());
        let mut keys = keys(&event);
        keys.remove("event");
        assert_eq!(keys, documented(&section), "{section}");
    }
}

#[test]
fn errors_are_json_too_with_the_exit_code_that_they_end_with() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = folder.join("no.safetensors");
    fs::write(&file, "PK").unwrap();
    let commands: &[(i32, &[&str])] = &[
        (1, &["export", "--to", "/proc/nowhere/x", "--run", "demo"]),
        (2, &["ls", "--no-such-option"]),
        (2, &["show", "--at", "lastgood"]),
        (2, &["demo", "--ranks", "9"]),
        (3, &["import", file.to_str().unwrap(), "--step", "1"]),
        (4, &["ls", "--run", "other"]),
        (4, &["run", "--", "/no/such/program"]),
        (5, &["demo", "--steps", "10", "--kills", "0"]),
    ];
    on(folder, &["demo", "--steps", "10", "--kills", "0", "--ranks", "1"]).exits(0);
    for (section, more) in [("log --journal", None), ("log --journal --count", Some("--count"))] {
        let args: Vec<&str> =
            ["log", "--run", "demo", "--journal", "--json"].into_iter().chain(more).collect();
        for event in on(folder, &args).exits(0).json() {
            assert_eq!(keys(&event), documented(section), "{section}");
        }
    }
    for (code, args) in commands {
        let ran = on(folder, &[&["--json"], *args].concat()).exits(*code);
        let last = ran.err.lines().last().unwrap_or_default();
        let error: Value = serde_json::from_str(last).unwrap();
        assert_eq!(keys(&error["error"]), documented("Errors"), "{args:?}");
        assert_eq!(error["error"]["exit"], *code, "{args:?}");
    }
}
