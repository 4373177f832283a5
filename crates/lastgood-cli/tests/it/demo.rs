//! The demo: equal when all is saved, different when something is left out.

use crate::tool::{lastgood, on};

#[test]
fn kills_change_nothing_and_the_repository_can_be_kept() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["demo", "--kills", "3", "--seed", "5", "--steps", "60"];
    let ran = on(folder.path(), &args).exits(0);
    let last = ran.out.lines().last().unwrap();
    let digest = last.strip_prefix("digest equal: ").unwrap();
    assert!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "{last}");
    assert_eq!(ran.out.matches("kill -9 rank").count(), 3, "{}", ran.out);
    assert!(ran.out.contains("inside its save of step"), "{}", ran.out);
    on(folder.path(), &["verify", "--run", "demo"]).exits(0);
    let again = on(folder.path(), &args).exits(5);
    assert!(again.err.contains("already"), "{}", again.err);
}

#[test]
fn a_component_that_is_not_saved_is_noticed() {
    for component in ["model", "optimizer", "rng"] {
        // The first kill comes after several saves: whoever begins from nothing has forgotten nothing.
        let args = ["demo", "--kills", "2", "--seed", "5", "--steps", "60", "--forget", component];
        let ran = lastgood(&args).exits(6);
        assert!(ran.out.contains("first difference: "), "{}", ran.out);
    }
}

#[test]
fn other_numbers_of_ranks_come_to_the_same_bytes() {
    let digest = |ranks: &str| {
        let args = ["demo", "--json", "--kills", "1", "--steps", "40", "--ranks", ranks];
        let ran = lastgood(&args).exits(0);
        ran.json().pop().unwrap()["digest"].as_str().unwrap().to_owned()
    };
    assert_eq!(digest("1"), digest("3"));
}

#[test]
fn who_is_killed_is_not_replaced_and_the_rest_comes_to_the_same_bytes() {
    let args = ["demo", "--json", "--shrink", "--kills", "4", "--seed", "5", "--steps", "60"];
    let events = lastgood(&args).exits(0).json();
    let all = |name: &str, field: &str| -> Vec<u64> {
        let named = events.iter().filter(|event| event["event"] == name);
        named.map(|event| event[field].as_u64().unwrap()).collect()
    };
    // The undisturbed training, and then one rank fewer after each kill; the last one is replaced.
    assert_eq!(all("started", "ranks"), [4, 4, 3, 2, 1, 1]);
    assert_eq!(all("shrunk", "ranks"), [3, 2, 1]);
    assert_eq!(all("kill", "rank").len(), 4);
    let digests: Vec<_> =
        events.iter().filter(|event| event["event"] == "done").map(|e| &e["digest"]).collect();
    assert_eq!(digests.len(), 2);
    assert_eq!((digests[0], &events.last().unwrap()["event"]), (digests[1], &"equal".into()));
}

#[test]
fn what_cannot_be_done_is_refused() {
    for args in [
        &["demo", "--kills", "59"][..],
        &["demo", "--ranks", "0"],
        &["demo", "--ranks", "5"],
        &["demo", "--every", "0"],
    ] {
        lastgood(args).exits(2);
    }
}
