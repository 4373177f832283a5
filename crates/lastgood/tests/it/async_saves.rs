//! Saves behind the caller's back: bounded, superseded in turn, and never silently lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use lastgood::restore::Selector;
use lastgood::save::{Mode, SaveHandle, SaveOptions, SaveStatus};
use lastgood::state::World;
use lastgood::{ErrorKind, Hash, Repository, Run, RunOptions};

use crate::child;
use crate::fixture::{
    bytes, capture_bytes, in_memory, open_all, open_alone, options, quick, read_bytes, run_name,
    save_all, save_bytes, tapped,
};
use crate::tap::{Act, Gate, Op, Tap};

fn open_with(repository: &Repository, world: World, incarnation: &str, save: SaveOptions) -> Run {
    let options = RunOptions { save, ..options(world, incarnation) };
    Run::open(repository, &run_name(), options).unwrap()
}

fn save(run: &mut Run, step: u64, data: &[u8]) -> SaveHandle {
    run.save(step, Mode::Async, |capture| capture_bytes(capture, data)).unwrap()
}

/// From here on puts of packs wait at the gate.
fn hold_packs(tap: &Tap) -> Gate {
    let gate = Gate::default();
    let at = gate.clone();
    tap.play(move |call| {
        if call.op == Op::Put && call.key.ends_with(".pack") {
            at.pass();
        }
        Act::Pass
    });
    gate
}

fn checkpoints(repository: &Repository) -> Vec<(u64, Hash)> {
    let ledger = repository.existing(&run_name()).unwrap();
    ledger.history().checkpoints().iter().map(|c| (c.step, c.id)).collect()
}

#[test]
#[cfg(target_os = "linux")]
fn what_goes_on_behind_the_call_lets_the_caller_go_first() {
    let nice = || rustix::process::getpriority_process(None).unwrap();
    let (_store, tap, repository) = tapped();
    let mut run = open_alone(&repository, "a");
    let of_puts = Arc::new(AtomicI32::new(i32::MIN));
    let told = Arc::clone(&of_puts);
    tap.play(move |call| {
        if call.op == Op::Put && call.key.ends_with(".pack") {
            told.store(nice(), Ordering::Relaxed);
        }
        Act::Pass
    });
    let before = nice();
    save(&mut run, 1, &bytes(1, 1 << 20)).wait().unwrap();
    assert_eq!(nice(), before, "of the caller");
    let of_puts = of_puts.load(Ordering::Relaxed);
    assert!(of_puts > before || before == 19, "puts have {of_puts}, the caller {before}");
}

#[test]
fn the_call_returns_before_it_is_durable_and_the_memory_is_the_callers_again() {
    let (_store, tap, repository) = tapped();
    let mut run = open_alone(&repository, "a");
    // More than one segment of the arena.
    let mut data = bytes(1, 66 << 20);
    let expected = data.clone();
    let gate = hold_packs(&tap);
    let handle = save(&mut run, 1, &data);
    data.fill(0xff);
    gate.await_waiting();
    assert!(matches!(handle.status(), SaveStatus::Captured), "{:?}", handle.status());
    assert!(checkpoints(&repository).is_empty());
    gate.open();
    let id = handle.wait().unwrap();
    assert!(matches!(handle.status(), SaveStatus::Committed(found) if found == id));
    assert_eq!(checkpoints(&repository), [(1, id)]);
    let found = read_bytes(&repository, &Selector::Latest, data.len()).unwrap();
    assert!(found == (1, expected));
}

#[test]
fn sync_returns_committed() {
    let (_store, repository) = in_memory();
    let mut run = open_alone(&repository, "a");
    let handle = run.save(3, Mode::Sync, |c| capture_bytes(c, &[1, 2, 3])).unwrap();
    assert!(
        matches!(handle.status(), SaveStatus::Committed(id) if checkpoints(&repository) == [(3, id)])
    );
    assert_eq!(handle.step(), 3);
}

#[test]
fn one_in_flight_waits_for_the_one_before_and_skips_none() {
    let (_store, repository) = in_memory();
    let mut run = open_alone(&repository, "a");
    for round in 0..20 {
        // Three saves as fast as they come: nobody has begun to write the second when the third comes.
        let first = 10 * round + 1;
        let handles: Vec<_> =
            (first..first + 3).map(|step| save(&mut run, step, &bytes(step, 100_000))).collect();
        for handle in handles {
            handle.wait().unwrap();
        }
    }
    assert_eq!(checkpoints(&repository).len(), 60);
}

