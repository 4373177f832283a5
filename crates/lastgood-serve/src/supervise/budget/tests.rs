use super::*;

fn failure(cause: Cause, step: Option<u64>, words: Option<&str>) -> Failure {
    Failure { rank: 1, ranks: 4, cause, step, last_words: words.map(str::to_owned) }
}

fn restarts(next: &Next) -> bool {
    matches!(next, Next::Restart { .. })
}

#[test]
fn the_same_failure_at_the_same_step_twice_ends_the_job() {
    let mut budget = Budget::new(10);
    let at_57 = failure(Cause::Exit(1), Some(57), Some("nan"));
    assert!(restarts(&budget.judge(at_57.clone(), Some(55))));
    let Next::GiveUp(verdict) = budget.judge(at_57, Some(55)) else { panic!("no verdict") };
    let text = verdict.to_string();
    for part in ["same failure twice", "rank 1 ended with code 1", "after step 57", "nan"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn whichever_rank_is_noticed_first_the_same_code_after_the_same_step_is_the_same() {
    let mut budget = Budget::new(10);
    let first = failure(Cause::Exit(1), Some(57), Some("loss is nan"));
    assert!(restarts(&budget.judge(first.clone(), Some(55))));
    assert!(!restarts(&budget.judge(Failure { rank: 3, ..first }, Some(55))));
}

#[test]
fn another_step_rank_or_cause_is_another_failure() {
    let mut budget = Budget::new(10);
    let first = failure(Cause::Signal(9), Some(57), None);
    let others = [
        failure(Cause::Signal(9), Some(58), None),
        failure(Cause::Signal(11), Some(58), None),
        Failure { rank: 2, ..failure(Cause::Signal(11), Some(58), None) },
        Failure { rank: 2, ranks: 3, ..failure(Cause::Signal(11), Some(58), None) },
    ];
    assert!(restarts(&budget.judge(first, None)));
    for other in others {
        assert!(restarts(&budget.judge(other, None)));
    }
}

#[test]
fn before_the_first_step_only_last_words_tell_that_it_is_the_same() {
    let mut budget = Budget::new(10);
    let silent = failure(Cause::Exit(1), None, None);
    assert!(restarts(&budget.judge(silent.clone(), None)));
    assert!(restarts(&budget.judge(silent, None)));
    let told = failure(Cause::Exit(1), None, Some("no module named torch"));
    assert!(restarts(&budget.judge(told.clone(), None)));
    assert!(!restarts(&budget.judge(told, None)));
}

#[test]
fn the_budget_is_spent_without_progress_and_whole_again_after_it() {
    let mut budget = Budget::new(2);
    let mut step = 0;
    let mut fail = |budget: &mut Budget, checkpoint| {
        step += 1;
        budget.judge(failure(Cause::Exit(1), Some(step), None), checkpoint)
    };
    assert!(restarts(&fail(&mut budget, Some(5))));
    assert!(restarts(&fail(&mut budget, Some(5))));
    assert!(restarts(&fail(&mut budget, Some(10))), "a new checkpoint is progress");
    assert!(restarts(&fail(&mut budget, Some(10))));
    let next = fail(&mut budget, Some(10));
    assert!(matches!(next, Next::GiveUp(Verdict::NoProgress { restarts: 2, .. })), "{next:?}");
}

#[test]
fn kills_on_purpose_cost_nothing() {
    let mut budget = Budget::new(0);
    for _ in 0..3 {
        assert!(restarts(&budget.judge(failure(Cause::Injected, Some(5), None), None)));
    }
    assert!(!restarts(&budget.judge(failure(Cause::Exit(1), Some(5), None), None)));
}

#[test]
fn pauses_grow_to_a_bound() {
    let mut budget = Budget::new(40);
    let mut pauses = Vec::new();
    for step in 0..40 {
        let Next::Restart { after, .. } =
            budget.judge(failure(Cause::Exit(1), Some(step), None), None)
        else {
            panic!("no restart")
        };
        pauses.push(after);
    }
    assert_eq!(pauses[0], Duration::ZERO);
    assert!(pauses.is_sorted());
    assert_eq!(pauses.last(), Some(&PAUSE_MAX));
}

#[test]
fn a_verdict_names_the_signal_and_says_where_to_look() {
    let cases = [
        (Cause::Signal(9), "signal 9 (SIGKILL)", "out-of-memory"),
        (Cause::Signal(11), "signal 11 (SIGSEGV)", "native code"),
        (Cause::Exit(127), "code 127", "not there"),
        (Cause::Stalled(Duration::from_secs(3)), "for 3 s", "stall timeout"),
    ];
    for (cause, name, hint) in cases {
        let text = Verdict::SameFailure(failure(cause, Some(5), None)).to_string();
        assert!(text.contains(name) && text.contains(hint), "{text}");
    }
}
