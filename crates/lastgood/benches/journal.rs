//! What a step's record costs, beside one append and sync of 4 KiB to the same file system.
//!
//! All are interleaved in one process. `durable` waits in the step until the record is synced; `behind` does not, and a
//! step of 5 ms of computing follows each, as in a training.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::disallowed_methods, reason = "the limit is the file system's own")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lastgood::journal::{JournalOptions, StepRecord, Value};
use lastgood::{Repository, Run, RunOptions};
use lastgood_store::{LocalStore, SystemEnv};

const HELP: &str =
    "cargo xtask bench journal [--steps N] [--folder DIR]   default 2000 steps of each";

/// The samples of a step.
const BATCH: u64 = 32;

fn main() {
    let Some((steps, folder)) = options() else {
        println!("{HELP}");
        return;
    };
    fs::create_dir_all(&folder).unwrap();
    let durable = open(&folder.join("durable"), true);
    let behind = open(&folder.join("behind"), false);
    let limit = OpenOptions::new().create(true).append(true).open(folder.join("limit")).unwrap();
    let (mut limits, mut waits, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for step in 1..=steps {
        limits.push(timed(|| append_and_sync(&limit)));
        waits.push(timed(|| durable.step(record(step))));
        calls.push(timed(|| behind.step(record(step))));
        compute(Duration::from_millis(5));
    }
    durable.close().unwrap();
    behind.close().unwrap();
    println!("{:<38} {:>10} {:>10} {:>10}", "ms", "median", "p90", "p99");
    let limit = show("4 KiB appended and synced (the limit)", &mut limits);
    let wait = show("a step, durable when it returns", &mut waits);
    show("a step, durable behind it", &mut calls);
    println!("durable step / limit: {:.2}", wait / limit);
    let bytes = sealed_bytes(&folder.join("durable/runs/bench/journal"));
    println!("sealed bytes a step: {:.0}", bytes as f64 / steps as f64);
    fs::remove_dir_all(&folder).unwrap();
}

fn options() -> Option<(u64, PathBuf)> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    let mut options = (2000, target.join("bench").join(format!("journal-{}", std::process::id())));
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--steps" => options.0 = args.next()?.parse().ok()?,
            "--folder" => options.1 = PathBuf::from(args.next()?).join("lastgood-bench"),
            "--bench" => {}
            _ => return None,
        }
    }
    Some((options.0, std::path::absolute(options.1).ok()?))
}

fn open(folder: &Path, wait: bool) -> Run {
    let store = LocalStore::open(folder).unwrap();
    let repository = Repository::create(Arc::new(store), Arc::new(SystemEnv::default())).unwrap();
    let journal = Some(JournalOptions { wait, ..JournalOptions::default() });
    let options = RunOptions { journal, ..RunOptions::default() };
    Run::open(&repository, &"bench".parse().unwrap(), options).unwrap()
}

/// What a training says of a step: its samples, its rate, its loss, and a digest of its generators.
fn record(step: u64) -> StepRecord {
    let samples: Vec<Value> = (0..BATCH).map(|i| Value::from(step * BATCH + i)).collect();
    StepRecord::new(step)
        .loss(1.0 / step as f32)
        .with("lr", 1e-3_f64)
        .with("rng", step.to_le_bytes().to_vec())
        .with("data", samples)
}

fn append_and_sync(mut file: &File) {
    file.write_all(&[7; 4096]).unwrap();
    file.sync_data().unwrap();
}

fn compute(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let begin = Instant::now();
    std::hint::black_box(work());
    begin.elapsed().as_secs_f64() * 1e3
}

fn show(name: &str, times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("{name:<38} {:>10.4} {:>10.4} {:>10.4}", at(0.5), at(0.9), at(0.99));
    at(0.5)
}

fn sealed_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let bytes = |entry: fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => sealed_bytes(&entry.path()),
        false => entry.metadata().unwrap().len(),
    };
    entries.map(bytes).sum()
}
