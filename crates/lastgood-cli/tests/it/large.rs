//! A journal of many events is listed, filtered, counted and queried in the memory that a small one needs.
//!
//! With `LASTGOOD_SLOW=1` these are 10,000,000 events:
//! `LASTGOOD_SLOW=1 cargo test --release -p lastgood-cli --test it many_events -- --nocapture`

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lastgood::RunName;
use lastgood::attempt::{self, NewAttempt};
use lastgood::journal::lanes::{self, Event, Lanes};
use lastgood::journal::{Kind, Lane, Value};
use lastgood_format::journal::segment;
use lastgood_format::journal::tail::Owner;
use serde_json::Value as Json;

use crate::tool::Place;

const MIB: u64 = 1 << 20;

/// Less than the events have bytes, which are about 80 MB of a few, and 1.6 GB of many.
const BOUND: u64 = 72 * MIB;

/// The logical ranks of the run.
const RANKS: u32 = 4;

/// How many events, and about how many bytes each says.
fn size() -> (u64, usize) {
    match std::env::var("LASTGOOD_SLOW").is_ok_and(|slow| slow == "1") {
        true => (10_000_000, 40),
        false => (20_000, 4 << 10),
    }
}

/// Writes `events` steps, every hundredth followed by a note, into the journal of run `r`.
fn write(place: &Place, events: u64, bytes: usize) {
    let repository = place.repository();
    let run: RunName = "r".parse().unwrap();
    let mut ledger = repository.ledger(&run).unwrap();
    let new = NewAttempt { world_size: 1, from: None, incarnation: "large".into() };
    let attempt = repository.block_on(attempt::start(&mut ledger, "test", &new)).unwrap();
    let owner = Owner { repository: repository.id().to_owned(), run, attempt: attempt.number };
    let ranks: Vec<Lane> = (0..RANKS).filter_map(Lane::of_rank).collect();
    let mut lanes = Lanes::new(owner, ranks.iter().copied());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let seal = |lanes: &mut Lanes| {
        for piece in lanes.to_seal(&lanes.cut()) {
            let sealed = lanes::seal(repository.store().as_ref(), lanes.owner(), &piece);
            repository.block_on(sealed).unwrap();
            lanes.sealed(piece.lane, piece.end);
        }
    };
    for i in 0..events {
        let (step, lane) = (i / u64::from(RANKS) + 1, ranks[(i % u64::from(RANKS)) as usize]);
        let (kind, value) = match i % 100 {
            99 => (Kind::EVENT, Value::map([("kind", "note".into()), ("data", i.into())])),
            _ => (Kind::STEP, step_value(i, bytes)),
        };
        lanes.append(&Event { lane, kind, step, value }, now).unwrap();
        if lanes.open_bytes() >= segment::FRAMES_BYTES * ranks.len() {
            seal(&mut lanes);
        }
    }
    seal(&mut lanes);
}

fn step_value(i: u64, bytes: usize) -> Value {
    let data = vec![i as u8; bytes.saturating_sub(32)];
    Value::map([("loss", (1.0 / (i + 1) as f32).into()), ("data", data.into())])
}

/// What a command took.
struct Took {
    peak: u64,
    time: Duration,
    lines: Vec<String>,
}

/// Runs the command to its end, and looks at its peak of memory as the kernel counts it.
fn run(place: &Place, args: &[&str]) -> Took {
    let out = place.folder().join("out");
    let mut command = place.command(args);
    command.stdout(File::create(&out).unwrap()).stderr(Stdio::piped());
    let begin = Instant::now();
    let mut child = command.spawn().unwrap();
    let peak = watch(&mut child);
    let ended = child.wait_with_output().unwrap();
    let time = begin.elapsed();
    assert!(ended.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ended.stderr));
    let lines = BufReader::new(File::open(&out).unwrap()).lines();
    let lines = lines.take(1_000_000).collect::<Result<_, _>>().unwrap();
    Took { peak, time, lines }
}

/// The peak that was last seen before the end; it only grows.
fn watch(child: &mut Child) -> u64 {
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        peak = resident(&status).unwrap_or(0).max(peak);
        thread::sleep(Duration::from_millis(2));
    }
    peak
}

fn resident(status: &Path) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[test]
fn many_events_are_listed_filtered_counted_and_queried_in_bounded_memory() {
    let place = Place::local();
    let (events, bytes) = size();
    let begin = Instant::now();
    write(&place, events, bytes);
    println!("{events} events written in {:?}", begin.elapsed());
    let check = |what: &str, args: &[&str]| {
        let took = run(&place, args);
        let Took { peak, time, lines } = took;
        println!("{what}: {time:.1?}, {} MiB", peak / MIB);
        assert!(peak > MIB, "{what}: no peak was seen");
        assert!(peak <= BOUND, "{what}: {} MiB, allowed {}", peak / MIB, BOUND / MIB);
        lines
    };
    let notes = events / 100;
    let counted = check("log --journal --count", &["log", "--journal", "--count", "--json"]);
    let counted: Vec<Json> = counted.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    let counted = counted.iter().map(|row| row["events"].as_u64().unwrap());
    assert_eq!(counted.collect::<Vec<_>>(), [notes, events - notes]);
    let listed = ["log", "--journal", "--kind", "event", "--json"];
    let listed = check("log --journal --kind event", &listed);
    assert_eq!(listed.len() as u64, notes);
    let last = events / u64::from(RANKS);
    let few = format!("{}..{last}", last - 4);
    let few = ["log", "--journal", "--steps", &few, "--rank", "1"];
    assert_eq!(check("log --journal --steps --rank", &few).len(), 6, "a head, and five steps");
    let sql = "select kind, count(*) as n, min(loss) as least from events group by kind order by n";
    let rows = check("events, by kind", &["events", "--sql", sql, "--json"]);
    let rows: Vec<Json> = rows.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&rows[0]["n"], &rows[1]["n"]), (&notes.into(), &(events - notes).into()));
    let least = 1.0 / (events - 1) as f32;
    assert_eq!(rows[1]["least"], f64::from(least));
    let sql = "select step, sum(length(event)) as letters from events group by step order by letters desc, \
               step desc limit 3";
    let rows = check("events, sorted by what they say", &["events", "--sql", sql, "--json"]);
    assert_eq!(rows.len(), 3);
    let to = place.folder().join("large.db").display().to_string();
    check("events --export", &["events", "--export", &to]);
    let exported = fs::metadata(&to).unwrap().len();
    println!("the export has {} MiB", exported / MIB);
    assert!(exported > events * bytes as u64 / 2);
}
