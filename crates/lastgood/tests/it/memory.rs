//! How much memory saving and restoring take beside the state, as the kernel counts it.
#![expect(clippy::disallowed_methods, reason = "asks the kernel, and is slow on purpose")]

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lastgood::save::{Compression, Mode, SaveOptions};
use lastgood::state::{Capture, Durability, Targets, World};
use lastgood::{Dtype, Repository, Result, Run, RunOptions};
use lastgood_format::layout::NdBox;
use lastgood_store::{MemoryStore, ObjectMeta, Payload, Put, Store};

use crate::child;
use crate::fixture::{in_folder, on, options, run_name};

const MIB: u64 = 1 << 20;
const STATE: u64 = 256 * MIB;
const BOUND: u64 = 64 * MIB;

/// A store that is slow and forgets packs, so that they are in no memory of this process.
#[derive(Debug, Default)]
struct Sink {
    rest: MemoryStore,
    delay: Duration,
}

#[async_trait]
impl Store for Sink {
    fn location(&self) -> String {
        "sink:".into()
    }

    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put> {
        if !key.ends_with(".pack") {
            return self.rest.put_if_absent(key, payload).await;
        }
        std::thread::sleep(self.delay);
        Ok(Put::Created)
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        self.rest.get(key, bytes_max).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.rest.get_range(key, range).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.rest.size(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        self.rest.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.rest.delete(key).await
    }
}

/// Bytes of which zstd saves an eighth, if they are to be compressible, or nothing.
fn fill(state: &mut [u8], compressible: bool) {
    let mask = if compressible { 0x7f7f_7f7f_7f7f_7f7f } else { u64::MAX };
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    for word in state.chunks_exact_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&(x.wrapping_mul(0x2545_f491_4f6c_dd1d) & mask).to_le_bytes());
    }
}

/// The value of a line of this process's status, in bytes.
fn status(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    found.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().unwrap() * 1024
}

/// The most memory that this process held while it did `work`, beyond what it held before.
fn peak(work: impl FnOnce()) -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    work();
    status("VmHWM").saturating_sub(before)
}

fn check(what: &str, peak: u64, allowed: u64) {
    println!("{what}: {} MiB beside a state of {} MiB", peak / MIB, STATE / MIB);
    assert!(peak <= allowed, "{what}: {} MiB, allowed {}", peak / MIB, allowed / MIB);
}

fn open_with(repository: &Repository, incarnation: &str, compression: Compression) -> Run {
    let save = SaveOptions { compression, ..SaveOptions::default() };
    let options = RunOptions { save, ..options(World::ALONE, incarnation) };
    Run::open(repository, &run_name(), options).unwrap()
}

const SHAPE: [u64; 2] = [STATE / 4096, 1024];

/// The tensor in `parts` shards, by rows or by columns.
fn parts(parts: u64, by_rows: bool) -> impl Iterator<Item = NdBox> {
    let d = if by_rows { 0 } else { 1 };
    (0..parts).map(move |i| {
        let mut part = NdBox::whole(&SHAPE);
        (part.offsets[d], part.sizes[d]) = (i * SHAPE[d] / parts, SHAPE[d] / parts);
        part
    })
}

fn capture<'a>(capture: &mut Capture<'a>, state: &'a [u8], by_rows: bool) -> Result<()> {
    let mut part = capture.component("m", "t", Durability::Durable)?;
    for (extent, data) in parts(4, by_rows).zip(state.chunks(state.len() / 4)) {
        part.shard("w", Dtype::F32, &SHAPE, extent, data)?;
    }
    Ok(())
}

#[test]
fn saving_takes_the_state_and_64_mib() {
    if let Some(child) = child::of("memory::saving_takes_the_state_and_64_mib") {
        print!("{}", child.stdout);
        assert!(child.success && child.stdout.contains(" MiB beside "), "{}", child.stderr);
        return;
    }
    let mut state = vec![0; STATE as usize];
    for compressible in [false, true] {
        fill(&mut state, compressible);
        for delay in [0, 40] {
            let delay = Duration::from_millis(delay);
            let repository = on(Sink { delay, ..Sink::default() });
            let mut run = open_with(&repository, "a", Compression::Zstd(1));
            for step in 1..=2 {
                let save = || {
                    run.save(step, Mode::Sync, |c| capture(c, &state, true)).unwrap();
                };
                let what = format!("save {step}, compressible {compressible}, slow {delay:?}");
                // The second one finds its arena there, filled.
                let arena = if step == 1 { STATE } else { 0 };
                check(&what, peak(save), arena + BOUND);
                // Nothing of the first one is left to be reused.
                state.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
            }
        }
    }
}

#[test]
fn restoring_takes_64_mib() {
    if let Some(child) = child::of("memory::restoring_takes_64_mib") {
        print!("{}", child.stdout);
        assert!(child.success && child.stdout.contains(" MiB beside "), "{}", child.stderr);
        return;
    }
    let mut state = vec![0; STATE as usize];
    for (compressible, by_rows) in [(false, true), (true, true), (true, false)] {
        fill(&mut state, compressible);
        let (_folder, repository) = in_folder();
        let mut run = open_with(&repository, "save", Compression::Zstd(1));
        run.save(1, Mode::Sync, |c| capture(c, &state, by_rows)).unwrap();
        run.close().unwrap();
        let mut run = open_with(&repository, "restore", Compression::Off);
        let restore = || {
            run.restore(state.as_mut_slice(), |state, targets: &mut Targets<'_>| {
                let mut slots = targets.component("m", "t", Durability::Durable)?;
                slots.tensor("w", Dtype::F32, &SHAPE, state)
            })
            .unwrap()
            .unwrap();
        };
        let what = format!("restore, compressible {compressible}, saved by rows {by_rows}");
        check(&what, peak(restore), BOUND);
    }
}
