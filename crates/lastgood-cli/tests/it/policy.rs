//! `lastgood save` and `lastgood policy explain`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lastgood::policy::{Policy, Want};
use lastgood::save::Mode;
use lastgood::state::Durability;
use lastgood::{Dtype, Repository, Run, RunOptions};
use rustix::process::{Pid, Signal, kill_process};

use crate::json::{documented, keys};
use crate::tool::{Place, Ran};

fn open(repository: &Repository, policy: Policy) -> Run {
    let options = RunOptions { policy: Some(policy), ..RunOptions::default() };
    Run::open(repository, &"r".parse().unwrap(), options).unwrap()
}

/// Trains until `is_over`, and gives the steps that it saved.
fn train(run: &mut Run, is_over: impl Fn(u64) -> bool) -> Vec<u64> {
    let mut saved = Vec::new();
    for step in 1u64.. {
        thread::sleep(Duration::from_millis(2));
        if run.wants(step).unwrap() == Want::Save {
            saved.push(step);
            let state = step.to_le_bytes();
            let handle = run.save(step, Mode::Async, |capture| {
                let mut part = capture.component("m", "t", Durability::Durable)?;
                part.tensor("w", Dtype::U8, &[8], &state)
            });
            handle.unwrap();
        }
        if is_over(step) {
            break;
        }
    }
    saved
}

#[test]
fn a_running_job_saves_when_it_is_asked() {
    let place = Place::local();
    let repository = place.repository();
    let (mut run, ended) = (open(&repository, Policy::every(1 << 40)), AtomicBool::new(false));
    thread::scope(|scope| {
        let training = scope.spawn(|| train(&mut run, |_| ended.load(Ordering::Relaxed)));
        let first = place.on(&["save", "--json", "--reason", "before a test"]).exits(0).json();
        let told = place.on(&["save"]).exits(0).out;
        ended.store(true, Ordering::Relaxed);
        let saved = training.join().unwrap();
        assert_eq!(saved.len(), 2, "{saved:?}");
        assert_eq!(keys(&first[0]), documented("save"));
        assert_eq!(first[0]["step"], saved[0]);
        assert!(told.starts_with(&format!("step {} is saved: ", saved[1])), "{told}");
        let log = place.on(&["log"]).exits(0).out;
        for part in ["save.requested", "the next step: before a test", "asked for from outside"] {
            assert!(log.contains(part), "{part}: {log}");
        }
    });
    run.close().unwrap();
    // Nobody is there to answer, and then another attempt begins.
    let unanswered = place.on(&["save", "--wait", "500ms"]).exits(7);
    assert!(unanswered.err.contains("no rank has answered"), "{}", unanswered.err);
    thread::scope(|scope| {
        let asking = scope.spawn(|| place.on(&["save", "--wait", "30s"]));
        thread::sleep(Duration::from_millis(500));
        open(&repository, Policy::every(5)).close().unwrap();
        let refused = asking.join().unwrap().exits(5);
        assert!(refused.err.contains("ended before it saved"), "{}", refused.err);
    });
}

#[test]
fn an_interval_that_was_chosen_is_explained() {
    let place = Place::local();
    let repository = place.repository();
    let mut run = open(&repository, Policy::every(5));
    train(&mut run, |step| step == 12);
    run.close().unwrap();
    let explained = place.on(&["policy", "explain"]).exits(0).out;
    for part in ["no interval was chosen", "the last two checkpoints are 5 steps apart"] {
        assert!(explained.contains(part), "{explained}");
    }
    let explain = || place.on(&["policy", "explain", "--json"]).exits(0).json().pop().unwrap();
    assert_eq!(keys(&explain()), documented("policy explain"));
    assert!(explain()["every"].is_null());

    let policy = Policy { auto: true, loss_steps_max: Some(40), ..Policy::default() };
    let mut run = open(&repository, policy);
    let saved = train(&mut run, |step| step == 300);
    run.close().unwrap();
    let found = explain();
    assert_eq!(keys(&found), documented("policy explain"));
    let every = found["every"].as_u64().unwrap();
    assert!(every <= 40, "{found}");
    let history = repository.ledger(&"r".parse().unwrap()).unwrap().history().clone();
    let last = saved.last().copied().unwrap();
    assert!(saved.len() > 4 && history.orders().is_multiple(last), "{saved:?}, {found}");
    let explanation = &found["explanation"];
    assert_eq!(explanation["policy"], "auto, at most 40 steps lost");
    assert!(explanation["inputs"]["step_s"].as_f64().unwrap() >= 0.002, "{explanation}");
    let text = place.on(&["policy", "explain"]).exits(0).out;
    let head = format!("every {every} steps from step");
    for part in [head.as_str(), "a save costs", "formula: the root t", "what would change it:"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let log = place.on(&["log"]).exits(0).out;
    for part in ["policy.chosen", &head[..head.len() - 10], "closed: by its program"] {
        assert!(log.contains(part), "{part}: {log}");
    }
}

#[test]
fn a_stopped_job_that_gave_way_ends_with_a_code_of_its_own() {
    let place = Place::local();
    let script = "trap 'exit 75' TERM; touch \"$0\"; while true; do sleep 0.05; done";
    let ready = place.folder().join("ready");
    let args = ["run", "--", "sh", "-c", script, ready.to_str().unwrap()];
    let mut command = place.command(&args);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while !ready.exists() {
        assert!(Instant::now() < until, "the job does not start");
        thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap()).exits(75);
    assert!(ran.err.contains("gave way"), "{}", ran.err);
}
