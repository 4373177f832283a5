use super::*;

#[test]
fn subcommands_are_found() {
    let overview = "Usage: lastgood\n\nCommands:\n  run   Supervises\n        and restarts\n  ls    \
        Lists\n  help  Help\n\nOptions:\n  --json\n";
    assert_eq!(commands(overview), ["run", "ls"]);
    assert_eq!(commands("nothing"), [""; 0]);
}
