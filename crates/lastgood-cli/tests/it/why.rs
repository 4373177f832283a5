//! What led to a tensor: over a recovery, a way back, and an attempt that was fenced.

use std::thread;
use std::time::Duration;

use lastgood::journal::{JournalOptions, StepRecord, Value};
use lastgood::restore::Selector;
use lastgood::save::Mode;
use lastgood::state::{Durability, Targets, World};
use lastgood::{Dtype, Run, RunOptions};
use serde_json::{Value as Json, json};

use crate::json::{documented, keys};
use crate::tool::{Place, on};

fn open(place: &Place, host: &str) -> Run {
    let options = RunOptions {
        world: World::ALONE,
        journal: Some(JournalOptions::default()),
        environment: [("host.name".to_owned(), host.to_owned())].into(),
        ..RunOptions::default()
    };
    Run::open(&place.repository(), &"r".parse().unwrap(), options).unwrap()
}

fn steps(run: &Run, steps: std::ops::RangeInclusive<u64>) {
    for step in steps {
        let samples = (0..4).map(|i| Value::from(4 * step + i)).collect::<Vec<_>>();
        let record = StepRecord::new(step).loss(1.0_f32).with("data", samples);
        run.step(record.with("lr", 0.5 / step as f64).with("rng", &[step as u8; 4][..]));
    }
}

/// A tensor that every step changes, and one that none does.
fn save(run: &mut Run, step: u64) {
    let (moving, frozen) = ([step as u8; 64], vec![7; 3 << 20]);
    run.save(step, Mode::Sync, |to| {
        let mut part = to.component("model", "test", Durability::Durable)?;
        part.tensor("moving.weight", Dtype::U8, &[8, 8], &moving)?;
        part.tensor("frozen.weight", Dtype::U8, &[3 << 20], &frozen)?;
        part.tied("tied.weight", "moving.weight")?;
        let mut part = to.component("optimizer", "test", Durability::Durable)?;
        part.tensor("moving.weight", Dtype::U8, &[8], &moving[..8])
    })
    .unwrap();
}

fn restore(run: &mut Run) {
    let declare = |_: &mut (), targets: &mut Targets<'_>| {
        targets.partial();
        Ok(())
    };
    run.restore(&mut (), declare).unwrap().unwrap();
}

fn go_back(run: &mut Run, step: u64) {
    let mut targets = Targets::new(World::ALONE);
    targets.partial();
    run.restore_at(&Selector::Step(step), targets).unwrap();
}

/// Puts what is recorded so far into the store, so that no later attempt finds it in an open segment.
fn seal(run: &Run) {
    let journal = run.journal().unwrap();
    journal.seal(&journal.cut()).unwrap();
}

/// Attempt 1 saves steps 5 and 6, goes back to 5, does steps 6 to 8 again and is lost. Attempt 2 goes on from
/// step 6, and saves 10, while attempt 1 goes on and does not know it.
fn history() -> Place {
    let place = Place::local();
    let mut first = open(&place, "one");
    steps(&first, 1..=5);
    save(&mut first, 5);
    first.read_external("rate", Value::from(0.25)).unwrap();
    steps(&first, 6..=7);
    go_back(&mut first, 5);
    first.read_external("rate", Value::from(0.75)).unwrap();
    steps(&first, 6..=6);
    save(&mut first, 6);
    steps(&first, 7..=8);
    seal(&first);
    thread::sleep(Duration::from_millis(5));
    let mut second = open(&place, "two");
    restore(&mut second);
    while second.journal().unwrap().recovered().is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    steps(&first, 9..=9);
    seal(&first);
    steps(&second, 7..=10);
    save(&mut second, 10);
    second.close().unwrap();
    // It was fenced; what it recorded is sealed all the same.
    drop(first.close());
    place
}

fn why(place: &Place, tensor: &str, step: &str) -> Json {
    let args = ["why", "--json", "--tensor", tensor, "--at", step];
    place.on(&args).exits(0).json().pop().unwrap()
}

