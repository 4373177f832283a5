//! Random single-bit flips of a large repository, each judged through the `lastgood` command.
//!
//! What a user types must see each of them: `verify` ends with code 3 and names the object, and `export`
//! refuses or gives exactly the bytes that it gave before. Each worker flips in a copy of its own.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lastgood::ledger::{Standing, Writer};
use lastgood::save::{Compression, Mode, SaveOptions};
use lastgood::state::{Durability, World};
use lastgood::{Dtype, Repository, RunOptions};
use lastgood_format::key;
use lastgood_store::{LocalStore, ObjectMeta, SystemEnv};

use super::memory;
use super::state::{self, Size, State};
use crate::failure::{Context, Result, bail, ensure};
use crate::random::Random;
use crate::ranks::content;

const RANKS: u32 = 2;
const STEPS: u64 = 4;
const SIZE: Size = Size { row_bytes: 300_000, replicated_bytes: 500_000 };
/// So many entries make the ledger write heads.
const MARKS: u32 = 70;
/// How the commands get their memory: in large pages from one heap that is not given back meanwhile. They spend
/// more time on page faults than on the bytes otherwise.
const MEMORY: &str = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:\
                      glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=134217728";
/// The selector of the checkpoint that recovery takes.
const LAST_GOOD: &str = "last-good";
/// A command that takes longer hangs.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// What became of the flips in one class of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bits that were flipped.
    pub flips: u64,
    /// Flips that `verify` reported with code 3, naming the object.
    pub reported: u64,
    /// Flips in objects that no checkpoint stands on, which `verify` lists as unused.
    pub unused: u64,
    /// Exports that were refused with code 3.
    pub refused: u64,
    /// Exports that gave exactly the bytes from before the flip.
    pub right: u64,
}

/// What became of all flips.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The size of the repository.
    pub bytes: u64,
    /// By class of object.
    pub classes: BTreeMap<&'static str, Tally>,
}

/// Flips `flips` bits, one at a time, chosen by `seed`, and judges each by the command in `program`.
///
/// # Errors
/// If a flip goes unseen, hands out a wrong byte, or makes the command panic or hang.
pub fn run(program: &Path, flips: u64, seed: u64) -> Result<Report> {
    ensure!(program.is_file(), "there is no {}: build it with this program", program.display());
    let place = tempfile::Builder::new().prefix("lastgood-flips.").tempdir_in(memory())?;
    let original = place.path().join("original");
    make(&original)?;
    let objects = objects_of(&original)?;
    let plan = plan(&objects, flips, seed);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let classes = thread::scope(|scope| -> Result<_> {
        let workers: Vec<_> = (0..threads)
            .map(|i| {
                let share: Vec<Flip> = plan.iter().skip(i).step_by(threads).cloned().collect();
                let (folder, original) = (place.path().join(i.to_string()), &original);
                scope.spawn(move || Judge::new(program, original, folder)?.all(&share))
            })
            .collect();
        let mut sum: BTreeMap<&'static str, Tally> = BTreeMap::new();
        for worker in workers {
            let share = worker.join().unwrap_or_else(|_| bail!("a worker panicked"))?;
            for (class, tally) in share {
                sum.entry(class).or_default().add(tally);
            }
        }
        Ok(sum)
    })?;
    Ok(Report { bytes: objects.iter().map(|object| object.bytes).sum(), classes })
}

/// Checkpoints of two ranks with raw, compressed, plane, zero and reused chunks; a ledger with heads; and the
/// leavings of a save of one rank.
fn make(folder: &Path) -> Result<()> {
    let store = LocalStore::open(folder)?;
    let repository = Repository::create(Arc::new(store), Arc::new(SystemEnv::default()))?;
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..RANKS)
            .map(|rank| {
                let repository = &repository;
                scope.spawn(move || save_steps(repository, World { rank, size: RANKS }))
            })
            .collect();
        ranks.into_iter().try_for_each(|rank| {
            rank.join().unwrap_or_else(|_| bail!("a rank of the repository panicked"))
        })
    })?;
    let mut ledger = repository.existing(&state::run_name())?;
    let newest = ledger.history().checkpoints().last().context("nothing was saved")?.id;
    let writer = Writer { attempt: 0, actor: "flips".into() };
    for i in 0..MARKS {
        let reason = format!("look {i}");
        let standing = Standing::Verified;
        let mark = lastgood::mark(&mut ledger, &writer, &newest, standing, &reason);
        repository.block_on(mark)?;
    }
    leave_unfinished(&repository)
}

fn options(commit_wait: Duration) -> RunOptions {
    let save =
        SaveOptions { compression: Compression::Zstd(1), commit_wait, ..SaveOptions::default() };
    RunOptions { save, ..RunOptions::default() }
}

fn save_steps(repository: &Repository, world: World) -> Result<()> {
    let mut run = state::open(repository, world, "flips", options(Duration::from_secs(60)))?;
    for step in 1..=STEPS {
        save(&mut run, step)?.wait()?;
    }
    run.close()?;
    Ok(())
}

