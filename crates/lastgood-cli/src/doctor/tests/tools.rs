//! What tools really leave, in ways that are easily taken for damage, and what is easily overlooked.

use std::fs;
use std::path::Path;

use super::fixture::{dcp, dict, int, list, safetensors, stream, tensor_of, text, torch, zip};
use super::{examined, put, verdict};
use crate::doctor::report::Verdict;

const TRUSTED: (Verdict, Vec<&str>) = (Verdict::Trusted, Vec::new());

fn index(files: &[(&str, &str)]) -> String {
    let entry = |(tensor, file): &(&str, &str)| format!(r#""{tensor}":"{file}""#);
    let map: Vec<String> = files.iter().map(entry).collect();
    format!(r#"{{"weight_map":{{{}}}}}"#, map.join(","))
}

fn trainer(path: &Path, state: &str) {
    fs::create_dir_all(path).unwrap();
    put(&path.join("model.safetensors"), &safetensors(&["w"]));
    put(&path.join("trainer_state.json"), state.as_bytes());
    for name in ["optimizer.pt", "scheduler.pt", "rng_state.pth"] {
        put(&path.join(name), &torch(&dict(&[]), &[]));
    }
}

#[test]
fn a_loss_that_is_no_number_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint-5");
    trainer(&path, r#"{"global_step": 5, "log_history": [{"loss": NaN, "grad_norm": Infinity}]}"#);
    assert_eq!(verdict(&path), TRUSTED);
    trainer(&path, r#"{"global_step": 5, "log_history": [{"loss": NaN, "#);
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["unreadable"]));
}

#[test]
fn shards_of_a_variant_have_an_index_of_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    fs::create_dir(&path).unwrap();
    let shards = ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"];
    put(&path.join(shards[0]), &safetensors(&["a"]));
    put(&path.join(shards[1]), &safetensors(&["b"]));
    let map = index(&[("a", shards[0]), ("b", shards[1])]);
    put(&path.join("model.safetensors.index.fp16.json"), map.as_bytes());
    assert_eq!(verdict(&path), TRUSTED);
    fs::remove_file(path.join(shards[1])).unwrap();
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["missing-shard"]));
}

#[test]
fn only_an_index_of_weights_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    fs::create_dir(&path).unwrap();
    put(&path.join("model.safetensors"), &safetensors(&["a"]));
    put(&path.join("proof-of-concept.safetensors"), &safetensors(&["a"]));
    put(&path.join("corpus.index.json"), b"{}");
    put(&path.join("tf_model.h5.index.json"), index(&[("a", "tf_model.h5")]).as_bytes());
    // A cache that was told to fetch safetensors only has the index of the others too.
    let bins = "pytorch_model.bin.index.json";
    let shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    put(&path.join(bins), index(&[("a", shards[0]), ("b", shards[1])]).as_bytes());
    assert_eq!(verdict(&path), TRUSTED);
    // One of both is no such cache.
    put(&path.join(shards[0]), &torch(&dict(&[]), &[]));
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["missing"]));
}

#[test]
fn an_index_without_tensors_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint-5");
    trainer(&path, r#"{"global_step": 5}"#);
    fs::remove_file(path.join("model.safetensors")).unwrap();
    put(&path.join("model.safetensors.index.json"), index(&[]).as_bytes());
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["unreadable", "missing"]));
}

#[test]
fn pickled_weights_beside_safetensors_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    fs::create_dir(&path).unwrap();
    put(&path.join("model.safetensors"), &safetensors(&["a"]));
    put(&path.join("pytorch_model.bin"), &torch(&dict(&[]), &[])[..50]);
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["unreadable"]));
}

#[test]
fn a_folder_called_as_the_trainers_are_may_be_another_tools() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dcp").join("checkpoint-5");
    dcp(&path);
    assert_eq!(verdict(&path), TRUSTED);
    assert_eq!(examined(&path)[0].checkpoints[0].format, "dcp");
    // Accelerate's `save_state`, as the scripts of diffusers call it.
    let path = folder.path().join("accelerate").join("checkpoint-5");
    fs::create_dir_all(&path).unwrap();
    put(&path.join("model.safetensors"), &safetensors(&["w"]));
    put(&path.join("optimizer.bin"), &torch(&dict(&[]), &[]));
    assert_eq!(verdict(&path).0, Verdict::Broken);
    put(&path.join("random_states_0.pkl"), &torch(&dict(&[]), &[]));
    assert_eq!(verdict(&path), TRUSTED);
    assert_eq!(examined(&path)[0].checkpoints[0].step, Some(5));
    let cut_off = folder.path().join("accelerate").join("state-6");
    fs::create_dir(&cut_off).unwrap();
    put(&cut_off.join("model.safetensors"), &safetensors(&["w"]));
    put(&cut_off.join("optimizer.bin"), &torch(&dict(&[]), &[]));
    assert_eq!(verdict(&cut_off), (Verdict::Suspect, vec!["missing"]));
    // The Trainer's own, with parts in such formats.
    let path = folder.path().join("trainer").join("checkpoint-5");
    trainer(&path, r#"{"global_step": 5}"#);
    dcp(&path.join("pytorch_model_fsdp_0"));
    assert_eq!(examined(&path)[0].checkpoints[0].format, "hf-trainer");
}

