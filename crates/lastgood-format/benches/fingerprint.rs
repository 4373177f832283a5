//! Fingerprints beside a plain copy and BLAKE3 of the same bytes, on one core.
//!
//! All are interleaved in one process, so that a noisy machine is as noisy for each. What is measured
//! is processor time, so that other processes count only where they use up the memory's speed; the
//! kernel counts it in ticks of some milliseconds, so fewer bytes than usual make coarse figures.
//! `cargo bench -p lastgood-format --bench fingerprint --locked`
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::hint::black_box;
use std::time::Instant;

use lastgood_format::fingerprint::{Change, locate};
use lastgood_format::layout::NdBox;
use lastgood_format::{Dtype, Fingerprint, Hash};

const HELP: &str = "\
cargo bench -p lastgood-format --bench fingerprint --locked -- [--bytes N] [--reps N]

  --bytes N      how many bytes each one reads; default 268435456
  --reps N       how often everything is measured; default 15";

/// `locate` looks at so many words.
const WORDS: u64 = 10_000_000;

/// The bytes of a shard arrive in chunks of this size.
const CHUNK_BYTES: usize = 1 << 20;

/// What is measured.
type Case<'a> = (&'static str, Box<dyn FnMut() + 'a>);

fn main() {
    let Some((bytes, reps)) = options() else {
        println!("{HELP}");
        return;
    };
    let source = random(bytes);
    let mut target = vec![1; bytes];
    let mut cases: Vec<Case<'_>> = vec![
        ("copy", Box::new(|| black_box(&mut target).copy_from_slice(&source))),
        ("BLAKE3", Box::new(|| _ = black_box(Hash::of(&source)))),
        ("fingerprint, contiguous", Box::new(|| _ = black_box(Fingerprint::of(&source)))),
        ("  rows of 4096 bytes in 8", Box::new(|| columns(&source, 4096, 8 * 4096))),
        ("  rows of 64 bytes in 8", Box::new(|| columns(&source, 64, 8 * 64))),
        ("  rows of 63 bytes in 9", Box::new(|| columns(&source, 63, 9 * 63))),
        ("  rows of 4 bytes in 9", Box::new(|| columns(&source, 4, 9 * 4))),
    ];
    let whole = NdBox::whole(&[WORDS]);
    let place = (WORDS - 1) * 8;
    let changed = Fingerprint::of_piece(Dtype::U64, &[WORDS], &whole, place, &[1]).unwrap();
    let mut seconds = vec![Vec::new(); cases.len() + 1];
    // The first round touches the memory and does not count.
    for rep in 0..=reps {
        for (taken, (_, work)) in seconds.iter_mut().zip(&mut cases) {
            let time = time(work);
            taken.extend((rep > 0).then_some(time));
        }
        let time = time(&mut || last_word(changed));
        seconds[cases.len()].extend((rep > 0).then_some(time));
    }
    println!("\n{bytes} random bytes, {reps} repetitions, interleaved, processor time of one core");
    println!("{:<28} {:>9} {:>9} {:>9}  rate", "", "median ms", "min", "max");
    for ((name, _), taken) in cases.iter().zip(&mut seconds) {
        report(name, taken, |median| format!("{:>6.2} GB/s", bytes as f64 / 1e9 / median));
    }
    report("locate, last of 10 M words", seconds.last_mut().unwrap(), |median| {
        format!("{:>6.2} ns a word", median * 1e9 / WORDS as f64)
    });
}

/// `None` to ask for help. What cargo itself passes on is ignored.
fn options() -> Option<(usize, usize)> {
    let (mut bytes, mut reps) = (256 << 20, 15);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bytes" => bytes = args.next()?.parse().ok()?,
            "--reps" => reps = args.next()?.parse().ok()?,
            "--bench" => {}
            _ => return None,
        }
    }
    (bytes >= CHUNK_BYTES && reps > 0).then_some((bytes, reps))
}

fn random(bytes: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    let mut all: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| next()).collect();
    all.truncate(bytes);
    all
}

/// A shard of `row` bytes of each row of `stride` bytes, chunk by chunk; the rows that are whole.
fn columns(source: &[u8], row: u64, stride: u64) {
    let rows = source.len() as u64 / row;
    let shape = [rows, stride];
    let extent = NdBox { offsets: vec![0, row], sizes: vec![rows, row] };
    let chunks = source[..(rows * row) as usize].chunks(CHUNK_BYTES);
    let pieces = chunks.zip((0..).step_by(CHUNK_BYTES)).map(|(chunk, offset)| {
        Fingerprint::of_piece(Dtype::U8, &shape, &extent, offset, chunk).unwrap()
    });
    black_box(pieces.sum::<Fingerprint>());
}

/// The longest search: the last word.
fn last_word(changed: Fingerprint) {
    let found = locate(black_box(changed), WORDS);
    assert_eq!(found, Some(Change { word: WORDS - 1, delta: 1 }));
}

/// How long this thread was on a processor, or as much time as went by where that is not told.
fn time(work: &mut dyn FnMut()) -> f64 {
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    work();
    let wall = begin.elapsed().as_secs_f64();
    cpu.zip(cpu_seconds()).map_or(wall, |(begin, end)| end - begin)
}

/// On Linux the first number here is in nanoseconds.
fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse::<f64>().ok().map(|nanoseconds| nanoseconds / 1e9)
}

fn report(name: &str, seconds: &mut [f64], rate: impl Fn(f64) -> String) {
    seconds.sort_by(f64::total_cmp);
    let [min, median, max] = [0, seconds.len() / 2, seconds.len() - 1].map(|i| seconds[i] * 1e3);
    let rate = rate(median / 1e3);
    println!("{name:<28} {median:>9.2} {min:>9.2} {max:>9.2}  {rate}");
}
