//! Replays of the demo: a run that was killed is proven equal, on as many ranks and on others.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::json::{documented, keys};
use crate::tool::on;

/// Trains on four ranks, with kills, and keeps the repository.
fn killed(folder: &Path) {
    let args = ["demo", "--kills", "5", "--seed", "3", "--steps", "60"];
    on(folder, &args).exits(0);
}

fn replay(folder: &Path, options: &[&str], steps: &str, code: i32) -> Value {
    let program = env!("CARGO_BIN_EXE_lastgood");
    let job = ["--", program, "__demo-rank", "--steps", steps, "--every", "5"];
    let args = [&["replay", "--json", "--run", "demo"], options, &job].concat();
    on(folder, &args).exits(code).json().pop().unwrap()
}

/// The steps that were saved: where the machine is busy, a save makes way for the next one.
fn saved(folder: &Path) -> impl Iterator<Item = u64> {
    let listed = on(folder, &["ls", "--json", "--run", "demo"]).exits(0).json();
    listed.into_iter().map(|checkpoint| checkpoint["step"].as_u64().unwrap())
}

#[test]
fn a_killed_run_is_proven_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    killed(folder.path());
    let last = replay(folder.path(), &[], "60", 0);
    let from = saved(folder.path()).filter(|step| *step < 60).max().unwrap();
    assert_eq!(
        (&last["level"], &last["from_step"], &last["to"]),
        (&"D2".into(), &from.into(), &60.into())
    );
    assert_eq!(keys(&last), documented("replay"));
    assert_eq!(last["steps"], 4 * (60 - from), "each step of four logical ranks");
    for ranks in ["1", "3", "4"] {
        let options = ["--from", "start", "--ranks", ranks];
        let whole = replay(folder.path(), &options, "60", 0);
        let level = if ranks == "4" { "D2" } else { "D3" };
        assert_eq!((&whole["level"], &whole["digest"]), (&level.into(), &last["digest"]));
        assert_eq!(whole["steps"], 240);
        // Of a checkpoint that an attempt went on from, the digest is told behind the cut.
        assert!(whole["states"].as_array().unwrap().len() >= 3, "{whole}");
    }
    on(folder.path(), &["verify", "--run", "demo"]).exits(0);
    let program = env!("CARGO_BIN_EXE_lastgood");
    let job = ["--", program, "__demo-rank", "--steps", "60", "--every", "5"];
    let searched = on(folder.path(), &[&["bisect", "--json", "--run", "demo"], &job[..]].concat());
    let said = searched.exits(0).json().pop().unwrap();
    assert_eq!(keys(&said), documented("bisect"));
    assert_eq!(
        (&said["step"], &said["equal_to"], &said["steps"]),
        (&Value::Null, &60.into(), &60.into())
    );
    assert!(said["executions"].as_u64().unwrap() <= 5, "log2(60) executions: {said}");
}

#[test]
fn another_schedule_is_found_at_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    killed(folder.path());
    let said = replay(folder.path(), &["--from", "start"], "90", 6);
    let all = said["divergences"].as_array().unwrap();
    // The schedule is part of the state, and the first save tells it: on a busy machine a kill may hit that of step 5.
    let first = &all[0];
    let step = saved(folder.path()).min().unwrap();
    assert_eq!((&first["step"], &first["code"]), (&step.into(), &"LG-ND-001".into()), "{first}");
    assert_eq!(first["what"], "control/control");
    // The learning rate rises to the same, and falls to another last step.
    let rate = all.iter().find(|one| one["what"] == "lr").unwrap();
    assert!(rate["step"].as_u64().unwrap() > 20, "{rate}");
    let names: Vec<&str> = said["environment"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["code.configuration"]);
}

#[test]
fn travel_makes_a_checkpoint_of_any_step() {
    let folder = tempfile::tempdir().unwrap();
    killed(folder.path());
    let made = replay(folder.path(), &["--mode", "travel", "--to", "33"], "60", 0);
    let from = saved(folder.path()).filter(|step| *step < 33).max().unwrap();
    assert_eq!((&made["branch"], &made["from_step"]), (&"demo-at-33".into(), &from.into()));
    assert_eq!((&made["equal"], &made["diverged"]), (&false.into(), &false.into()), "{made}");
    let shown = on(folder.path(), &["show", "--json", "--run", "demo-at-33"]).exits(0).json();
    assert_eq!((&shown[0]["step"], &shown[0]["id"]), (&33.into(), &made["saved"]));
    on(folder.path(), &["verify", "--run", "demo-at-33"]).exits(0);
    // A second one must not be saved over it.
    replay_refused(folder.path());
}

