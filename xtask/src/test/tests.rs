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

#[test]
fn tests_of_the_gateway_run_where_there_is_one() {
    for stage in STAGES {
        let mut command = Command::new("program");
        use_gateway(&mut command, stage, (gateway::VARIABLE, "address".into()));
        let variables: Vec<_> = command.get_envs().collect();
        let args: Vec<_> = command.get_args().collect();
        match stage.name {
            "tests" => {
                assert_eq!(variables, [(gateway::VARIABLE.as_ref(), Some("address".as_ref()))]);
                assert_eq!(args, ["--ignore-default-filter"]);
            }
            "python" => {
                assert_eq!(variables, [(gateway::VARIABLE.as_ref(), Some("address".as_ref()))]);
                assert!(args.is_empty(), "{args:?}");
            }
            name => assert!(variables.is_empty() && args.is_empty(), "{name}: {args:?}"),
        }
    }
}

/// Without the filter they would fail wherever there is no gateway; with a filter of another name, pass
/// without having run.
#[test]
fn tests_of_the_gateway_are_left_out_by_name() {
    let settings = std::fs::read_to_string(repo::root().join(".config/nextest.toml")).unwrap();
    assert!(settings.contains(r#"default-filter = "not test(/(^|::)s3::/)""#));
    assert!(repo::root().join("crates/lastgood-store/tests/it/s3.rs").exists());
}
