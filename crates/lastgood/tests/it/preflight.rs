//! Restores that would compute otherwise are refused, unless someone accepts the difference on the record.
#![expect(clippy::disallowed_methods, reason = "these tests damage the files of a store by hand")]

use std::fs;
use std::path::{Path, PathBuf};

use lastgood::journal::JournalOptions;
use lastgood::ledger::Standing;
use lastgood::preflight::objects::Depth;
use lastgood::preflight::{
    Acceptance, Asker, Compared, Environment, Mode, Needs, PreflightOptions, Report, Verdict,
};
use lastgood::restore::{Restored, Selector};
use lastgood::save::Mode as SaveMode;
use lastgood::state::World;
use lastgood::{Error, ErrorKind, Repository, Result, Run, RunOptions};

use crate::fixture::{
    bytes, capture_bytes, in_folder, options, read_bytes, restore_bytes, run_name,
};

const LENGTH: usize = 200_000;

fn environment(torch: &str) -> Environment {
    [("package.torch", torch), ("package.torch.major", &torch[..1]), ("host.name", "a")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn start(repository: &Repository, environment: Environment, preflight: PreflightOptions) -> Run {
    let incarnation = format!("{:x}", repository.env().random());
    let options = RunOptions {
        journal: Some(JournalOptions { wait: true, ..JournalOptions::default() }),
        environment,
        preflight,
        ..options(World::ALONE, &incarnation)
    };
    Run::open(repository, &run_name(), options).unwrap()
}

fn save(run: &mut Run, step: u64) {
    let data = bytes(step, LENGTH);
    run.save(step, SaveMode::Sync, |c| capture_bytes(c, &data)).unwrap();
}

fn saved(environment: Environment) -> (tempfile::TempDir, Repository) {
    let (folder, repository) = in_folder();
    let mut run = start(&repository, environment, PreflightOptions::default());
    for step in [1, 2] {
        save(&mut run, step);
    }
    run.close().unwrap();
    (folder, repository)
}

/// Restores as a process of its own.
fn restore(
    repository: &Repository,
    environment: Environment,
    preflight: PreflightOptions,
) -> Result<Restored> {
    let mut run = start(repository, environment, preflight);
    let restored = restore_bytes(&mut run, LENGTH).map(|restored| {
        let (restored, data) = restored.unwrap();
        assert!(data == bytes(restored.step, LENGTH));
        restored
    });
    run.close().unwrap();
    restored
}

fn accept(keys: &[&str], always: bool) -> PreflightOptions {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    let accept = Acceptance { keys, reason: "a new image".into(), always };
    PreflightOptions { mode: Mode::Refuse, accept }
}

fn mode(mode: Mode) -> PreflightOptions {
    PreflightOptions { mode, ..PreflightOptions::default() }
}

fn refused(result: Result<Restored>) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    error
}

/// How often the ledger says that something was accepted.
fn on_record(repository: &Repository) -> usize {
    repository.existing(&run_name()).unwrap().history().accepted().len()
}

#[test]
fn the_same_environment_passes_without_a_word() {
    let (_folder, repository) = saved(environment("2.11"));
    let restored = restore(&repository, environment("2.11"), PreflightOptions::default()).unwrap();
    assert_eq!((restored.step, restored.notices), (2, vec![]));
    // Another host computes alike.
    let mut other = environment("2.11");
    other.insert("host.name".into(), "b".into());
    let restored = restore(&repository, other, PreflightOptions::default()).unwrap();
    assert_eq!((restored.step, restored.notices), (2, vec![]));
}

#[test]
fn another_environment_is_refused_until_it_is_accepted() {
    let (_folder, repository) = saved(environment("2.11"));
    for _ in 0..2 {
        let error = refused(restore(&repository, environment("2.12"), mode(Mode::Refuse)));
        let text = error.to_string();
        assert!(text.contains("package.torch was 2.11, is 2.12 (numerics)"), "{text}");
        assert!(text.contains("--accept package. --reason"), "{text}");
        assert!(!text.contains("host.name") && !text.contains("major"), "{text}");
        assert_eq!(on_record(&repository), 0);
    }
    // Another key does not help.
    refused(restore(&repository, environment("2.12"), accept(&["torch."], false)));
    assert_eq!(on_record(&repository), 0);
    let restored = restore(&repository, environment("2.12"), accept(&["package."], false)).unwrap();
    assert_eq!((restored.step, restored.notices), (2, vec![]));
    assert_eq!(on_record(&repository), 1);
    // It is on record: whoever starts next needs no word, and writes none.
    restore(&repository, environment("2.12"), mode(Mode::Refuse)).unwrap();
    restore(&repository, environment("2.12"), accept(&["package."], false)).unwrap();
    assert_eq!(on_record(&repository), 1);
    // Nor does another key say again what the ledger has.
    restore(&repository, environment("2.12"), accept(&["package.torch", "memory"], false)).unwrap();
    assert_eq!(on_record(&repository), 1);
    // Of these two versions alone.
    let error = refused(restore(&repository, environment("3.0"), mode(Mode::Refuse)));
    assert!(error.to_string().contains("package.torch.major was 2, is 3 (safety)"), "{error}");
    // And for good, if that is said.
    restore(&repository, environment("3.0"), accept(&["package."], true)).unwrap();
    restore(&repository, environment("4.0"), mode(Mode::Refuse)).unwrap();
}

#[test]
fn who_goes_on_is_the_measure_from_then_on() {
    let (_folder, repository) = saved(environment("2.11"));
    let mut run = start(&repository, environment("2.12"), accept(&["package.torch"], false));
    restore_bytes(&mut run, LENGTH).unwrap().unwrap();
    save(&mut run, 3);
    run.close().unwrap();
    restore(&repository, environment("2.12"), mode(Mode::Refuse)).unwrap();
    refused(restore(&repository, environment("2.11"), mode(Mode::Refuse)));
}

#[test]
fn a_warning_goes_on_and_off_says_nothing() {
    let (_folder, repository) = saved(environment("2.11"));
    let restored = restore(&repository, environment("2.12"), mode(Mode::Warn)).unwrap();
    let [notice] = &restored.notices[..] else { panic!("{:?}", restored.notices) };
    assert!(notice.contains("package.torch was 2.11, is 2.12"), "{notice}");
    let restored = restore(&repository, environment("2.12"), mode(Mode::Off)).unwrap();
    assert_eq!(restored.notices, Vec::<String>::new());
    // Rust programs that give no environment are compared with nothing.
    let restored = restore(&repository, Environment::new(), mode(Mode::Refuse)).unwrap();
    assert_eq!(restored.notices, Vec::<String>::new());
}

fn files(folder: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, part));
        } else if path.to_str().unwrap().contains(part) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_missing_or_short_pack_is_found_before_a_byte_is_read() {
    for missing in [true, false] {
        let (folder, repository) = saved(environment("2.11"));
        let pack = files(folder.path(), "packs/").pop().unwrap();
        match missing {
            true => fs::remove_file(&pack).unwrap(),
            false => {
                let stored = fs::read(&pack).unwrap();
                fs::remove_file(&pack).unwrap();
                fs::write(&pack, &stored[..stored.len() - 1]).unwrap();
            }
        }
        let ledger = repository.existing(&run_name()).unwrap();
        let newest = ledger.history().checkpoints().last().unwrap().id;
        let contents = repository.contents(&ledger, &newest).unwrap();
        let error = repository.check_objects(&contents, Depth::Size, &|_, _| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let mut run = start(&repository, environment("2.11"), mode(Mode::Refuse));
        let error = run.preflight(&contents, &Needs::default()).unwrap_err();
        assert!(error.to_string().contains("/packs/"), "{error}");
        // And the restore goes back by itself.
        let (restored, data) = restore_bytes(&mut run, LENGTH).unwrap().unwrap();
        assert_eq!(restored.step, 1);
        assert!(data == bytes(1, LENGTH));
        let standing = run.history().checkpoint(&newest).unwrap().standing;
        assert_eq!(standing, Standing::Bad);
        run.close().unwrap();
    }
}

#[test]
fn samples_and_full_reads_find_a_flipped_bit_that_sizes_do_not() {
    let (folder, repository) = saved(environment("2.11"));
    let ledger = repository.existing(&run_name()).unwrap();
    let newest = ledger.history().checkpoints().last().unwrap().id;
    let contents = repository.contents(&ledger, &newest).unwrap();
    let found = repository.check_objects(&contents, Depth::Sample, &|_, _| ()).unwrap();
    assert_eq!((found.packs, found.read), (1, found.bytes));
    assert!(found.estimate(found.bytes * 10).unwrap() >= found.took * 9);
    let pack = files(folder.path(), "packs/").pop().unwrap();
    let mut stored = fs::read(&pack).unwrap();
    stored[1000] ^= 1;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, stored).unwrap();
    repository.check_objects(&contents, Depth::Size, &|_, _| ()).unwrap();
    for depth in [Depth::Sample, Depth::Full] {
        let error = repository.check_objects(&contents, depth, &|_, _| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn a_lost_record_is_a_difference_and_a_missing_one_none() {
    let (folder, repository) = saved(environment("2.11"));
    for segment in files(folder.path(), "/journal/") {
        fs::remove_file(segment).unwrap();
    }
    // The hash says that it is the same, without the journal.
    restore(&repository, environment("2.11"), mode(Mode::Refuse)).unwrap();
    let error = refused(restore(&repository, environment("2.12"), mode(Mode::Refuse)));
    assert!(error.to_string().contains("environment was another one"), "{error}");
    restore(&repository, environment("2.12"), accept(&["environment"], false)).unwrap();
    // Who recorded nothing is compared with nobody.
    let (_folder, repository) = saved(Environment::new());
    let mut run = start(&repository, environment("2.12"), mode(Mode::Refuse));
    let contents = run.find(&Selector::LastGood).unwrap();
    let report = run.preflight(&contents, &Needs::default()).unwrap();
    assert_eq!((report.environment, report.verdict()), (Compared::NotRecorded, Verdict::Passed));
    run.close().unwrap();
}

#[test]
fn memory_that_is_not_there_is_refused_and_recorded() {
    let (_folder, repository) = saved(environment("2.11"));
    let mut run = start(&repository, environment("2.11"), mode(Mode::Refuse));
    let contents = run.find(&Selector::LastGood).unwrap();
    let needs = Needs {
        bytes: 1,
        memory: u64::MAX,
        problems: vec!["m/x is missing".into()],
        ..Needs::default()
    };
    let error = run.preflight(&contents, &needs).unwrap_err();
    assert!(error.to_string().contains("--accept memory"), "{error}");
    run.close().unwrap();
    let attempt = repository.existing(&run_name()).unwrap().history().newest_attempt();
    let reports = repository.preflights(&run_name(), attempt).unwrap();
    let [(lane, report)] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((lane.rank(), report.verdict()), (Some(0), Verdict::Refused));
    assert_eq!(report.problems, ["m/x is missing"]);
    assert_eq!((report.findings[0].key.as_str(), report.memory_needed), ("memory", u64::MAX));
    assert_eq!(Report::of_value(&report.to_value()).as_ref(), Some(report));
    // Of the moment: whatever the numbers are.
    let mut run = start(&repository, environment("2.11"), accept(&["memory"], false));
    let contents = run.find(&Selector::LastGood).unwrap();
    let needs = Needs { memory: u64::MAX - 1, ..Needs::default() };
    assert_eq!(run.preflight(&contents, &needs).unwrap().verdict(), Verdict::Accepted);
    run.close().unwrap();
    assert_eq!(on_record(&repository), 1);
    read_bytes(&repository, &Selector::LastGood, LENGTH).unwrap();
}

#[test]
fn who_accepts_says_why() {
    let (_folder, repository) = saved(environment("2.11"));
    let keys = ["code.".to_owned()].into();
    let accept = Acceptance { keys, reason: " ".into(), always: false };
    let preflight = PreflightOptions { accept, ..PreflightOptions::default() };
    let options = RunOptions { preflight, ..options(World::ALONE, "x") };
    let error = Run::open(&repository, &run_name(), options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(Acceptance::decode("[]").unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_process_that_is_no_rank_asks_the_same() {
    let (_folder, repository) = saved(environment("2.11"));
    let mut ledger = repository.existing(&run_name()).unwrap();
    let newest = ledger.history().checkpoints().last().unwrap().id;
    let contents = repository.contents(&ledger, &newest).unwrap();
    let other = environment("2.12");
    let attempt = ledger.history().newest_attempt();
    let mut ask = |options: &PreflightOptions| {
        let world = World::ALONE;
        let asker = Asker { world, environment: &other, options };
        let looked = repository.look(&ledger, &contents, &asker, &Needs::default()).unwrap();
        let asked = repository.preflight(&mut ledger, &contents, &asker, &Needs::default());
        (looked, asked)
    };
    let (looked, refused) = ask(&mode(Mode::Refuse));
    assert_eq!((looked.environment, looked.verdict()), (Compared::Differs, Verdict::Refused));
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("package.torch was 2.11, is 2.12"), "{error}");
    assert_eq!(ask(&mode(Mode::Warn)).1.unwrap().verdict(), Verdict::Refused);
    assert_eq!(ask(&mode(Mode::Off)).1.unwrap().environment, Compared::NotGiven);
    assert_eq!(on_record(&repository), 0);
    let (_, accepted) = ask(&accept(&["package."], false));
    assert_eq!(accepted.unwrap().verdict(), Verdict::Accepted);
    assert_eq!(on_record(&repository), 1);
    assert_eq!(ask(&mode(Mode::Refuse)).1.unwrap().verdict(), Verdict::Accepted);
    let history = repository.existing(&run_name()).unwrap();
    assert_eq!(history.history().newest_attempt(), attempt, "nobody is fenced");
}

#[test]
fn who_verifies_every_object_finds_out_by_itself_what_is_missing() {
    let (folder, repository) = saved(environment("2.11"));
    fs::remove_file(files(folder.path(), "packs/").pop().unwrap()).unwrap();
    let mut run = start(&repository, environment("2.11"), mode(Mode::Refuse));
    let contents = run.find(&Selector::LastGood).unwrap();
    let needs = Needs { verifies: true, ..Needs::default() };
    assert_eq!(run.preflight(&contents, &needs).unwrap().verdict(), Verdict::Passed);
    let error = run.preflight(&contents, &Needs::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    run.close().unwrap();
}
