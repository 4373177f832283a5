//! Tests that need a process of their own.
#![expect(clippy::disallowed_methods, reason = "a process is told by its environment what it is")]

use std::process::Command;

const VARIABLE: &str = "LASTGOOD_TEST_CHILD";

/// What a test did in a process of its own.
pub(crate) struct Child {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the test `name` again in a process of its own and gives what it did; in that process, `None`.
pub(crate) fn of(name: &str) -> Option<Child> {
    if std::env::var(VARIABLE).is_ok() {
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(stdout.contains("1 passed") || !output.status.success(), "no test is called {name}");
    Some(Child { success: output.status.success(), stdout, stderr })
}
