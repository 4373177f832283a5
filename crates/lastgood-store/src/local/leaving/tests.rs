use std::process::Command;

use super::*;

/// A process that has ended, and whose number nobody has yet.
fn dead() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

#[test]
fn a_name_tells_its_writer_and_is_never_used_twice() {
    let this = Writer::this();
    let (first, second) = (this.staging_name(), this.staging_name());
    assert_ne!(first, second);
    assert_eq!(Writer::of(&first), Some(this.clone()));
    assert!(!this.world.is_empty() && !this.world.contains('-'), "{this:?}");
    for name in ["", "a", "1-2", "x-pid-0-0", "x-1-no hex-0"] {
        assert_eq!(Writer::of(name), None, "{name:?}");
    }
}

#[test]
fn only_processes_of_this_world_are_known_to_be_dead() {
    let this = Writer::this();
    let pid = dead();
    let cases = [
        ("itself", this.clone(), false),
        ("another process that is gone", Writer { pid, ..this.clone() }, true),
        ("process 1, which lives", Writer { pid: 1, ..this.clone() }, false),
        ("who had this number before", Writer { token: !this.token, ..this.clone() }, true),
        (
            "another container",
            Writer { pid, world: format!("{}1", this.world), ..this.clone() },
            false,
        ),
        ("an unknown world", Writer { pid, world: String::new(), ..this.clone() }, false),
        ("no number of a process", Writer { pid: u32::MAX, ..this.clone() }, false),
        ("no process", Writer { pid: 0, ..this.clone() }, false),
    ];
    for (name, other, expected) in cases {
        assert_eq!(this.knows_dead(&other), expected, "{name}: {other:?}");
    }
    let unknown = Writer { world: String::new(), ..this };
    assert!(!unknown.knows_dead(&Writer { pid, ..unknown.clone() }));
}