#[test]
fn what_led_to_a_tensor_is_told_over_recoveries() {
    let place = history();
    let said = why(&place, "model/moving.weight", "10");
    assert_eq!(keys(&said), documented("why"));
    assert_eq!((&said["dtype"], &said["shape"]), (&"U8".into(), &json!([8, 8])));
    let checkpoint = &said["checkpoint"];
    assert_eq!((&checkpoint["step"], &checkpoint["attempt"]), (&10.into(), &2.into()));
    assert_eq!((&said["since"]["step"], &said["first_step"]), (&6.into(), &7.into()));
    let executed = json!([
        {"attempt": 2, "fate": "led", "steps": [[7, 10]]},
        {"attempt": 1, "fate": "rewound", "steps": [[7, 7]]},
        {"attempt": 1, "fate": "overtaken", "steps": [[7, 8]]},
        {"attempt": 1, "fate": "fenced", "steps": [[9, 9]]},
    ]);
    assert_eq!(said["executed"], executed);
    let samples = &said["inputs"][0]["samples"];
    assert_eq!((&samples["count"], &samples["ranges"]), (&16.into(), &json!([[28, 43]])));
    let rates = said["lr"][0]["values"].as_array().unwrap();
    assert_eq!((rates.len(), &rates[3]), (4, &json!({"steps": [10, 10], "lr": 0.05})));
    let generators = json!([{"rank": 0, "from": "06060606", "to": "0a0a0a0a"}]);
    assert_eq!(said["generators"], generators);
    let digest = &said["digest"];
    assert_eq!(
        (&digest["step"], &digest["since"], &digest["states"]),
        (&10.into(), &10.into(), &3.into())
    );
    assert_eq!(digest["before"]["step"], 6);
    let hosts = said["attempts"].as_array().unwrap().iter().map(|a| &a["processes"][0]["host"]);
    assert_eq!(hosts.collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(said["parts"][0]["host"], "two");
}

#[test]
fn what_was_read_on_the_way_counts_and_what_was_rewound_does_not() {
    let place = history();
    let said = why(&place, "model/moving.weight", "6");
    let reads = said["events"].as_array().unwrap().iter();
    let reads = reads.filter(|event| event["kind"] == "external.read");
    let reads: Vec<&Json> = reads.map(|event| &event["event"]["value"]).collect();
    assert_eq!(reads, [&json!(0.75)]);
    let fates = said["executed"].as_array().unwrap().iter();
    let fates: Vec<_> = fates.map(|e| (e["fate"].clone(), e["steps"].clone())).collect();
    assert_eq!(fates, [("led".into(), json!([[6, 6]])), ("rewound".into(), json!([[6, 6]]))]);
}

#[test]
fn bytes_that_did_not_change_are_those_of_an_earlier_save() {
    let place = history();
    let said = why(&place, "frozen.weight", "10");
    let pack = &said["parts"][0]["packs"][0];
    assert_eq!((&pack["reused"], &pack["written_by"]["step"]), (&true.into(), &5.into()));
    assert_eq!(pack["written_by"]["attempt"], 1);
    assert_eq!(said["digest"]["before"], Json::Null);
    assert_eq!((&said["digest"]["first"], &said["digest"]["states"]), (&5.into(), &3.into()));
    let tied = why(&place, "tied.weight", "10");
    assert_eq!(tied["tied_to"], "moving.weight");
    assert_eq!(tied["parts"], why(&place, "model/moving.weight", "10")["parts"]);
}

#[test]
fn a_step_between_checkpoints_stands_on_the_one_before() {
    let place = history();
    let said = why(&place, "frozen.weight", "8");
    assert_eq!((&said["checkpoint"]["step"], &said["first_step"]), (&6.into(), &7.into()));
    let text = ["why", "--tensor", "frozen.weight", "--at", "8"];
    let text = place.on(&text).exits(0).out;
    for line in [
        "tensor      model/frozen.weight: U8 of [3145728]",
        "and what steps 7 to 8 made of it",
        "attempt 2 did steps 7 to 8: led here",
        "attempt 1 did steps 7 to 8: overtaken: a later attempt went on",
        "digest      ",
        "host.name = one",
        "reused, as rank 0 wrote it at step 5 of attempt 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let early = why(&place, "frozen.weight", "3");
    assert_eq!((&early["checkpoint"], &early["parts"]), (&Json::Null, &json!([])));
    assert_eq!((&early["since"], &early["digest"]), (&Json::Null, &Json::Null));
    assert_eq!(early["first_step"], 1);
}

#[test]
fn what_is_not_there_is_told_with_what_is() {
    let place = history();
    let fails = |tensor: &str, step: &str, code: i32| {
        place.on(&["why", "--tensor", tensor, "--at", step]).exits(code).err
    };
    let unknown = fails("frozn.weight", "10", 4);
    assert!(unknown.contains("the nearest names are model/frozen.weight"), "{unknown}");
    let several = fails("moving.weight", "10", 2);
    assert!(several.contains("model/moving.weight, optimizer/moving.weight"), "{several}");
    let late = fails("frozen.weight", "99", 4);
    assert!(late.contains("nothing is recorded of step 99"), "{late}");
    assert!(late.contains("steps 1 to 10; the nearest checkpoint is of step 10"), "{late}");
    fails("frozen.weight", "-1", 2);
}

/// Of several ranks, each stores a part, and a logical rank finds its own.
#[test]
fn ranks_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on(folder, &["demo", "--kills", "1", "--seed", "3", "--steps", "20"]).exits(0);
    let shown = on(folder, &["show", "--run", "demo", "--tensors", "--json"]).exits(0).json();
    let optimizer = shown[0]["components"].as_array().unwrap().iter();
    let optimizer = optimizer.clone().find(|c| c["name"] == "optimizer").unwrap();
    let name = optimizer["tensor_list"][0]["name"].as_str().unwrap();
    let tensor = format!("optimizer/{name}");
    let why = |more: &[&str]| {
        let args = ["why", "--run", "demo", "--json", "--tensor", &tensor, "--at", "20"];
        on(folder, &[&args, more].concat()).exits(0).json().pop().unwrap()
    };
    let all = why(&[]);
    let ranks = |said: &Json, of: &str| {
        let of = said[of].as_array().unwrap().iter();
        of.map(|one| one["rank"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((ranks(&all, "parts"), ranks(&all, "inputs")), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
    let rows = all["parts"].as_array().unwrap().iter();
    let rows: u64 = rows.map(|part| part["sizes"][0].as_u64().unwrap()).sum();
    assert_eq!(rows, all["shape"][0].as_u64().unwrap());
    let one = why(&["--rank", "2"]);
    assert_eq!((ranks(&one, "parts"), ranks(&one, "inputs")), (vec![2], vec![2]));
    assert_eq!(one["executed"][0]["fate"], "led");
    let environment = &one["attempts"][0]["processes"][0]["environment"];
    assert!(environment["code.configuration"].is_string(), "{environment}");
}
