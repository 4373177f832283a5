//! What opening, saving, listing and restoring cost as a history, a state or a world grows: the library alone.
//!
//! One table for each of the three, with the exponent of growth between its first and last row. Processor time is of all
//! threads of this process, and says more than wall time where other programs run.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::disallowed_methods, reason = "asks how much is wanted, and measures a folder")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lastgood::save::Mode;
use lastgood::state::{Capture, Durability, Targets, World};
use lastgood::{Dtype, Repository, Result, Run, RunName, RunOptions};
use lastgood_format::layout::NdBox;
use lastgood_store::{Env, LocalStore, MemoryStore, Store, SystemEnv};

const HELP: &str = "\
cargo xtask bench growth [--checkpoints N] [--tensors N] [--shards N] [--folder DIR]

  --checkpoints N  the longest history; default 10000
  --tensors N      the most tensors, of 64 bytes each; default 1000000
  --shards N       the most ranks of a save; default 64
  --folder DIR     where to write; default in memory";

/// The tensors of the states whose history grows and whose ranks do: 64 KiB each.
const PARTS: usize = 64;
const PART_BYTES: usize = 64 << 10;
/// The bytes of one of many tensors.
const SMALL_BYTES: usize = 64;
/// So many saves are measured at each length of a history: as many as lie between two heads of the ledger.
const AROUND: u64 = 64;

struct Options {
    checkpoints: u64,
    tensors: usize,
    shards: u32,
    folder: Option<PathBuf>,
}

fn main() {
    let Some(options) = options() else {
        println!("{HELP}");
        return;
    };
    let bench = Bench { folder: options.folder, env: SystemEnv::default() };
    if options.checkpoints >= 10 {
        bench.history(options.checkpoints);
    }
    if options.tensors >= 100 {
        bench.tensors(options.tensors);
    }
    if options.shards >= 1 {
        bench.shards(options.shards);
    }
}

/// `None` to ask for help. What cargo itself passes on is ignored.
fn options() -> Option<Options> {
    let mut options = Options { checkpoints: 10_000, tensors: 1_000_000, shards: 64, folder: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--checkpoints" => options.checkpoints = args.next()?.parse().ok()?,
            "--tensors" => options.tensors = args.next()?.parse().ok()?,
            "--shards" => options.shards = args.next()?.parse().ok()?,
            "--folder" => options.folder = Some(PathBuf::from(args.next()?)),
            "--bench" => {}
            _ => return None,
        }
    }
    Some(options)
}

/// Wall and processor time.
#[derive(Clone, Copy, Default)]
struct Taken {
    wall: Duration,
    cpu: Duration,
}

/// One row: what it is of, and what each column took.
type Measured = (f64, Vec<f64>);

struct Bench {
    folder: Option<PathBuf>,
    env: SystemEnv,
}

impl Bench {
    fn time(&self, work: impl FnOnce()) -> Taken {
        let (begin, cpu) = (self.env.elapsed(), processor_time());
        work();
        Taken { wall: self.env.elapsed() - begin, cpu: processor_time() - cpu }
    }

    fn store(&self, name: &str) -> Arc<dyn Store> {
        let Some(folder) = &self.folder else { return Arc::new(MemoryStore::default()) };
        let folder = folder.join("lastgood-growth").join(name);
        fs::create_dir_all(&folder).unwrap();
        Arc::new(LocalStore::open(fs::canonicalize(folder).unwrap()).unwrap())
    }

    fn forget(&self, name: &str) {
        if let Some(folder) = &self.folder {
            fs::remove_dir_all(folder.join("lastgood-growth").join(name)).unwrap();
        }
    }

    /// A run of which every save changes one of its tensors.
    fn history(&self, most: u64) {
        let store = self.store("history");
        let repository = on(&store);
        let mut parts = vec![vec![1u8; PART_BYTES]; PARTS];
        let mut run = open(&repository, World::ALONE, "0");
        let (mut rows, mut saved) = (Vec::new(), 0);
        for point in powers(most, 10) {
            let (mut walls, mut taken) = (Vec::new(), Taken::default());
            let begin = point.max(AROUND) - AROUND;
            while saved < point {
                saved += 1;
                parts[saved as usize % PARTS].fill(saved as u8);
                let save = self.time(|| {
                    run.save(saved, Mode::Sync, |to| capture(to, &parts)).unwrap();
                });
                // The first save of all makes the arena.
                if saved > begin.max(1) {
                    walls.push(save.wall);
                    taken = Taken { wall: taken.wall + save.wall, cpu: taken.cpu + save.cpu };
                }
            }
            let each = walls.len() as f64;
            walls.sort();
            run.close().unwrap();
            let mut next = None;
            let opened =
                self.time(|| next = Some(open(&repository, World::ALONE, &format!("{point}"))));
            run = next.unwrap();
            let mut listed = 0;
            let list = self.time(|| {
                let ledger = repository.existing(&name()).unwrap();
                listed = ledger.history().checkpoints().len();
            });
            assert!(listed as u64 == saved, "{listed} checkpoints of {saved}");
            let mut found = vec![vec![0u8; PART_BYTES]; PARTS];
            let restore = self.time(|| restore(&repository, &mut found));
            assert!(found == parts, "other bytes came back");
            rows.push((
                point as f64,
                vec![
                    micros(walls[walls.len() / 2]),
                    micros(taken.wall) / each,
                    micros(taken.cpu) / each,
                    micros(opened.wall),
                    micros(list.wall),
                    micros(restore.wall),
                ],
            ));
        }
        run.close().unwrap();
        drop(repository);
        self.forget("history");
        let columns = ["save, median", "save, mean", "its processor", "open", "list", "restore"];
        table("checkpoints", &columns, "µs", &rows);
    }

