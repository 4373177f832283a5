use std::collections::BTreeMap;

use lastgood::state::World;
use lastgood::{ErrorKind, Result};
use lastgood_serve::Rank;
use lastgood_store::SharedMemory;

fn from(variables: &[(&str, &str)]) -> Result<Rank> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    Rank::from_variables(|name| variables.get(name).map(|value| (*value).to_owned()))
}

#[test]
fn without_a_supervisor_a_process_is_alone() {
    let rank = from(&[]).unwrap();
    assert_eq!(rank.options.world, World::ALONE);
    assert!(rank.options.heartbeat.is_none() && rank.store.is_none() && rank.run.is_none());
}

#[test]
fn a_rank_tells_its_steps() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let rank = from(&[
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("LASTGOOD_INCARNATION", "one"),
        ("LASTGOOD_STORE", "memory:"),
        ("LASTGOOD_RUN", "llm"),
        ("LASTGOOD_HEARTBEAT", path),
    ])
    .unwrap();
    assert_eq!(rank.options.world, World { rank: 1, size: 4 });
    assert_eq!(rank.run.unwrap().as_str(), "llm");
    (rank.options.heartbeat.unwrap())(41);
    assert_eq!(std::fs::read(path).unwrap(), 42_u64.to_le_bytes());
}

#[test]
fn a_rank_takes_its_memory_or_says_why_not() {
    let memory = SharedMemory::create("test").unwrap();
    let path = memory.path();
    let first = from(&[("LASTGOOD_MEMORY", &path)]).unwrap();
    assert!(first.options.tier.is_some() && first.notices.is_empty());
    for path in [path.as_str(), "/proc/self/fd/9999"] {
        let other = from(&[("LASTGOOD_MEMORY", path)]).unwrap();
        assert!(other.options.tier.is_none());
        assert!(other.notices[0].contains("memory of its own"), "{:?}", other.notices);
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("RANK", "one"), ("WORLD_SIZE", "2")], "RANK is \"one\""),
        (&[("RANK", "0")], "only one of RANK and WORLD_SIZE"),
        (&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK is 2 and WORLD_SIZE 2"),
        (&[("RANK", "0"), ("WORLD_SIZE", "2")], "LASTGOOD_INCARNATION is not set"),
        (&[("LASTGOOD_HEARTBEAT", "/nonexistent/file")], "/nonexistent/file"),
        (&[("LASTGOOD_RUN", "a/b")], "LASTGOOD_RUN"),
    ];
    for (variables, message) in cases {
        let error = from(variables).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(message), "{error}");
    }
}
