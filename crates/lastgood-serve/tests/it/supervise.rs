use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lastgood::save::Mode;
use lastgood::state::Durability;
use lastgood::{ErrorKind, Repository, Run, RunOptions};
use lastgood_format::ledger::Kind;
use lastgood_serve::supervise::{Cause, Stream, Verdict};
use lastgood_serve::{Control, Event, Job, Outcome, supervise};
use lastgood_store::{LocalStore, SystemEnv};
use tempfile::TempDir;

/// A repository, a folder for the ranks' own use, and what was seen of a job.
struct Stage {
    folder: TempDir,
    repository: Repository,
    control: Arc<Control>,
    seen: Vec<Seen>,
}

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Started(u64, Option<u64>),
    Line(u32, Stream, String),
    Ended(u32, Cause),
    Failed(u32, Cause, Option<u64>),
    Gone(Vec<u32>, u32),
    Completed(u64),
    NotCompleted(ErrorKind),
    Stopping,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path().join("store")).unwrap();
        let repository =
            Repository::create(Arc::new(store), Arc::new(SystemEnv::default())).unwrap();
        Self { folder, repository, control: Arc::default(), seen: Vec::new() }
    }

    /// A job whose ranks run `script` in this stage's folder.
    fn job(&self, ranks: u32, script: &str) -> Job {
        let folder = self.folder.path().display();
        Job {
            command: ["sh".into(), "-c".into(), format!("cd '{folder}'\n{script}").into()].into(),
            launcher: Vec::new(),
            guard: Vec::new(),
            ranks,
            ranks_min: None,
            store: folder.to_string(),
            run: "job".parse().unwrap(),
            environment: Default::default(),
            memory: false,
            restarts_max: 3,
            stall_timeout: None,
            grace: Duration::from_secs(20),
            master_port: None,
        }
    }

    fn run(&mut self, job: &Job) -> Outcome {
        let (seen, control) = (&mut self.seen, &self.control);
        let see = &mut |event: Event<'_>| {
            seen.push(match event {
                Event::Started { attempt, from, .. } => {
                    Seen::Started(attempt, from.map(|(step, _)| step))
                }
                Event::Line { rank, stream, text } => {
                    if text == b"kill me" {
                        control.kill(rank);
                    }
                    Seen::Line(rank, stream, String::from_utf8_lossy(text).into_owned())
                }
                Event::Ended { rank, cause } => Seen::Ended(rank, cause),
                Event::Failed(f) => Seen::Failed(f.rank, f.cause, f.step),
                Event::Stopping => Seen::Stopping,
                Event::Completed(completed) => Seen::Completed(completed.step),
                Event::NotCompleted(error) => Seen::NotCompleted(error.kind()),
                Event::Restarting { gone, ranks, .. } if !gone.is_empty() => {
                    Seen::Gone(gone, ranks)
                }
                Event::Step(_) | Event::Restarting { .. } => return,
            });
        };
        supervise(&self.repository, job, &self.control, see).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Line(_, _, text) => Some(text.clone()),
                _ => None,
            })
            .collect();
        lines.sort();
        lines
    }

    fn attempts(&self) -> Vec<Option<u64>> {
        let attempts = self.seen.iter().filter_map(|seen| match seen {
            Seen::Started(_, from) => Some(*from),
            _ => None,
        });
        attempts.collect()
    }

    /// The ranks that are lost and not replaced, and how many go on, after each attempt.
    fn gone(&self) -> Vec<(Vec<u32>, u32)> {
        let gone = self.seen.iter().filter_map(|seen| match seen {
            Seen::Gone(gone, ranks) => Some((gone.clone(), *ranks)),
            _ => None,
        });
        gone.collect()
    }

    /// What the ledger says of world sizes, and why.
    fn ledger(&self) -> (Vec<u32>, Vec<String>) {
        let ledger = self.repository.ledger(&"job".parse().unwrap()).unwrap();
        let (mut sizes, mut incidents) = (Vec::new(), Vec::new());
        for n in 1..=ledger.history().entries() {
            let (entry, _) = self.repository.block_on(ledger.read_entry(n)).unwrap().unwrap();
            match entry.kind {
                Kind::AttemptStarted { world_size, .. } => sizes.push(world_size),
                Kind::IncidentOpened { reason, .. } => incidents.push(reason),
                _ => {}
            }
        }
        (sizes, incidents)
    }

    /// Saves a checkpoint of `step`, as a rank would.
    fn save(&self, step: u64) {
        let run = "job".parse().unwrap();
        let mut run = Run::open(&self.repository, &run, RunOptions::default()).unwrap();
        run.save(step, Mode::Sync, |capture| {
            capture.component("control", "test", Durability::Durable)?.value("step", &step)
        })
        .unwrap();
        run.close().unwrap();
    }
}