#[test]
fn a_save_that_nobody_began_is_superseded_and_says_so() {
    let (_store, tap, repository) = tapped();
    let save_options = SaveOptions { in_flight_max: 2, ..quick() };
    let mut run = open_with(&repository, World::ALONE, "a", save_options);
    let gate = hold_packs(&tap);
    let first = save(&mut run, 1, &bytes(1, 100_000));
    gate.await_waiting();
    let skipped: Vec<_> = (2..6).map(|step| save(&mut run, step, &bytes(step, 100_000))).collect();
    let last = save(&mut run, 6, &bytes(6, 100_000));
    for handle in &skipped {
        assert!(matches!(handle.status(), SaveStatus::Superseded), "{:?}", handle.status());
        let error = handle.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains(&format!("step {}", handle.step())), "{error}");
    }
    gate.open();
    let ids = [(1, first.wait().unwrap()), (6, last.wait().unwrap())];
    assert_eq!(checkpoints(&repository), ids);
    // Nothing of a superseded save is a failure.
    assert!(run.take_failures().is_empty());
    run.close().unwrap();
    let found = read_bytes(&repository, &Selector::Step(6), 100_000).unwrap();
    assert_eq!(found, (6, bytes(6, 100_000)));
}

#[test]
fn a_save_that_another_rank_left_out_is_superseded_and_not_failed() {
    let (_store, tap, repository) = tapped();
    let world = |rank| World { rank, size: 2 };
    let several = SaveOptions { in_flight_max: 3, ..quick() };
    let patient = SaveOptions { commit_wait: Duration::from_secs(120), ..several.clone() };
    let mut slow =
        open_with(&repository, world(0), "a", SaveOptions { in_flight_max: 2, ..several });
    let mut quick = open_with(&repository, world(1), "a", patient);
    let gate = Gate::default();
    let at = gate.clone();
    tap.play(move |call| {
        if call.op == Op::Put && call.key.ends_with("/0-0.pack") {
            at.pass();
        }
        Act::Pass
    });
    let value = |run: &mut Run, step: u64| {
        run.save(step, Mode::Async, |capture| {
            let mut part = capture.component("m", "t", lastgood::state::Durability::Durable)?;
            part.rank_value("v", &step)
        })
        .unwrap()
    };
    // The slow rank writes step 1, and leaves out step 2 for step 3; the quick one writes all three.
    let first = value(&mut slow, 1);
    gate.await_waiting();
    let (left_out, last) = (value(&mut slow, 2), value(&mut slow, 3));
    let mut handles = Vec::new();
    for step in 1..=3 {
        handles.push(value(&mut quick, step));
        while !matches!(handles.last().unwrap().status(), SaveStatus::Durable) {
            std::thread::yield_now();
        }
    }
    assert!(matches!(left_out.status(), SaveStatus::Superseded));
    gate.open();
    assert_eq!(handles[0].wait().unwrap(), first.wait().unwrap());
    assert_eq!(handles[2].wait().unwrap(), last.wait().unwrap());
    assert_eq!(handles[1].wait().unwrap_err().kind(), ErrorKind::Conflict);
    assert!(matches!(handles[1].status(), SaveStatus::Superseded), "{:?}", handles[1].status());
    for mut run in [slow, quick] {
        assert!(run.take_failures().is_empty());
        run.close().unwrap();
    }
    let steps: Vec<u64> = checkpoints(&repository).iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [1, 3]);
}

#[test]
fn an_arena_comes_back_from_a_save_that_has_nothing_to_write() {
    let (_store, repository) = in_memory();
    let mut runs = open_all(&repository, 6, "a");
    // Everything is reused, so that the writing thread is through as soon as the capture is, and may
    // overtake the thread that captures.
    let data = bytes(1, 100_000);
    for step in 0..60 {
        save_all(&mut runs, step, |capture| {
            let mut part = capture.component("m", "t", lastgood::state::Durability::Durable)?;
            part.blob("b", data.clone())
        })
        .unwrap();
    }
    assert_eq!(checkpoints(&repository).len(), 60);
}

