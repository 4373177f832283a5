use super::*;

fn names(args: &[&str]) -> Vec<&'static str> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let stages = parse(&args).and_then(|options| select(&options)).unwrap();
    stages.iter().map(|stage| stage.name).collect()
}

#[test]
fn stages_are_selected() {
    let all = names(&[]);
    assert_eq!(all.len(), STAGES.len() + 1);
    assert_eq!(all.iter().filter(|name| **name == BUILD.name).count(), 1);
    assert_eq!(names(&["--only", "lint", "--only", "fmt"]), ["fmt", "lint"]);
    assert_eq!(names(&["--only", "demo"]), ["build", "demo"]);
    assert_eq!(names(&["--only", "build"]), ["build"]);
    assert!(!names(&["--skip", "clippy"]).contains(&"clippy"));
}

#[test]
fn unknown_names_are_refused() {
    for args in [&["--only", "gone"][..], &["--skip"], &["--all"], &["lint"]] {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        assert!(parse(&args).is_err(), "{args:?}");
    }
}

#[test]
fn names_of_stages_are_their_own() {
    let names: BTreeSet<&str> = STAGES.iter().map(|stage| stage.name).collect();
    assert_eq!(names.len(), STAGES.len());
}

#[test]
fn the_exit_status_has_the_last_word() {
    let count = Count { passed: 3, failed: 0, skipped: 1 };
    assert_eq!(judge(true, Some(count)), count);
    assert_eq!(judge(false, Some(count)), Count { failed: 1, ..count });
    assert_eq!(judge(true, None), Count::PASSED);
    assert_eq!(judge(false, None), Count::FAILED);
}