/// Tells the supervisor that `step` steps are finished, as a rank does.
fn beat(step: u8) -> String {
    format!(r#"printf '\{:03o}\0\0\0\0\0\0\0' >"$LASTGOOD_HEARTBEAT""#, step + 1)
}

#[test]
fn ranks_get_the_variables_of_torchrun_and_their_lines_a_rank() {
    let mut stage = Stage::new();
    let job = stage.job(
        2,
        r#"echo "$RANK of $WORLD_SIZE, local $LOCAL_RANK of $LOCAL_WORLD_SIZE, $MASTER_ADDR"
        echo "$LASTGOOD_RUN $LASTGOOD_ATTEMPT" >&2
        [ "$MASTER_PORT" -gt 0 ] && [ -n "$LASTGOOD_INCARNATION" ] && [ -n "$LASTGOOD_STORE" ]"#,
    );
    assert_eq!(stage.run(&job), Outcome::Finished { attempts: 1 });
    for rank in 0..2 {
        let text = format!("{rank} of 2, local {rank} of 2, 127.0.0.1");
        assert!(stage.seen.contains(&Seen::Line(rank, Stream::Out, text)), "{:?}", stage.seen);
        assert!(stage.seen.contains(&Seen::Line(rank, Stream::Err, "job 1".into())));
    }
}

#[test]
fn a_dead_rank_ends_the_others_and_the_next_attempt_starts_from_the_last_checkpoint() {
    let mut stage = Stage::new();
    stage.save(5);
    let job = stage.job(
        3,
        r#"[ "$TORCHELASTIC_RESTART_COUNT" = 1 ] && exit 0
        [ "$RANK" = 1 ] && kill -9 $$
        sleep 60"#,
    );
    let start = Instant::now();
    assert_eq!(stage.run(&job), Outcome::Finished { attempts: 2 });
    assert!(start.elapsed() < Duration::from_secs(10), "the others were not ended");
    assert!(stage.seen.contains(&Seen::Failed(1, Cause::Signal(9), None)), "{:?}", stage.seen);
    assert!(stage.seen.contains(&Seen::Ended(0, Cause::Signal(15))));
    assert_eq!(stage.attempts(), [Some(5), Some(5)]);
}

#[test]
fn the_same_failure_at_the_same_step_ends_the_job_with_a_verdict() {
    let mut stage = Stage::new();
    let script = format!("{}\nsleep 0.3; echo 'loss is nan' >&2; exit 3", beat(57));
    let job = stage.job(1, &script);
    let Outcome::GaveUp(Verdict::SameFailure(failure)) = stage.run(&job) else {
        panic!("{:?}", stage.seen)
    };
    assert_eq!((failure.cause, failure.step), (Cause::Exit(3), Some(57)));
    assert_eq!(failure.last_words.as_deref(), Some("loss is nan"));
    assert_eq!(stage.attempts().len(), 2);
}

#[test]
fn a_new_checkpoint_makes_the_budget_whole_again() {
    let mut stage = Stage::new();
    // Fails at another step each time, so that only the budget ends it.
    let script = r#"n=$(cat count 2>/dev/null || echo 0); echo $((n + 1)) >count
        printf "\\$(printf %03o $((n + 1)))\0\0\0\0\0\0\0" >"$LASTGOOD_HEARTBEAT"; sleep 0.5; exit 1"#;
    let job = Job { restarts_max: 1, ..stage.job(1, script) };
    let outcome = stage.run(&job);
    assert!(
        matches!(outcome, Outcome::GaveUp(Verdict::NoProgress { restarts: 1, .. })),
        "{outcome:?}"
    );
    assert_eq!(stage.attempts().len(), 2);

    let mut stage = Stage::new();
    let repository = stage.repository.clone();
    let folder = stage.folder.path().to_owned();
    let saver = thread::spawn(move || {
        // Commits a checkpoint while the second attempt runs.
        while !std::fs::read_to_string(folder.join("count")).is_ok_and(|n| n.trim() == "2") {
            thread::sleep(Duration::from_millis(5));
        }
        let stage = Stage {
            folder: tempfile::tempdir().unwrap(),
            repository,
            control: Arc::default(),
            seen: Vec::new(),
        };
        stage.save(9);
    });
    let job = Job { restarts_max: 1, ..stage.job(1, script) };
    stage.run(&job);
    saver.join().unwrap();
    assert_eq!(stage.attempts().len(), 3, "{:?}", stage.seen);
    assert_eq!(stage.attempts()[2], Some(9));
}

#[test]
fn a_stall_is_noticed_by_steps_and_without_them_by_output() {
    // It goes on printing, but its steps stand still.
    let talks = format!("{}\nwhile true; do echo alive; sleep 0.05; done", beat(3));
    for (script, step) in [(talks.as_str(), Some(3)), ("sleep 60", None)] {
        let mut stage = Stage::new();
        let job = Job {
            stall_timeout: Some(Duration::from_millis(700)),
            restarts_max: 0,
            ..stage.job(2, script)
        };
        let Outcome::GaveUp(verdict) = stage.run(&job) else { panic!("{:?}", stage.seen) };
        let failure = verdict.failure();
        assert!(matches!(failure.cause, Cause::Stalled(_)), "{failure:?}");
        assert_eq!(failure.step, step);
    }
}

#[test]
fn a_stop_is_passed_on_and_after_the_grace_time_enforced() {
    let polite = "trap 'echo saving; exit 0' TERM; echo ready; while true; do sleep 0.05; done";
    let deaf = "trap '' TERM; echo ready; while true; do sleep 0.05; done";
    for (script, grace, said) in
        [(polite, Duration::from_secs(20), true), (deaf, Duration::from_millis(300), false)]
    {
        let mut stage = Stage::new();
        let job = Job { grace, ..stage.job(2, script) };
        let control = Arc::clone(&stage.control);
        let stopper = thread::spawn(move || {
            thread::sleep(Duration::from_millis(500));
            control.stop();
        });
        let start = Instant::now();
        assert_eq!(stage.run(&job), Outcome::Stopped);
        stopper.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(stage.seen.contains(&Seen::Stopping));
        assert_eq!(stage.lines().contains(&"saving".to_owned()), said, "{:?}", stage.seen);
        let killed = stage.seen.contains(&Seen::Ended(0, Cause::Signal(9)));
        assert_eq!(killed, !said, "{:?}", stage.seen);
    }
}

#[test]
fn a_second_stop_does_not_wait() {
    let mut stage = Stage::new();
    let job = stage.job(1, "trap '' TERM; while true; do sleep 0.05; done");
    stage.control.stop();
    stage.control.stop();
    let start = Instant::now();
    assert_eq!(stage.run(&job), Outcome::Stopped);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn children_of_a_failed_rank_end_with_it() {
    let mut stage = Stage::new();
    let job = Job { restarts_max: 0, ..stage.job(1, "sleep 1000 & echo $! >child; exit 1") };
    assert!(matches!(stage.run(&job), Outcome::GaveUp(_)));
    let child = std::fs::read_to_string(stage.folder.path().join("child")).unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
    let until = Instant::now() + Duration::from_secs(5);
    // It is gone, or a zombie that nobody has reaped yet.
    while state().is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < until, "the child lives: {:?}", state());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn kills_on_purpose_do_not_count() {
    let mut stage = Stage::new();
    let job = Job {
        restarts_max: 0,
        ..stage.job(
            2,
            r#"[ "$TORCHELASTIC_RESTART_COUNT" = 2 ] && exit 0
            [ "$RANK" = 1 ] && echo 'kill me'
            sleep 60"#,
        )
    };
    assert_eq!(stage.run(&job), Outcome::Finished { attempts: 3 });
    assert!(stage.seen.contains(&Seen::Ended(1, Cause::Injected)));
}

#[test]
fn a_lost_rank_is_not_replaced_if_the_job_may_shrink() {
    let mut stage = Stage::new();
    let script = format!(
        r#"echo "$TORCHELASTIC_RESTART_COUNT: $RANK of $WORLD_SIZE at $LASTGOOD_PLACE"
        {}
        case $TORCHELASTIC_RESTART_COUNT$RANK in
            01) sleep 0.3; kill -9 $$ ;;
            12) sleep 0.3; exit 1 ;;
            2?) exit 0 ;;
        esac
        sleep 60"#,
        beat(7)
    );
    let job = Job { ranks_min: Some(1), ..stage.job(4, &script) };
    assert_eq!(stage.run(&job), Outcome::Finished { attempts: 3 });
    assert_eq!(stage.gone(), [(vec![1], 3), (vec![2], 2)]);
    let expected: Vec<String> =
        [(0, 4, [0, 1, 2, 3].as_slice()), (1, 3, &[0, 2, 3]), (2, 2, &[0, 2])]
            .into_iter()
            .flat_map(|(attempt, size, places)| {
                (0..).zip(places).map(move |(rank, place): (u32, &u32)| {
                    format!("{attempt}: {rank} of {size} at {place}")
                })
            })
            .collect();
    assert_eq!(stage.lines(), expected);
    let (sizes, incidents) = stage.ledger();
    assert_eq!(sizes, [4, 3, 2]);
    assert_eq!(
        incidents,
        [
            "rank 1 was ended by signal 9 (SIGKILL) after step 7; rank 1 is not replaced: 3 ranks go on",
            "rank 2 ended with code 1 after step 7; rank 2 is not replaced: 2 ranks go on",
        ]
    );
}