/// Recovers and proves by one command; the certificate says so, and cannot be changed.
#[test]
fn a_killed_run_is_certified() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    killed(folder);
    let path = |name: &str| folder.join(name).display().to_string();
    let key = path("key.pem");
    let made = on(folder, &["key", "new", "--json", "--to", &key]).exits(0).json();
    assert_eq!(keys(&made[0]), documented("key new"));
    on(folder, &["key", "new", "--to", &key]).exits(5);
    let program = env!("CARGO_BIN_EXE_lastgood");
    let prove = |ranks: &str, to: &str, steps: &str, code: i32| {
        let mine = ["prove", "--json", "--run", "demo", "--key", &key, "--certificate", to];
        let job = ["--from", "start", "--ranks", ranks, "--", program, "__demo-rank"];
        let job = [&job[..], &["--steps", steps, "--every", "5"]].concat();
        on(folder, &[&mine[..], &job].concat()).exits(code).json().pop().unwrap()
    };
    for (ranks, level) in [("4", "D2"), ("2", "D3")] {
        let to = path(&format!("{ranks}.json"));
        let said = prove(ranks, &to, "60", 0);
        assert_eq!(keys(&said), documented("prove"));
        assert_eq!((&said["verdict"], &said["achieved"]), (&"proven".into(), &level.into()));
        let public = format!("{key}.pub");
        let checked = on(folder, &["certificate", "verify", &to, "--key", &public, "--json"]);
        let mut checked = checked.exits(0).json().pop().unwrap();
        for more in ["signed_by", "key_was_given"] {
            assert!(checked.as_object_mut().unwrap().remove(more).is_some());
        }
        assert_eq!(checked, said);
        for pair in said["states"].as_array().unwrap() {
            assert_eq!(pair["recorded"], pair["replayed"]);
        }
    }
    assert_eq!(prove("4", &path("other.json"), "90", 6)["verdict"], "diverged");
    certificate_is_refused(folder, &path("4.json"));
}

/// Steps that were done on four, three and two ranks are proven on any number; never at the level of one topology.
#[test]
fn a_run_that_shrank_is_certified() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // The first kill comes after several saves, so that the steps of four ranks are history.
    let args = ["demo", "--shrink", "--kills", "2", "--seed", "5", "--steps", "60"];
    on(folder, &args).exits(0);
    let listed = on(folder, &["ls", "--json", "--run", "demo"]).exits(0).json();
    let sizes: BTreeSet<u64> =
        listed.iter().map(|checkpoint| checkpoint["world_size"].as_u64().unwrap()).collect();
    assert!(sizes.len() > 1 && sizes.contains(&2), "{sizes:?}");
    let path = |name: &str| folder.join(name).display().to_string();
    let key = path("key.pem");
    on(folder, &["key", "new", "--to", &key]).exits(0);
    let program = env!("CARGO_BIN_EXE_lastgood");
    let prove = |options: &[&str]| {
        let to = path("certificate.json");
        let mine = ["prove", "--json", "--run", "demo", "--key", &key, "--certificate", &to];
        let job = ["--", program, "__demo-rank", "--steps", "60", "--every", "5"];
        on(folder, &[&mine[..], options, &job].concat()).exits(0).json().pop().unwrap()
    };
    for ranks in ["2", "4"] {
        let said = prove(&["--from", "start", "--ranks", ranks]);
        assert_eq!((&said["verdict"], &said["steps"]), (&"proven".into(), &240.into()), "{said}");
        assert_eq!((&said["achieved"], &said["claimed"]), (&"D3".into(), &"D3".into()));
        assert_eq!(said["world_sizes"], serde_json::json!(sizes));
    }
    let last = prove(&[]);
    assert_eq!((&last["verdict"], &last["achieved"]), (&"proven".into(), &"D2".into()));
    assert_eq!((&last["world_sizes"], &last["ranks"]), (&[2].into(), &[2, 2].into()), "{last}");
    let whole = replay(folder, &["--from", "start"], "60", 0);
    assert_eq!((&whole["level"], &whole["recorded_ranks"]), (&"D3".into(), &2.into()));
}

fn certificate_is_refused(folder: &Path, certificate: &str) {
    let signed = std::fs::read(certificate).unwrap();
    let verify = |bytes: &[u8]| {
        std::fs::write(certificate, bytes).unwrap();
        on(folder, &["certificate", "verify", certificate])
    };
    for at in (0..signed.len()).step_by(signed.len() / 40) {
        let mut changed = signed.clone();
        changed[at] ^= 1;
        // Of another algorithm nobody knows whether it is damage.
        let ran = verify(&changed);
        assert!(ran.code == 3 || ran.code == 5 && ran.err.contains("algorithm"), "{}", ran.err);
    }
    verify(&signed[..signed.len() - 1]).exits(3);
    verify(&signed).exits(0);
    let other = folder.join("other.pem").display().to_string();
    on(folder, &["key", "new", "--to", &other]).exits(0);
    let public = format!("{other}.pub");
    let ran = on(folder, &["certificate", "verify", certificate, "--key", &public]).exits(5);
    assert!(ran.err.contains("it was signed by key"), "{}", ran.err);
}

fn replay_refused(folder: &Path) {
    let program = env!("CARGO_BIN_EXE_lastgood");
    let args = ["replay", "--run", "demo", "--mode", "travel", "--to", "33", "--", program];
    let ran = on(folder, &args).exits(5);
    assert!(ran.err.contains("holds a run demo-at-33 already"), "{}", ran.err);
}
