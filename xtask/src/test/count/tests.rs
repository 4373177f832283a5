use super::*;

fn check(lines: &[&str], expected: Option<(u64, u64, u64)>) {
    let mut counter = Counter::default();
    lines.iter().for_each(|line| counter.line(line));
    let expected = expected.map(|(passed, failed, skipped)| Count { passed, failed, skipped });
    assert_eq!(counter.total(), expected, "{lines:?}");
}

#[test]
fn summaries_are_counted() {
    check(&["     Summary [   0.5s] 5 tests run: 5 passed, 2 skipped"], Some((5, 0, 2)));
    check(
        &["Summary [1s] 9/12 tests run: 3 passed (1 slow), 4 failed, 2 timed out, 3 skipped"],
        Some((3, 6, 3)),
    );
    check(
        &[
            "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ],
        Some((5, 2, 1)),
    );
    check(&["20000 passed, 0 failed"], Some((20_000, 0, 0)));
    check(&["1 passed, 0 failed, 0 skipped", " 7 passed, 1 failed, 2 skipped"], Some((7, 1, 2)));
}

#[test]
fn other_lines_are_not() {
    check(&[], None);
    check(&["3 passed", "all passed, none failed", "1 passed, 2 failed, 3 skipped, 4 lost"], None);
    check(&["Summary [ready] of the day"], None);
}