    /// Tensors of 64 bytes, all of which every save changes.
    fn tensors(&self, most: usize) {
        let mut rows = Vec::new();
        for count in powers(most as u64, 100) {
            let store = self.store("tensors");
            let repository = on(&store);
            rows.push((count as f64, self.tensors_of(&repository, store.as_ref(), count as usize)));
            drop(repository);
            self.forget("tensors");
        }
        let columns =
            ["naming", "in the call", "save", "its processor", "restore", "its processor"];
        let columns: Vec<&str> = columns.into_iter().chain(["index bytes", "pack bytes"]).collect();
        table("tensors", &columns, "ns each", &rows);
    }

    fn tensors_of(&self, repository: &Repository, store: &dyn Store, count: usize) -> Vec<f64> {
        let names: Vec<String> = (0..count)
            .map(|i| format!("model.layers.{}.experts.{}.weight_scale", i / 128, i % 128))
            .collect();
        let mut data = random(1, count * SMALL_BYTES);
        let mut run = open(repository, World::ALONE, "0");
        let name_all = |to: &mut Capture<'_>, data: &[u8]| -> Result<()> {
            let mut part = to.component("m", "bench", Durability::Durable)?;
            for (name, data) in names.iter().zip(data.chunks(SMALL_BYTES)) {
                part.tensor(name, Dtype::F32, &[16], data.to_vec())?;
            }
            Ok(())
        };
        let mut costs = [Taken::default(); 3];
        for step in 1..=2 {
            data.iter_mut().for_each(|byte| *byte ^= step as u8);
            let mut handle = None;
            let mut named = Taken::default();
            costs[2] = self.time(|| {
                costs[1] = self.time(|| {
                    let saved = run.save(step, Mode::Async, |to| {
                        let mut all = Ok(());
                        named = self.time(|| all = name_all(to, &data));
                        all
                    });
                    handle = Some(saved.unwrap());
                });
                handle.take().unwrap().wait().unwrap();
            });
            costs[0] = named;
        }
        run.close().unwrap();
        let mut found = vec![0; data.len()];
        let restore = self.time(|| {
            let mut targets = Targets::new(World::ALONE);
            let mut slots = targets.component("m", "bench", Durability::Durable).unwrap();
            for (name, memory) in names.iter().zip(found.chunks_mut(SMALL_BYTES)) {
                slots.tensor(name, Dtype::F32, &[16], memory).unwrap();
            }
            finish(repository, targets);
        });
        assert!(found == data, "other bytes came back");
        let each = |time: Duration| time.as_nanos() as f64 / count as f64;
        let bytes = |end: &str| size_of_all(store, "saves/1", end) / 2.0 / count as f64;
        let packs = size_of_all(store, "packs/1", ".pack") / 2.0 / count as f64;
        vec![
            each(costs[0].cpu),
            each(costs[1].wall),
            each(costs[2].wall),
            each(costs[2].cpu),
            each(restore.wall),
            each(restore.cpu),
            bytes(".idx"),
            packs - SMALL_BYTES as f64,
        ]
    }

    /// The same state over more and more ranks, which save at the same time.
    fn shards(&self, most: u32) {
        let mut rows = Vec::new();
        for size in (0..=6).map(|i| 1 << i).filter(|size| *size <= most) {
            let store = self.store("shards");
            let repository = on(&store);
            let mut runs: Vec<Run> =
                (0..size).map(|rank| open(&repository, World { rank, size }, "0")).collect();
            let bytes = PARTS * PART_BYTES;
            let mut saves = Vec::new();
            for step in 1..=5 {
                let data = random(step, bytes);
                saves.push(self.time(|| save_all(&mut runs, step, &data)));
            }
            saves[1..].sort_by_key(|taken| taken.wall);
            let save = saves[3];
            let mut found = vec![0u8; bytes];
            let restore = self.time(|| restore_one(&repository, &mut found));
            assert!(found == random(5, bytes), "other bytes came back");
            runs.into_iter().for_each(|run| run.close().unwrap());
            drop(repository);
            self.forget("shards");
            let row = [save.wall, save.cpu, restore.wall, restore.cpu].map(micros).to_vec();
            rows.push((f64::from(size), row));
        }
        table("shards", &["save", "its processor", "restore", "its processor"], "µs", &rows);
    }
}

