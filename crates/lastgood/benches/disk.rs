//! A save and a restore on a local disk, beside the plainest write and read of the same bytes.
//!
//! All four are interleaved in one process, so that a noisy machine is as noisy for each. Every save is of
//! fresh random bytes: nothing is deduplicated and nothing is compressed. A read is `cold` after the
//! page cache was told to forget the files, and `hot` right after.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::disallowed_methods, reason = "the plain peer uses the file system directly")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lastgood::save::Mode;
use lastgood::state::{Capture, Durability, Targets, World};
use lastgood::{Dtype, Hash, Repository, Result, Run, RunName, RunOptions};
use lastgood_store::{Env, LocalStore, SystemEnv};
use serde_json::json;

const HELP: &str = "\
cargo xtask bench disk [--bytes N] [--tensor N] [--reps N] [--folder DIR] [--json FILE]

  --bytes N      the size of the state; default 1500000000
  --tensor N     the bytes of each of its tensors; default 104857600
  --reps N       how often everything is measured; default 5
  --folder DIR   where to write; default a folder below target/bench
  --json FILE    also write the figures here; default target/bench/disk.json";

struct Options {
    bytes: usize,
    tensor_bytes: usize,
    reps: usize,
    folder: PathBuf,
    json: PathBuf,
}

fn main() {
    let Some(options) = options() else {
        println!("{HELP}");
        return;
    };
    fs::create_dir_all(&options.folder).unwrap();
    let bench = Bench::new(&options);
    let figures = bench.run();
    fs::remove_dir_all(&options.folder).unwrap();
    report(&options, &figures);
}

/// `None` to ask for help. What cargo itself passes on is ignored.
fn options() -> Option<Options> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    let mut options = Options {
        bytes: 1_500_000_000,
        tensor_bytes: 100 << 20,
        reps: 5,
        folder: target.join("bench").join(format!("disk-{}", std::process::id())),
        json: target.join("bench/disk.json"),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bytes" => options.bytes = args.next()?.parse().ok()?,
            "--tensor" => options.tensor_bytes = args.next()?.parse().ok()?,
            "--reps" => options.reps = args.next()?.parse().ok()?,
            "--folder" => options.folder = PathBuf::from(args.next()?).join("lastgood-bench"),
            "--json" => options.json = args.next()?.into(),
            "--bench" => {}
            _ => return None,
        }
    }
    (options.reps > 0 && options.bytes > 0 && options.tensor_bytes > 0).then_some(options)
}

/// One measurement, in seconds.
#[derive(Clone, Copy, Default)]
struct Taken {
    wall: f64,
    /// Of this process: what the kernel does in threads of its own is not in it.
    cpu: f64,
}

/// Every repetition.
#[derive(Default)]
struct Figures {
    write: Vec<Taken>,
    save: Vec<Taken>,
    capture: Vec<Taken>,
    read_cold: Vec<Taken>,
    restore_cold: Vec<Taken>,
    read_hot: Vec<Taken>,
    hash: Vec<Taken>,
    restore_hot: Vec<Taken>,
}

struct Bench<'o> {
    options: &'o Options,
    env: SystemEnv,
}

impl<'o> Bench<'o> {
    fn new(options: &'o Options) -> Self {
        Self { options, env: SystemEnv::default() }
    }

