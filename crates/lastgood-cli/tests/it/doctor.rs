//! `lastgood doctor` as it is called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::tool::{Ran, command};

#[test]
fn a_file_in_the_folder_that_one_is_in_needs_no_path() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
    fs::write(folder.path().join(".metadata"), b"").unwrap();
    let args = ["doctor", ".metadata", "--json"];
    let ran = Ran::from(command(&args).current_dir(folder.path()).output().unwrap()).exits(3);
    let said = &ran.json()[0];
    assert!(said["checkpoint"].as_str().unwrap().ends_with(&name), "{said}");
    assert_eq!(said["findings"][0]["kind"], "empty", "{said}");
}

/// Or the newest checkpoint would not be told of, and an older one be called the last.
#[test]
fn a_checkpoint_whose_folder_cannot_be_read_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let allow =
        |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    allow(folder.path(), 0o755);
    let newest = folder.path().join("out/checkpoint-6");
    fs::create_dir_all(&newest).unwrap();
    allow(&newest, 0);
    let out = newest.parent().unwrap().to_str().unwrap();
    let args = ["doctor", out, "--json"];
    // Who may read everything runs it as somebody else, from where that one can.
    let mut run = command(&args);
    if fs::read_dir(&newest).is_ok() {
        let binary = folder.path().join("lastgood");
        fs::copy(run.get_program(), &binary).unwrap();
        allow(&binary, 0o755);
        run = std::process::Command::new(binary);
        run.args(args).uid(65_534).gid(65_534);
    }
    let ran = Ran::from(run.output().unwrap());
    allow(&newest, 0o755);
    let said = &ran.exits(3).json()[0];
    assert!(said["checkpoint"].as_str().unwrap().ends_with("checkpoint-6"), "{said}");
    assert_eq!(
        (&said["verdict"], &said["findings"][0]["kind"]),
        (&"suspect".into(), &"not-read".into())
    );
}