#[test]
fn ranks_that_wrote_tables_of_their_own_are_all_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epoch=0-step=7.ckpt");
    dcp(&path);
    fs::rename(path.join(".metadata"), path.join("__0.metadata")).unwrap();
    assert_eq!(verdict(&path), TRUSTED);
    assert_eq!(examined(&path)[0].checkpoints[0].step, Some(7));
    // A third rank has written its data, and not its table.
    put(&path.join("__2_0.distcp"), b"x");
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["uncommitted"]));
}

#[test]
fn items_of_orbax_that_are_json_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("5");
    fs::create_dir_all(path.join("extra")).unwrap();
    let handler = "orbax.checkpoint.JsonCheckpointHandler";
    let metadata =
        format!(r#"{{"item_handlers":{{"extra":"{handler}"}},"commit_timestamp_nsecs":1}}"#);
    put(&path.join("_CHECKPOINT_METADATA"), metadata.as_bytes());
    put(&path.join("extra/commit_success.txt"), b"x");
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["missing"]));
    put(&path.join("extra/metadata"), b"{}");
    assert_eq!(verdict(&path), TRUSTED);
    put(&path.join("extra/metadata"), b"\0\0");
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["unreadable"]));
}

#[test]
fn texts_and_states_of_random_numbers_of_orbax_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("5");
    let key = path.join("key/np_random_key");
    fs::create_dir_all(&key).unwrap();
    fs::create_dir_all(path.join("key/np_random_key_metadata")).unwrap();
    let handler = "orbax.NumpyRandomKeyCheckpointHandler";
    let metadata =
        format!(r#"{{"item_handlers":{{"key":"{handler}"}},"commit_timestamp_nsecs":1}}"#);
    put(&path.join("_CHECKPOINT_METADATA"), metadata.as_bytes());
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["missing"]));
    let tree =
        r#"{"use_ocdbt":false,"tree_metadata":{"0":{"value_metadata":{"value_type":"string"}}}}"#;
    put(&key.join("_METADATA"), tree.as_bytes());
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["missing", "missing"]));
    put(&key.join("_strings.json"), b"{}");
    put(&path.join("key/np_random_key_metadata/metadata"), b"{}");
    assert_eq!(verdict(&path), TRUSTED);
    put(&key.join("_strings.json"), b"\0\0");
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["unreadable"]));
}

#[test]
fn dtypes_without_a_known_size_are_not_called_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    for (dtype, expected) in [
        ("bits8", TRUSTED),
        ("float4_e2m1fn_x2", TRUSTED),
        ("uint3", (Verdict::Suspect, vec!["tensor"])),
    ] {
        let pickle = stream(&tensor_of(dtype, 4));
        put(&path, &zip(&[("a/data.pkl", &pickle), ("a/data/0", b"abcd")], true));
        assert_eq!(verdict(&path), expected, "{dtype}");
    }
}

#[test]
fn an_integrity_file_proves_nothing_of_what_it_does_not_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("iter_0000005");
    dcp(&path);
    put(&path.join("metadata.json"), b"{}");
    put(&path.join("common.pt"), &torch(&dict(&[(text("iteration"), int(5))]), &[]));
    put(&path.join("integrity.json"), br#"{"algorithm":"sha256","files":{}}"#);
    assert_eq!(verdict(&path), TRUSTED);
    assert!(examined(&path)[0].checkpoints[0].coverage.uncheckable > 0);
}

#[test]
fn bytes_that_an_extension_has_changed_are_not_called_damage_but_zeros_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-5");
    dcp(&path);
    // What the table says of each place: a descriptor, and the same file with other bytes.
    let table = fs::read(path.join(".metadata")).unwrap();
    let length = [b"X\x06\0\0\0length".as_slice()].concat();
    let mut changed = Vec::new();
    let mut rest = table.as_slice();
    while let Some(at) = rest.windows(length.len()).position(|window| window == length) {
        changed.extend(&rest[..at]);
        changed.extend(
            [&text("transform_descriptors"), &list(&[text("stream.zstd")])]
                .map(|c| c.as_slice())
                .concat(),
        );
        changed.extend(&length);
        rest = &rest[at + length.len()..];
    }
    changed.extend(rest);
    put(&path.join(".metadata"), &changed);
    let file = path.join("__1_0.distcp");
    let len = fs::read(&file).unwrap().len();
    put(&file, &vec![7; len]);
    assert_eq!(verdict(&path), TRUSTED);
    put(&file, &vec![0; len]);
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["unreadable"]));
}
