//! Numbers that ask for everything.

use std::fs;

use super::fixture::{dict, int, list, text, torch};
use super::{put, verdict};
use crate::doctor::report::Verdict;

const MANY: i64 = 1_000_000_000;

#[test]
fn ranks_without_end_are_not_looked_for_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("global_step5");
    fs::create_dir(&path).unwrap();
    let zero = dict(&[(text("stage"), int(1))]);
    let model = dict(&[
        (text("global_steps"), int(5)),
        (text("dp_world_size"), int(MANY)),
        (text("mp_world_size"), int(MANY)),
        (text("num_experts"), list(&[int(MANY), int(MANY)])),
        (text("ds_config"), dict(&[(text("zero_optimization"), zero)])),
    ]);
    put(&path.join("mp_rank_00_model_states.pt"), &torch(&model, &[]));
    let last = format!("zero_pp_rank_{0}_mp_rank_{0}_optim_states.pt", u64::MAX);
    put(&path.join(last), &torch(&dict(&[]), &[]));
    let (is, kinds) = verdict(&path);
    assert_eq!(is, Verdict::Broken);
    assert!(kinds.contains(&"not-read"), "{kinds:?}");
}

#[test]
fn folders_without_end_are_not_looked_for_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("iter_0000005");
    fs::create_dir_all(path.join("mp_rank_00")).unwrap();
    let sizes = ["tensor", "pipeline", "expert"]
        .map(|of| (text(&format!("{of}_model_parallel_size")), int(MANY)));
    let model = dict(&[(text("iteration"), int(5)), (text("args"), dict(&sizes))]);
    put(&path.join("mp_rank_00/model_optim_rng.pt"), &torch(&model, &[]));
    assert!(verdict(&path).1.contains(&"not-read"));
}