    fn run(&self) -> Figures {
        let mut figures = Figures::default();
        let mut state = State::new(self.options);
        let mut target = State::new(self.options);
        let store = self.options.folder.join("store");
        let repository = Repository::create(
            Arc::new(
                LocalStore::open(fs::canonicalize(&self.options.folder).unwrap().join("store"))
                    .unwrap(),
            ),
            Arc::new(SystemEnv::default()),
        )
        .unwrap();
        let name: RunName = "bench".parse().unwrap();
        let mut run = Run::open(&repository, &name, RunOptions::default()).unwrap();
        // The first save makes the arena, and the first write warms up the disk: neither counts.
        for rep in 0..=self.options.reps {
            state.fill(rep as u64 + 1);
            let plain = self.options.folder.join("plain");
            // Whoever comes second finds a fuller page cache, so they take turns.
            let (mut write, mut save, mut capture) = Default::default();
            for is_plain in [rep % 2 == 0, rep % 2 != 0] {
                if is_plain {
                    write = self.time(|| write_plain(&plain, &state));
                } else {
                    (save, capture) = self.save(&mut run, rep as u64, &state);
                }
                let _ = std::process::Command::new("sync").status();
            }
            self.forget();
            let read_cold = self.time(|| read_plain(&plain, &mut target));
            self.forget();
            let restore_cold = self.time(|| restore(&repository, &name, &mut target));
            assert!(target == state, "the restored bytes differ");
            // What is read cold need not be in the page cache then.
            read_plain(&plain, &mut target);
            let read_hot = self.time(|| read_plain(&plain, &mut target));
            let hash = self.time(|| hash(&target));
            warm(&store);
            let restore_hot = self.time(|| restore(&repository, &name, &mut target));
            fs::remove_file(&plain).unwrap();
            self.delete_packs(&store, rep);
            if rep > 0 {
                figures.write.push(write);
                figures.save.push(save);
                figures.capture.push(capture);
                figures.read_cold.push(read_cold);
                figures.restore_cold.push(restore_cold);
                figures.read_hot.push(read_hot);
                figures.hash.push(hash);
                figures.restore_hot.push(restore_hot);
            }
        }
        run.close().unwrap();
        figures
    }

    /// A durable save: in all, and the part of it inside the call.
    fn save(&self, run: &mut Run, step: u64, state: &State) -> (Taken, Taken) {
        let (mut handle, mut capture) = (None, Taken::default());
        let save = self.time(|| {
            capture = self.time(|| {
                handle = Some(run.save(step, Mode::Async, |c| state.capture(c)).unwrap());
            });
            handle.take().unwrap().wait().unwrap();
        });
        (save, capture)
    }

    fn time(&self, work: impl FnOnce()) -> Taken {
        let (begin, cpu) = (self.env.elapsed(), cpu_seconds());
        work();
        Taken { wall: (self.env.elapsed() - begin).as_secs_f64(), cpu: cpu_seconds() - cpu }
    }

    /// Makes the page cache forget every file: all of it as root, else nothing, which is said.
    fn forget(&self) {
        // Dirty pages cannot be forgotten.
        let _ = std::process::Command::new("sync").status();
        if fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
            println!("not root: what is called cold is hot");
        }
    }

    /// Old checkpoints are not part of the measurement, and the disk must not fill up.
    fn delete_packs(&self, store: &Path, rep: usize) {
        let packs = store.join("runs/bench/packs");
        for attempt in fs::read_dir(&packs).unwrap() {
            let step = attempt.unwrap().path().join(format!("{rep:012}"));
            let _ = fs::remove_dir_all(step);
        }
    }
}

#[derive(PartialEq)]
struct State {
    tensors: Vec<Vec<u8>>,
}

impl State {
    fn new(options: &Options) -> Self {
        let Options { bytes, tensor_bytes, .. } = *options;
        let sizes = (0..bytes).step_by(tensor_bytes).map(|at| tensor_bytes.min(bytes - at));
        Self { tensors: sizes.map(|size| vec![1; size]).collect() }
    }

    fn fill(&mut self, seed: u64) {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for tensor in &mut self.tensors {
            for word in tensor.chunks_mut(8) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                word.copy_from_slice(&x.to_le_bytes()[..word.len()]);
            }
        }
    }

    fn capture<'a>(&'a self, capture: &mut Capture<'a>) -> Result<()> {
        let mut model = capture.component("model", "bench", Durability::Durable)?;
        for (i, tensor) in self.tensors.iter().enumerate() {
            let shape = [tensor.len() as u64];
            model.tensor(&format!("{i}"), Dtype::U8, &shape, tensor)?;
        }
        Ok(())
    }

    fn targets<'a>(&'a mut self, targets: &mut Targets<'a>) -> Result<()> {
        let mut model = targets.component("model", "bench", Durability::Durable)?;
        for (i, tensor) in self.tensors.iter_mut().enumerate() {
            let shape = [tensor.len() as u64];
            model.tensor(&format!("{i}"), Dtype::U8, &shape, tensor)?;
        }
        Ok(())
    }
}

/// One file, written tensor by tensor and synced: the data only, not even its folder.
fn write_plain(path: &Path, state: &State) {
    let mut file = File::create(path).unwrap();
    for tensor in &state.tensors {
        file.write_all(tensor).unwrap();
    }
    file.sync_all().unwrap();
}