#[test]
fn ranks_that_are_killed_at_once_are_all_lost_down_to_the_least_number() {
    // Rank 0 is killed as well, but only by who ends the attempt.
    let script = r#"echo $$ >pid$RANK
        [ "$TORCHELASTIC_RESTART_COUNT" = 1 ] && exit 0
        trap '' TERM
        if [ "$RANK" = 3 ]; then
            until [ -s pid0 ] && [ -s pid1 ] && [ -s pid2 ]; do sleep 0.02; done
            kill -9 $(cat pid1) $(cat pid2) $$
        fi
        while true; do sleep 0.05; done"#;
    for (min, left) in [(1, 1), (2, 2), (4, 4)] {
        let mut stage = Stage::new();
        let job =
            Job { ranks_min: Some(min), grace: Duration::from_millis(300), ..stage.job(4, script) };
        assert_eq!(stage.run(&job), Outcome::Finished { attempts: 2 });
        assert_eq!(stage.ledger().0, [4, left], "{:?}", stage.seen);
    }
}

#[test]
fn nobody_is_lost_by_a_stall_or_a_command_that_cannot_be_run() {
    let hangs = format!("{}\nsleep 60", beat(3));
    for script in [hangs.as_str(), "exit 127", "exit 2"] {
        let mut stage = Stage::new();
        let script = format!("[ \"$TORCHELASTIC_RESTART_COUNT\" = 1 ] && exit 0\n{script}");
        let job = Job {
            ranks_min: Some(1),
            stall_timeout: Some(Duration::from_millis(700)),
            ..stage.job(3, &script)
        };
        assert_eq!(stage.run(&job), Outcome::Finished { attempts: 2 }, "{script}");
        assert_eq!((stage.gone(), stage.ledger().0), (vec![], vec![3, 3]), "{script}");
    }
}

#[test]
fn restarts_with_fewer_ranks_are_counted_as_others() {
    let mut stage = Stage::new();
    let job = Job {
        ranks_min: Some(1),
        restarts_max: 1,
        ..stage.job(4, r#"[ "$RANK" = 0 ] && kill -9 $$; sleep 60"#)
    };
    let Outcome::GaveUp(verdict) = stage.run(&job) else { panic!("{:?}", stage.seen) };
    assert!(matches!(verdict, Verdict::NoProgress { restarts: 1, .. }), "{verdict}");
    assert_eq!(stage.ledger().0, [4, 3]);
}

#[test]
fn a_job_that_could_not_keep_enough_ranks_is_refused() {
    let stage = Stage::new();
    for ranks_min in [Some(0), Some(3)] {
        let job = Job { ranks_min, ..stage.job(2, "true") };
        let error = supervise(&stage.repository, &job, &stage.control, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let stage = Stage::new();
    let job = Job { command: vec!["/nonexistent/train".into()], ..stage.job(1, "") };
    let error = supervise(&stage.repository, &job, &stage.control, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/train"), "{error}");
}