#[test]
fn the_arena_has_a_bound() {
    let (_store, repository) = in_memory();
    let save_options = SaveOptions { arena_bytes_max: 100_000, ..quick() };
    let mut run = open_with(&repository, World::ALONE, "a", save_options);
    save_bytes(&mut run, 1, &bytes(1, 100_000)).unwrap();
    let large = bytes(2, 100_001);
    let error = run.save(2, Mode::Async, |c| capture_bytes(c, &large)).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    let text = error.to_string();
    assert!(text.contains("100001") && text.contains("100000"), "{text}");
    // The refusal costs nothing: the arena is still there for the next save.
    save_bytes(&mut run, 3, &bytes(3, 99_999)).unwrap();
    assert_eq!(checkpoints(&repository).len(), 2);
    run.close().unwrap();
}

#[test]
fn options_out_of_range_are_refused() {
    let (store, repository) = in_memory();
    for save in [
        SaveOptions { chunk_bytes: 1000, ..quick() },
        SaveOptions { chunk_bytes: (16 << 20) + 1, ..quick() },
        SaveOptions { in_flight_max: 0, ..quick() },
    ] {
        let options = RunOptions { save, ..options(World::ALONE, "a") };
        let error = Run::open(&repository, &run_name(), options).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert_eq!(store.keys().len(), 1, "a refused handle started an attempt");
    }
}

/// A repository whose packs are refused while the counter is not 0.
fn failing() -> (Arc<AtomicUsize>, Tap, Repository) {
    let (_store, tap, repository) = tapped();
    let left = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&left);
    tap.play(move |call| {
        let pack = call.op == Op::Put && call.key.ends_with(".pack");
        let take = |left: usize| left.checked_sub(1);
        if pack && counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            return Act::Fail(ErrorKind::Denied);
        }
        Act::Pass
    });
    (left, tap, repository)
}

#[test]
fn a_failure_is_told_by_the_handle_by_take_failures_and_at_close() {
    let (left, _tap, repository) = failing();
    let mut run = open_alone(&repository, "a");
    left.store(1, Ordering::SeqCst);
    let handle = save(&mut run, 1, &bytes(1, 1000));
    let error = handle.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let text = error.to_string();
    assert!(text.contains("save of step 1 of attempt 1") && text.contains("planted"), "{text}");
    assert!(matches!(handle.status(), SaveStatus::Failed(_)));
    let failures = run.take_failures();
    assert_eq!(failures.len(), 1);
    assert!(run.take_failures().is_empty());
    // Told once is told: close has nothing to say of it, and the next save works.
    save(&mut run, 2, &bytes(2, 1000)).wait().unwrap();
    run.close().unwrap();

    let mut run = open_alone(&repository, "b");
    for step in 3..6 {
        left.store(1, Ordering::SeqCst);
        let _ = save(&mut run, step, &bytes(step, 1000)).wait();
    }
    let error = run.close().unwrap_err();
    assert_eq!((error.kind(), error.causes().len()), (ErrorKind::Denied, 3), "{error}");
    assert!(error.to_string().contains("3 saves failed"), "{error}");
    assert_eq!(checkpoints(&repository).len(), 1);
}

#[test]
fn a_handle_that_is_dropped_prints_what_nobody_asked_for() {
    let name = "async_saves::a_handle_that_is_dropped_prints_what_nobody_asked_for";
    if let Some(child) = child::of(name) {
        assert!(child.success, "{}", child.stderr);
        let told: Vec<&str> =
            child.stderr.lines().filter(|line| line.starts_with("lastgood: ")).collect();
        let [line] = told[..] else { panic!("expected one line: {}", child.stderr) };
        assert!(line.contains("save of step 2 of attempt 2") && line.contains("planted"), "{line}");
        return;
    }
    let (left, _tap, repository) = failing();
    left.store(2, Ordering::SeqCst);
    // What was asked for is not printed again.
    let mut asked = open_alone(&repository, "a");
    save(&mut asked, 1, &bytes(1, 1000)).wait().unwrap_err();
    assert_eq!(asked.take_failures().len(), 1);
    drop(asked);
    let mut run = open_alone(&repository, "b");
    save(&mut run, 2, &bytes(1, 1000));
}

