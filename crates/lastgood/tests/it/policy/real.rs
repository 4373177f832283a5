//! Runs that follow a policy, with the thread that reads their ledger.
#![expect(clippy::disallowed_methods, reason = "the clock of these runs is the real one")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lastgood::ledger::{Appended, Decision, History, Writer};
use lastgood::policy::{Policy, Want};
use lastgood::save::{Mode, SaveHandle};
use lastgood::state::{Durability, World};
use lastgood::{Dtype, Last, Repository, Run, RunOptions};
use lastgood_format::ledger::{Kind, SaveOrder};
use lastgood_store::LocalStore;

use crate::fixture::{in_folder, on, options, run_name};
use crate::tap::{Act, Op, Tap};

const STEP: Duration = Duration::from_millis(5);

fn open(repository: &Repository, policy: Policy) -> Run {
    let options = RunOptions { policy: Some(policy), ..options(World::ALONE, "a") };
    Run::open(repository, &run_name(), options).unwrap()
}

fn save(run: &mut Run, step: u64) -> SaveHandle {
    let state = step.to_le_bytes();
    let saved = run.save(step, Mode::Async, |capture| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.replicated("w", Dtype::U8, &[8], &state)
    });
    saved.unwrap()
}

fn ask(repository: &Repository) {
    let mut ledger = repository.ledger(&run_name()).unwrap();
    let writer = Writer { attempt: 0, actor: "test".into() };
    let (order, reason) = (SaveOrder::Save, "test".to_owned());
    let kind = Kind::SaveRequested { step: None, order, reason };
    let appended = ledger.append(&writer, |_| Ok(Decision::Append(kind.clone())));
    assert!(matches!(repository.block_on(appended).unwrap(), Appended::Committed(_)));
}

fn history(repository: &Repository) -> History {
    repository.ledger(&run_name()).unwrap().history().clone()
}

#[test]
fn a_rank_alone_answers_a_request_with_its_next_step() {
    let (_folder, repository) = in_folder();
    let mut run = open(&repository, Policy::every(1_000_000));
    assert_eq!(run.wants(1).unwrap(), Want::Nothing);
    ask(&repository);
    let until = Instant::now() + Duration::from_secs(20);
    let mut step = 1;
    while run.wants(step + 1).unwrap() == Want::Nothing {
        assert!(Instant::now() < until, "nobody has heard it");
        step += 1;
        thread::sleep(STEP);
    }
    save(&mut run, step + 1).wait().unwrap();
    while history(&repository).orders().asked().is_some() {
        assert!(Instant::now() < until, "nobody has answered");
        thread::sleep(STEP);
    }
    assert!(history(&repository).orders().request_at(step + 1).is_some());
    // Once.
    for more in 2..20 {
        assert_eq!(run.wants(step + more).unwrap(), Want::Nothing);
        thread::sleep(STEP);
    }
    run.close().unwrap();
}

#[test]
fn a_run_without_demand_or_measurement_reads_nothing() {
    let (_store, tap, repository) = crate::fixture::tapped();
    let policy = Policy { demand: false, ..Policy::every(2) };
    let mut run = open(&repository, policy);
    tap.pass();
    let wanted: Vec<Want> = (1..=4).map(|step| run.wants(step).unwrap()).collect();
    assert_eq!(wanted, [Want::Nothing, Want::Save, Want::Nothing, Want::Save]);
    thread::sleep(Duration::from_millis(250));
    assert!(tap.calls().is_empty(), "{:?}", tap.calls());
    run.close().unwrap();
}

#[test]
fn a_last_save_that_takes_too_long_is_given_up_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let tap = Tap::new(LocalStore::open(folder.path()).unwrap());
    let repository = on(tap.clone());
    let grace = Some(Duration::from_millis(300));
    let mut run = open(&repository, Policy { grace, ..Policy::every(1_000_000) });
    assert!(run.notice());
    assert_eq!(run.wants(2).unwrap(), Want::SaveAndEnd);
    // The commit does not come through.
    let blocked = Arc::new(AtomicBool::new(true));
    let until = Arc::clone(&blocked);
    tap.play(move |call| {
        let is_index = call.op == Op::Put && call.key.contains(".idx");
        while is_index && until.load(Ordering::Relaxed) {
            thread::sleep(STEP);
        }
        Act::Pass
    });
    let handle = save(&mut run, 2);
    let began = Instant::now();
    assert!(matches!(run.wait_last(2, Some(&handle)).unwrap(), Last::Late));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    blocked.store(false, Ordering::Relaxed);
    let told = history(&repository).failures().rates_at_rest(1);
    let preempted = told.iter().find(|rate| rate.class == "preemption").unwrap();
    assert_eq!(preempted.seen, 1, "{told:?}");
    run.close().unwrap();
}