/// The file into memory that was touched before, checked by nothing.
fn read_plain(path: &Path, target: &mut State) {
    let mut file = File::open(path).unwrap();
    for tensor in &mut target.tensors {
        file.read_exact(tensor).unwrap();
    }
}

/// BLAKE3 of the state on all cores: what nothing that is verified can be faster than.
fn hash(state: &State) {
    let chunks: Vec<&[u8]> =
        state.tensors.iter().flat_map(|tensor| tensor.chunks(1 << 20)).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for part in chunks.chunks(chunks.len().div_ceil(cores)) {
            scope.spawn(move || {
                for chunk in part {
                    std::hint::black_box(Hash::of(chunk));
                }
            });
        }
    });
}

/// Reads every file below `folder` into the page cache.
fn warm(folder: &Path) {
    let mut piece = vec![0; 1 << 20];
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            warm(&entry.path());
        } else {
            let mut file = File::open(entry.path()).unwrap();
            while file.read(&mut piece).unwrap() > 0 {}
        }
    }
}

fn restore(repository: &Repository, name: &RunName, target: &mut State) {
    let ledger = repository.existing(name).unwrap();
    let id = lastgood::restore::choose(ledger.history()).unwrap().id;
    let contents = repository.contents(&ledger, &id).unwrap();
    let mut targets = Targets::new(World::ALONE);
    target.targets(&mut targets).unwrap();
    repository.restore(&contents, targets).unwrap();
}

/// User and system time of this process; the kernel counts hundredths.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let fields = after_name.split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

/// Lowest, median and highest.
fn spread(seconds: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut sorted: Vec<f64> = seconds.collect();
    sorted.sort_by(f64::total_cmp);
    (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
}

fn wall(taken: &[Taken]) -> (f64, f64, f64) {
    spread(taken.iter().map(|taken| taken.wall))
}

fn report(options: &Options, figures: &Figures) {
    let gigabytes = options.bytes as f64 / 1e9;
    println!("\n{:.2} GB of random bytes, {} repetitions, interleaved", gigabytes, options.reps);
    println!(
        "{:<22} {:>9} {:>9} {:>9} {:>7} {:>7}  ratio to plain",
        "", "median s", "min", "max", "cpu s", "GB/s"
    );
    let rows = [
        ("write + fsync", &figures.write, None),
        ("save, durable", &figures.save, Some(&figures.write)),
        ("  of which in the call", &figures.capture, None),
        ("read, cold", &figures.read_cold, None),
        ("restore, cold", &figures.restore_cold, Some(&figures.read_cold)),
        ("read, hot", &figures.read_hot, None),
        ("BLAKE3, all cores", &figures.hash, None),
        ("restore, hot", &figures.restore_hot, Some(&figures.read_hot)),
    ];
    let mut data = Vec::new();
    for (name, taken, plain) in rows {
        let (min, median, max) = wall(taken);
        let (_, cpu, _) = spread(taken.iter().map(|taken| taken.cpu));
        let ratio = plain.map(|plain| wall(plain).1 / median);
        let shown = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        println!(
            "{name:<22} {median:>9.3} {min:>9.3} {max:>9.3} {cpu:>7.2} {:>7.2}  {shown}",
            gigabytes / median
        );
        let seconds: Vec<f64> = taken.iter().map(|taken| taken.wall).collect();
        data.push(json!({"what": name.trim(), "median_s": median, "min_s": min, "max_s": max,
            "cpu_s": cpu, "ratio_to_plain": ratio, "seconds": seconds}));
    }
    let facts = json!({"bench": "disk", "bytes": options.bytes,
        "tensor_bytes": options.tensor_bytes, "reps": options.reps,
        "version": env!("CARGO_PKG_VERSION"), "kernel": line_of("/proc/sys/kernel/osrelease", ""),
        "cpu": line_of("/proc/cpuinfo", "model name"), "rows": data});
    fs::create_dir_all(options.json.parent().unwrap()).unwrap();
    fs::write(&options.json, format!("{facts:#}\n")).unwrap();
    println!("figures in {}", options.json.display());
}

fn line_of(path: &str, begin: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(begin)).unwrap_or_default();
    line.rsplit(": ").next().unwrap_or_default().to_owned()
}