#[test]
fn after_failures_in_a_row_the_next_save_says_so_and_the_one_after_is_tried() {
    let (left, _tap, repository) = failing();
    let save_options = SaveOptions { failures_max: Some(2), ..quick() };
    let mut run = open_with(&repository, World::ALONE, "a", save_options);
    let mut step = 0;
    let mut attempt = |run: &mut Run, fails: usize| {
        left.store(fails, Ordering::SeqCst);
        step += 1;
        let data = bytes(step, 1000);
        run.save(step, Mode::Async, |c| capture_bytes(c, &data))
            .map(|handle| handle.wait().is_ok())
            .map_err(|e| (e.kind(), e.to_string()))
    };
    // One failure, a success, one failure: never two in a row.
    assert_eq!(attempt(&mut run, 1), Ok(false));
    assert_eq!(attempt(&mut run, 0), Ok(true));
    assert_eq!(attempt(&mut run, 1), Ok(false));
    assert_eq!(attempt(&mut run, 1), Ok(false));
    let (kind, text) = attempt(&mut run, 0).unwrap_err();
    assert_eq!(kind, ErrorKind::Denied);
    assert!(text.contains("2 saves in a row failed"), "{text}");
    // Who goes on after that gets a save that is tried, and not a refusal for ever.
    assert_eq!(attempt(&mut run, 0), Ok(true));
    run.take_failures();
    run.close().unwrap();
}

#[test]
fn close_waits_for_what_is_on_its_way() {
    let (_store, tap, repository) = tapped();
    let mut run = open_alone(&repository, "a");
    let gate = hold_packs(&tap);
    let handle = save(&mut run, 1, &bytes(1, 1000));
    gate.await_waiting();
    let closing = std::thread::spawn(move || run.close());
    // Nothing but the gate holds it up: it can only end after the gate is open.
    assert!(!closing.is_finished());
    gate.open();
    closing.join().unwrap().unwrap();
    assert!(matches!(handle.status(), SaveStatus::Committed(_)));
}

#[test]
fn a_step_that_is_saved_again_is_another_checkpoint() {
    let (_store, repository) = in_memory();
    let mut run = open_alone(&repository, "a");
    let handles: Vec<_> = (0..5).map(|i| save(&mut run, 7, &bytes(i, 70_000))).collect();
    let ids: Vec<Hash> = handles.iter().map(|handle| handle.wait().unwrap()).collect();
    drop(run);
    assert_eq!(checkpoints(&repository), ids.iter().map(|id| (7, *id)).collect::<Vec<_>>());
    let ledger = repository.existing(&run_name()).unwrap();
    let generations: Vec<u32> =
        ledger.history().checkpoints().iter().map(|c| c.generation).collect();
    assert_eq!(generations, [0, 1, 2, 3, 4]);
    for (i, id) in (0..).zip(ids) {
        let found = read_bytes(&repository, &Selector::Id(id.to_string()), 70_000).unwrap();
        assert!(found == (7, bytes(i, 70_000)), "save {i}");
    }
    assert_eq!(read_bytes(&repository, &Selector::Step(7), 70_000).unwrap().1, bytes(4, 70_000));
}

#[test]
fn several_ranks_save_one_step_again_and_again() {
    let (_store, repository) = in_memory();
    let mut runs = open_all(&repository, 3, "a");
    for i in 0..5u8 {
        save_all(&mut runs, 7, |capture| {
            let rank = capture.world().rank;
            let mut part = capture.component("m", "t", lastgood::state::Durability::Durable)?;
            part.rank_value("v", &(rank, i))?;
            part.value("w", &i)
        })
        .unwrap();
    }
    assert_eq!(checkpoints(&repository).len(), 5);
}

#[test]
fn a_slow_rank_is_waited_for() {
    let (_store, tap, repository) = tapped();
    let mut runs = open_all(&repository, 2, "a");
    let gate = Gate::default();
    let at = gate.clone();
    tap.play(move |call| {
        if call.op == Op::Put && call.key.ends_with("/1.idx") {
            at.pass();
        }
        Act::Pass
    });
    let value = |run: &mut Run| {
        run.save(1, Mode::Async, |capture| {
            let mut part = capture.component("m", "t", lastgood::state::Durability::Durable)?;
            part.rank_value("v", &1)
        })
        .unwrap()
    };
    let handles: Vec<SaveHandle> = runs.iter_mut().map(value).collect();
    gate.await_waiting();
    while !matches!(handles[0].status(), SaveStatus::Durable) {
        std::thread::yield_now();
    }
    assert!(checkpoints(&repository).is_empty());
    gate.open();
    assert_eq!(handles[0].wait().unwrap(), handles[1].wait().unwrap());
}