/// Beside the state that every attack saves: text, which is compressed, zeros, and numbers of like size, which are
/// stored in planes.
fn save(run: &mut lastgood::Run, step: u64) -> Result<lastgood::save::SaveHandle> {
    let state = State::at(step, run.world(), SIZE);
    let text = format!("step {step} of the flips; ").repeat(20_000).into_bytes();
    let zeros = vec![0; 300_000];
    let numbers = (0..75_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) | 0x3c00_0000);
    let numbers: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
    let saved = run.save(step, Mode::Async, |capture| {
        state.capture(capture)?;
        let mut extra = capture.component("extra", "attack", Durability::Durable)?;
        extra.replicated("numbers", Dtype::F32, &[75_000], &numbers)?;
        extra.replicated("text", Dtype::U8, &[text.len() as u64], &text)?;
        extra.replicated("zeros", Dtype::U8, &[zeros.len() as u64], &zeros)
    })?;
    Ok(saved)
}

fn leave_unfinished(repository: &Repository) -> Result<()> {
    let world = World { rank: 0, size: RANKS };
    let options = options(Duration::from_millis(10));
    let mut run = state::open(repository, world, "unfinished", options)?;
    ensure!(save(&mut run, 1000)?.wait().is_err(), "a save of one of two ranks was committed");
    run.take_failures();
    Ok(())
}

/// An object of the repository.
#[derive(Clone, Debug)]
struct Object {
    key: String,
    class: &'static str,
    bytes: u64,
    /// The steps whose checkpoints stand on it.
    steps: Vec<u64>,
}

fn objects_of(folder: &Path) -> Result<Vec<Object>> {
    let store = LocalStore::open(folder)?;
    let repository = Repository::open(Arc::new(store), Arc::new(SystemEnv::default()))?;
    let ledger = repository.existing(&state::run_name())?;
    let mut used: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for checkpoint in ledger.history().checkpoints() {
        let contents = repository.contents(&ledger, &checkpoint.id)?;
        for key in content::objects_of(&contents)? {
            used.entry(key).or_default().push(checkpoint.step);
        }
    }
    let all = repository.block_on(repository.store().list("", None))?;
    let class = |key: &str| match key {
        key::DESCRIPTOR => "descriptor",
        key if key.contains("/ledger/heads/") => "ledger head",
        key if key.contains("/ledger/") => "ledger entry",
        key if !used.contains_key(key) => "unused",
        key if key.contains("/checkpoints/") => "manifest",
        key if key.ends_with(".idx") => "shard index",
        _ => "pack",
    };
    Ok(all
        .into_iter()
        .map(|ObjectMeta { key, bytes }| {
            let steps = used.get(&key).cloned().unwrap_or_default();
            Object { class: class(&key), key, bytes, steps }
        })
        .collect())
}

/// One bit to flip.
#[derive(Clone, Debug)]
struct Flip {
    object: Object,
    byte: u64,
    bit: u64,
    /// What is exported meanwhile.
    at: String,
}

/// Half of the flips anywhere, so that most are where most bytes are; half in each class in turn. With half of
/// both, what is exported is the last good checkpoint; with the others it is one that stands on the flipped
/// object, or any if none does.
fn plan(objects: &[Object], flips: u64, seed: u64) -> Vec<Flip> {
    let mut random = Random::new(seed);
    let mut classes: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    for object in objects.iter().filter(|object| object.bytes > 0) {
        classes.entry(object.class).or_default().push(object);
    }
    let classes: Vec<_> = classes.into_values().collect();
    let total: u64 = objects.iter().map(|object| object.bytes).sum();
    let mut plan = Vec::new();
    for i in 0..flips {
        let object = if i % 2 == 0 {
            at(objects, random.below(total))
        } else {
            let class = &classes[(i / 2) as usize % classes.len()];
            class[random.below(class.len() as u64) as usize]
        };
        let (byte, bit) = (random.below(object.bytes), random.below(8));
        let (steps, any) = (&object.steps, 1 + random.below(STEPS));
        let at = match (i / 2 % 2, steps.len() as u64) {
            (0, _) => LAST_GOOD.to_owned(),
            (_, 0) => any.to_string(),
            (_, count) => steps[random.below(count) as usize].to_string(),
        };
        plan.push(Flip { object: object.clone(), byte, bit, at });
    }
    plan
}

/// The object that byte number `byte` of all is in.
fn at(objects: &[Object], mut byte: u64) -> &Object {
    let mut last = &objects[0];
    for object in objects.iter().filter(|object| object.bytes > 0) {
        last = object;
        if byte < object.bytes {
            break;
        }
        byte -= object.bytes;
    }
    last
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.flips += other.flips;
        self.reported += other.reported;
        self.unused += other.unused;
        self.refused += other.refused;
        self.right += other.right;
    }
}

/// Every file of an export.
type Files = BTreeMap<String, Vec<u8>>;