#[test]
fn without_a_grace_time_a_notice_is_not_heard() {
    let (_folder, repository) = in_folder();
    let mut run = open(&repository, Policy::every(5));
    assert!(!run.notice());
    assert_eq!(run.wants(1).unwrap(), Want::Nothing);
    run.close().unwrap();
    let options = options(World::ALONE, "b");
    let mut run = Run::open(&repository, &run_name(), options).unwrap();
    assert!(!run.notice() && run.explain_policy().is_none());
    assert_eq!(run.wants(5).unwrap(), Want::Nothing);
    run.close().unwrap();
}

/// Every rank of a job in a thread of its own; steps end together, as where gradients are exchanged. Gives, for each
/// rank, the steps that it saved and the one that it ended with.
fn job(
    repository: &Repository,
    policy: &Policy,
    steps: u64,
    at: impl Fn(u64, &Run) + Sync,
) -> Vec<(Vec<u64>, u64)> {
    let size = 3;
    let (together, at) = (&Barrier::new(size as usize), &at);
    let told = Mutex::new(vec![(Vec::new(), 0); size as usize]);
    thread::scope(|scope| {
        for rank in 0..size {
            let (told, policy) = (&told, policy.clone());
            scope.spawn(move || {
                let options = options(World { rank, size }, "a");
                let options = RunOptions { policy: Some(policy), ..options };
                let mut run = Run::open(repository, &run_name(), options).unwrap();
                let mut saved = Vec::new();
                for step in 1..=steps {
                    thread::sleep(STEP);
                    together.wait();
                    if rank == 1 {
                        at(step, &run);
                    }
                    let want = run.wants(step).unwrap();
                    if matches!(want, Want::Save | Want::SaveAndEnd) {
                        saved.push(step);
                        let handle = save(&mut run, step);
                        if want == Want::SaveAndEnd {
                            let last = run.wait_last(step, Some(&handle)).unwrap();
                            assert!(matches!(last, Last::Done), "{last:?}");
                            break;
                        }
                    }
                }
                let end = saved.last().copied().unwrap_or(0);
                told.lock().unwrap()[rank as usize] = (saved, end);
                run.close().unwrap();
            });
        }
    });
    told.into_inner().unwrap()
}

#[test]
fn ranks_save_the_same_steps_and_end_after_the_same() {
    let (_folder, repository) = in_folder();
    let grace = Some(Duration::from_secs(20));
    let policy = Policy { grace, at: [3].into(), ..Policy::every(1_000_000) };
    let told = job(&repository, &policy, 100_000, |step, run| {
        if step == 20 {
            ask(&repository);
        }
        if step == 120 {
            assert!(run.notice());
        }
    });
    assert!(told.iter().all(|rank| *rank == told[0]), "{told:?}");
    let (saved, last) = &told[0];
    assert_eq!((saved.len(), saved[0]), (3, 3), "{told:?}");
    assert!(saved[1] > 20 && *last > 120, "{told:?}");
    let history = history(&repository);
    let steps: Vec<u64> = history.checkpoints().iter().map(|checkpoint| checkpoint.step).collect();
    assert_eq!(steps, *saved);
    let rates = history.failures().rates_at_rest(3);
    assert!(rates.iter().any(|rate| rate.class == "preemption" && rate.seen == 1), "{rates:?}");
}

#[test]
fn auto_is_recorded_and_explained() {
    let (_folder, repository) = in_folder();
    let policy = Policy { auto: true, loss_steps_max: Some(50), ..Policy::default() };
    let told = job(&repository, &policy, 300, |_, _| {});
    assert!(told.iter().all(|rank| *rank == told[0]), "{told:?}");
    let history = history(&repository);
    let chosen = history.orders().newest_interval().unwrap();
    assert!(chosen.every <= 50, "{chosen:?}");
    let (saved, last) = &told[0];
    assert!(saved.len() > 4 && history.orders().is_multiple(*last), "{saved:?}, {chosen:?}");
    assert!(history.failures().has_ended());
}