fn name() -> RunName {
    "bench".parse().unwrap()
}

fn on(store: &Arc<dyn Store>) -> Repository {
    Repository::create(Arc::clone(store), Arc::new(SystemEnv::default())).unwrap()
}

fn open(repository: &Repository, world: World, incarnation: &str) -> Run {
    let options =
        RunOptions { world, incarnation: Some(incarnation.to_owned()), ..RunOptions::default() };
    Run::open(repository, &name(), options).unwrap()
}

fn capture<'a>(to: &mut Capture<'a>, parts: &'a [Vec<u8>]) -> Result<()> {
    let mut part = to.component("parts", "bench", Durability::Durable)?;
    for (i, bytes) in parts.iter().enumerate() {
        part.tensor(&format!("part{i:02}"), Dtype::U8, &[bytes.len() as u64], bytes)?;
    }
    Ok(())
}

fn restore(repository: &Repository, parts: &mut [Vec<u8>]) {
    let mut targets = Targets::new(World::ALONE);
    let mut slots = targets.component("parts", "bench", Durability::Durable).unwrap();
    for (i, bytes) in parts.iter_mut().enumerate() {
        let shape = [bytes.len() as u64];
        slots.tensor(&format!("part{i:02}"), Dtype::U8, &shape, bytes).unwrap();
    }
    finish(repository, targets);
}

fn finish(repository: &Repository, targets: Targets<'_>) {
    let ledger = repository.existing(&name()).unwrap();
    let id = lastgood::restore::choose(ledger.history()).unwrap().id;
    let contents = repository.contents(&ledger, &id).unwrap();
    repository.restore(&contents, targets).unwrap();
}

/// Each rank saves its part of one tensor.
fn save_all(runs: &mut [Run], step: u64, data: &[u8]) {
    let part = data.len() / runs.len();
    let mut handles = Vec::new();
    for (rank, run) in runs.iter_mut().enumerate() {
        let begin = rank * part;
        let extent = NdBox { offsets: vec![begin as u64], sizes: vec![part as u64] };
        let handle = run.save(step, Mode::Async, |to| {
            let mut all = to.component("all", "bench", Durability::Durable)?;
            let shape = [data.len() as u64];
            all.shard("all", Dtype::U8, &shape, extent, &data[begin..begin + part])
        });
        handles.push(handle.unwrap());
    }
    for handle in handles {
        handle.wait().unwrap();
    }
}

fn restore_one(repository: &Repository, data: &mut [u8]) {
    let mut targets = Targets::new(World::ALONE);
    let shape = [data.len() as u64];
    let mut slots = targets.component("all", "bench", Durability::Durable).unwrap();
    slots.tensor("all", Dtype::U8, &shape, data).unwrap();
    finish(repository, targets);
}

/// The bytes of the objects of the run below `folder` that end so.
fn size_of_all(store: &dyn Store, folder: &str, end: &str) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = runtime.block_on(store.list(&format!("runs/bench/{folder}"), None)).unwrap();
    all.iter().filter(|object| object.key.ends_with(end)).map(|object| object.bytes as f64).sum()
}

/// The powers of ten from `least` to `most`.
fn powers(most: u64, least: u64) -> Vec<u64> {
    (1..10).map(|k| 10u64.pow(k)).filter(|n| (least..=most).contains(n)).collect()
}

fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    let mut all: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(word).collect();
    all.truncate(bytes);
    all
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// User and system time of all threads of this process.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Prints rows, and below them how each column grows: 0 not at all, 1 as its first one does.
fn table(what: &str, columns: &[&str], unit: &str, rows: &[Measured]) {
    let heads: String = columns.iter().map(|column| format!("{column:>15}")).collect();
    println!("\n{what:<12} {heads}  ({unit})");
    for (of, row) in rows {
        let cells: String = row.iter().map(|value| format!("{value:>15.1}")).collect();
        println!("{of:<12} {cells}");
    }
    if let (Some((x0, first)), Some((x1, last))) = (rows.first(), rows.last())
        && x0 < x1
    {
        let exponent = |(a, b): (&f64, &f64)| (b / a).ln() / (x1 / x0).ln();
        let cells: String =
            first.iter().zip(last).map(|pair| format!("{:>15.3}", exponent(pair))).collect();
        println!("{:<12} {cells}", "exponent");
    }
}