#[test]
fn a_dead_rank_costs_the_save_and_nothing_else() {
    let (_store, repository) = in_memory();
    let patience = SaveOptions { commit_wait: Duration::from_millis(300), ..quick() };
    let world = |rank| World { rank, size: 3 };
    let mut live: Vec<Run> =
        [0, 2].map(|rank| open_with(&repository, world(rank), "a", patience.clone())).into();
    let value = |run: &mut Run, step| {
        run.save(step, Mode::Async, |capture| {
            let mut part = capture.component("m", "t", lastgood::state::Durability::Durable)?;
            part.rank_value("v", &1)
        })
        .unwrap()
    };
    let handles: Vec<SaveHandle> = live.iter_mut().map(|run| value(run, 1)).collect();
    for handle in handles {
        let error = handle.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string();
        assert!(text.contains("rank 1 ") && text.contains("300ms"), "{text}");
    }
    // It comes up late, and the next step is saved by all three.
    live.insert(1, open_with(&repository, world(1), "a", quick()));
    let handles: Vec<SaveHandle> = live.iter_mut().map(|run| value(run, 2)).collect();
    for handle in handles {
        handle.wait().unwrap();
    }
    assert_eq!(checkpoints(&repository).len(), 1);
    for mut run in live {
        run.take_failures();
        run.close().unwrap();
    }
}

#[test]
fn a_trouble_that_passed_is_not_told_as_the_reason() {
    let (_store, tap, repository) = tapped();
    let patience = SaveOptions { commit_wait: Duration::from_millis(300), ..quick() };
    let mut run = open_with(&repository, World { rank: 0, size: 2 }, "a", patience);
    let asked = AtomicUsize::new(0);
    tap.play(move |call| {
        let look = call.op == Op::Size && call.key.ends_with("/1.idx");
        match look && asked.fetch_add(1, Ordering::SeqCst) == 0 {
            true => Act::Fail(ErrorKind::Unavailable),
            false => Act::Pass,
        }
    });
    let saved = run.save(1, Mode::Sync, |capture| {
        capture.component("m", "t", lastgood::state::Durability::Durable)?.rank_value("v", &1)
    });
    let text = saved.map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("rank 1 ") && !text.contains("planted"), "{text}");
}

#[test]
fn a_store_that_panics_fails_the_save_and_hangs_nobody() {
    let (_store, tap, repository) = tapped();
    for (step, part) in [(1, ".pack"), (2, ".idx")] {
        let mut run = open_alone(&repository, part);
        tap.play(move |call| {
            assert!(!(call.op == Op::Put && call.key.ends_with(part)), "planted panic");
            Act::Pass
        });
        let handle = save(&mut run, step, &bytes(1, 200_000));
        assert_eq!(handle.wait().unwrap_err().kind(), ErrorKind::Internal);
        tap.pass();
        let next = run.save(9, Mode::Sync, |capture| capture_bytes(capture, &[1]));
        if let Err(error) = next {
            assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::Internal), "{error}");
        }
        run.close().unwrap_err();
    }
}

/// A source that fails, or panics, once half of it was read.
#[derive(Debug)]
struct Broken {
    panics: bool,
}

impl lastgood::state::Source for Broken {
    fn read(&self, offset: usize, into: &mut [u8]) -> lastgood::Result<()> {
        if offset + into.len() <= 100_000 {
            into.fill(1);
            return Ok(());
        }
        assert!(!self.panics, "planted panic");
        Err(lastgood::Error::internal("planted: the device is gone"))
    }
}

#[test]
fn a_source_that_fails_fails_the_call_and_nothing_after_it() {
    let (_store, repository) = in_memory();
    let mut run = open_alone(&repository, "a");
    let broken = |run: &mut Run, step, panics| {
        run.save(step, Mode::Async, |capture| {
            let mut part = capture.component("m", "t", lastgood::state::Durability::Durable)?;
            part.source("w", lastgood::Dtype::U8, &[200_000], Broken { panics })
        })
        .map(|_| ())
    };
    let error = broken(&mut run, 1, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("the device is gone"), "{error}");
    // A failed call was told by the call.
    save_bytes(&mut run, 2, &[1]).unwrap();
    assert!(run.take_failures().is_empty());
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| broken(&mut run, 3, true)));
    panicked.unwrap_err();
    save_bytes(&mut run, 4, &[1]).unwrap();
    let steps: Vec<u64> = checkpoints(&repository).iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [2, 4]);
}