/// True if the folder holds exactly these files; `memory` is read into.
fn has_exactly(folder: &Path, files: &Files, memory: &mut Vec<u8>) -> Result<bool> {
    let mut found = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(expected) = files.get(entry.file_name().to_string_lossy().as_ref()) else {
            return Ok(false);
        };
        memory.clear();
        File::open(entry.path())?.read_to_end(memory)?;
        if memory != expected {
            return Ok(false);
        }
        found += 1;
    }
    Ok(found == files.len())
}

/// One worker with its copy of the repository.
struct Judge<'p> {
    program: &'p Path,
    folder: PathBuf,
    /// What an export gave before anything was flipped, by what it was asked for.
    expected: BTreeMap<String, Files>,
    tallies: BTreeMap<&'static str, Tally>,
    /// What exported files are read into.
    memory: Vec<u8>,
}

impl<'p> Judge<'p> {
    fn new(program: &'p Path, original: &Path, folder: PathBuf) -> Result<Self> {
        let store = folder.join("store");
        fs::create_dir(&folder)?;
        let copied = Command::new("cp").arg("-a").arg(original).arg(&store).status()?;
        ensure!(copied.success(), "cannot copy the repository");
        let mut judge = Self {
            program,
            folder,
            expected: BTreeMap::new(),
            tallies: BTreeMap::new(),
            memory: Vec::new(),
        };
        let verified = judge.call(&["verify", "--json"])?;
        ensure!(verified.status.code() == Some(0), "an unharmed repository: {}", text(&verified));
        for at in [LAST_GOOD.to_owned()].into_iter().chain((1..=STEPS).map(|s| s.to_string())) {
            let exported = judge.export(&at)?;
            ensure!(exported.status.success(), "export of {at}: {}", text(&exported));
            let to = judge.folder.join("export");
            let mut files = Files::new();
            for entry in fs::read_dir(&to)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                files.insert(name, fs::read(entry.path())?);
            }
            fs::remove_dir_all(&to)?;
            judge.expected.insert(at, files);
        }
        Ok(judge)
    }

    fn all(mut self, flips: &[Flip]) -> Result<BTreeMap<&'static str, Tally>> {
        for flip in flips {
            let Flip { object, byte, bit, .. } = flip;
            self.flip(flip)?;
            let judged = self.judge(flip);
            self.flip(flip)?;
            let tally =
                judged.with_context(|| format!("bit {bit} of byte {byte} of {}", object.key))?;
            self.tallies.entry(object.class).or_default().add(tally);
        }
        Ok(self.tallies)
    }

    fn flip(&self, flip: &Flip) -> Result<()> {
        let path = self.folder.join("store").join(&flip.object.key);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, flip.byte)?;
        byte[0] ^= 1 << flip.bit;
        file.write_all_at(&byte, flip.byte)?;
        Ok(())
    }

    fn judge(&mut self, flip: &Flip) -> Result<Tally> {
        let mut tally = Tally { flips: 1, ..Tally::default() };
        let verified = self.call(&["verify", "--json"])?;
        let said = text(&verified);
        match (verified.status.code(), flip.object.class) {
            (Some(0), "unused") => tally.unused = 1,
            (Some(3), class) if class != "unused" => {
                ensure!(said.contains(&flip.object.key), "verify does not name the object: {said}");
                tally.reported = 1;
            }
            (code, class) => bail!("verify of a flipped {class} ended with {code:?}: {said}"),
        }
        let at = &flip.at;
        let exported = self.export(at)?;
        let to = self.folder.join("export");
        match (exported.status.code(), to.exists()) {
            (Some(0), true) => {
                let expected = self.expected.get(at).context("nobody exported it before")?;
                ensure!(
                    has_exactly(&to, expected, &mut self.memory)?,
                    "the export of {at} has wrong bytes"
                );
                fs::remove_dir_all(&to)?;
                tally.right = 1;
            }
            (Some(3), false) => tally.refused = 1,
            (code, _) => bail!("export of {at} ended with {code:?}: {}", text(&exported)),
        }
        Ok(tally)
    }

    /// Exports what `at` names into the folder `export`.
    fn export(&self, at: &str) -> Result<Output> {
        let to = self.folder.join("export").display().to_string();
        self.call(&["export", "--at", at, "--to", &to])
    }

    fn call(&self, args: &[&str]) -> Result<Output> {
        let mut child = Command::new(self.program)
            .args(args)
            .env("GLIBC_TUNABLES", MEMORY)
            .env("LASTGOOD_STORE", self.folder.join("store"))
            .env("LASTGOOD_RUN", state::run_name().as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let begin = Instant::now();
        while child.try_wait()?.is_none() {
            if begin.elapsed() > COMMAND_MAX {
                child.kill()?;
                child.wait()?;
                bail!("`lastgood {}` hung", args.join(" "));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(child.wait_with_output()?)
    }
}

/// What a command said, on both of its outputs.
fn text(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    both.concat()
}
