//! Files that are a row of pickles: of `torch.save` from before 1.6, and of other programs.

use std::fs;

use super::fixture::{
    call, int, legacy, legacy_pickles, list, magic, name, none, stream, tensor, text,
};
use super::{examined, put, verdict};
use crate::doctor::report::Verdict;

const FLOATS: [f32; 3] = [1.0, 2.0, 3.0];

fn whole(protocol: u8) -> Vec<u8> {
    legacy(protocol, &legacy_pickles(tensor("0", 3, &[3], &[1])), 3, &FLOATS)
}

#[test]
fn no_cut_of_an_older_file_is_trusted_whatever_its_protocol_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    for protocol in 2..=5 {
        let whole = whole(protocol);
        put(&path, &whole);
        assert_eq!(verdict(&path), (Verdict::Trusted, vec![]), "protocol {protocol}");
        for len in 0..whole.len() {
            put(&path, &whole[..len]);
            assert_ne!(verdict(&path).0, Verdict::Trusted, "protocol {protocol}, cut at {len}");
        }
    }
}

#[test]
fn an_older_file_whose_end_was_never_written_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let mut bytes = whole(2);
    let storage = bytes.len() - 12;
    bytes[storage - 8..].fill(0);
    put(&path, &bytes);
    assert_eq!(verdict(&path), (Verdict::Broken, vec!["unreadable"]));
    // The count of a machine of the other order of bytes.
    let mut bytes = whole(2);
    bytes[storage - 8..storage].reverse();
    put(&path, &bytes);
    assert_eq!(verdict(&path).0, Verdict::Trusted);
}

#[test]
fn what_stands_behind_an_older_file_is_doubted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    put(&path, &[whole(2), b"x".to_vec()].concat());
    assert_eq!(verdict(&path), (Verdict::Suspect, vec!["torn"]));
}

#[test]
fn code_in_any_pickle_of_a_file_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let system = call(name("os", "system"), &[text("true")]);
    for protocol in 2..=5 {
        for which in 0..5 {
            let mut pickles = legacy_pickles(tensor("0", 3, &[3], &[1]));
            // Before the value, and off the stack again.
            let own = if which == 0 { magic() } else { Vec::new() };
            let value = if which == 0 { magic() } else { pickles[which].clone() };
            pickles[which] = [own.as_slice(), &system, b"0", &value].concat();
            put(&path, &legacy(protocol, &pickles, 3, &FLOATS));
            let (_, kinds) = verdict(&path);
            assert!(kinds.contains(&"pickled-danger"), "pickle {which} of protocol {protocol}");
        }
    }
    // A row of pickles of another program.
    let path = folder.path().join("rows.pkl");
    put(&path, &[stream(&int(1)), stream(&list(&[none()]))].concat());
    assert_eq!(verdict(&path), (Verdict::Trusted, vec![]));
    put(&path, &[stream(&int(1)), stream(&int(2)), stream(&system)].concat());
    assert_eq!(verdict(&path), (Verdict::Suspect, vec!["pickled-danger"]));
    put(&path, &[stream(&int(1)), b"\xff\xff".to_vec()].concat());
    assert_eq!(verdict(&path), (Verdict::Suspect, vec!["not-read"]));
}

#[test]
fn a_getattr_that_something_else_could_call_is_no_member_of_an_enumeration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pkl");
    let class = name("transformers.trainer_utils", "SaveStrategy");
    for module in ["builtins", "__builtin__"] {
        let getattr = name(module, "getattr");
        put(&path, &stream(&call(getattr.clone(), &[class.clone(), text("STEPS")])));
        assert_eq!(verdict(&path), (Verdict::Trusted, vec![]), "{module}");
        // torch calls the first argument of this one.
        let rebuild = name("torch._tensor", "_rebuild_from_type_v2");
        put(&path, &stream(&call(rebuild, &[getattr, class.clone(), text("x"), none()])));
        assert_eq!(verdict(&path), (Verdict::Suspect, vec!["pickled-danger"]), "{module}");
    }
}

#[test]
fn classes_of_many_files_are_one_note() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("global_step5");
    fs::create_dir(&path).unwrap();
    let class = name("argparse", "Namespace");
    let file = super::fixture::torch(&call(class, &[]), &[0.0]);
    for rank in 0..20 {
        put(&path.join(format!("mp_rank_{rank:02}_model_states.pt")), &file);
    }
    let findings = examined(&path)[0].checkpoints[0].findings.all();
    let notes: Vec<_> = findings.iter().filter(|f| f.kind == "pickled-class").collect();
    let [note] = &notes[..] else { panic!("{notes:?}") };
    let named = ["00", "01", "02"].map(|rank| format!("mp_rank_{rank}_model_states.pt"));
    assert_eq!(note.object, format!("{} and 17 more", named.join(", ")));
    assert_eq!(note.found, "classes of a trainer: argparse.Namespace");
}
