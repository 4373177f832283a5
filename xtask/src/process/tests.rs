use super::*;

#[test]
fn colours_are_taken_out() {
    let check = |line: &[u8], expected: &str| assert_eq!(plain(line), expected);
    check(b"plain\n", "plain");
    check(
        b"\x1b[32;1m  Summary\x1b[0m [  1.2s] \x1b[1m3\x1b[0m tests\n",
        "  Summary [  1.2s] 3 tests",
    );
    check(b"cut off \x1b[3", "cut off ");
}

#[test]
fn output_and_status_are_seen() {
    let (sender, lines) = channel();
    let mut shell = command("sh");
    shell.args(["-c", "echo one; echo two >&2; exit 3"]);
    let end = watch(shell, Duration::from_secs(20), move |line| {
        sender.send(plain(line)).unwrap();
    });
    assert!(matches!(end.unwrap(), End::Exited(status) if status.code() == Some(3)));
    assert_eq!(lines.iter().collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn a_command_that_hangs_is_ended() {
    let mut sleep = command("sleep");
    sleep.arg("60");
    assert!(matches!(watch(sleep, Duration::from_millis(50), |_| ()), Ok(End::TimedOut)));
}
