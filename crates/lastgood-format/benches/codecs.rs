//! Codecs of chunks beside a plain copy and BLAKE3 of the same bytes, on one core: the ratio and the speed of each.
//!
//! The numbers are those of AdamW in binary32, taken one step after fifty, by a loop that does what a library does on
//! gradients that are normal in distribution: what is said of bytes holds for such numbers, `cargo xtask bench` has
//! trained ones. All are interleaved in one process; what is measured is time on the clock, medians.
//! `cargo bench -p lastgood-format --bench codecs --locked`
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::hint::black_box;
use std::time::Instant;

use lastgood_format::Hash;
use lastgood_format::chunk::{self, Codec, Encoded};
use lastgood_format::delta::{self, Operand, Prediction, Rule};

const HELP: &str = "\
cargo bench -p lastgood-format --bench codecs --locked -- [--reps N]

  --reps N       how often everything is measured; default 7";

/// Numbers of each tensor: chunks of 1 MiB.
const COUNT: usize = 8 << 18;
const CHUNK: usize = 1 << 20;

/// Weights, averages and squares.
struct State([Vec<f32>; 3]);

/// The same numbers for the same seed, about normal in distribution.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..4 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            sum += (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5;
        }
        sum
    }
}

impl State {
    fn step(&mut self, draw: &mut Draw, step: i32) {
        let (b1, b2, lr) = (0.9f64, 0.999f64, 3e-4f64);
        let root = (1.0 - b2.powi(step)).sqrt() as f32;
        let size = (-lr / (1.0 - b1.powi(step))) as f32;
        let [w, m, v] = &mut self.0;
        for ((w, m), v) in w.iter_mut().zip(m).zip(v) {
            let g = draw.next() * 1e-3;
            *w *= (1.0 - lr * 0.1) as f32;
            *m += (g - *m) * (1.0 - b1) as f32;
            *v = *v * b2 as f32 + ((1.0 - b2) as f32 * g) * g;
            *w += size * *m / (v.sqrt() / root + 1e-8);
        }
    }

    fn bytes(&self) -> [Vec<u8>; 3] {
        [0, 1, 2].map(|i| self.0[i].iter().flat_map(|number| number.to_le_bytes()).collect())
    }
}

/// One way to store chunks.
struct Case<'a> {
    name: &'static str,
    of: &'a [u8],
    width: usize,
    prediction: Option<Prediction>,
    operands: Vec<&'a [u8]>,
}

impl Case<'_> {
    fn operands(&self, begin: usize, end: usize) -> Vec<Operand<'_>> {
        let operand = |whole: &&'_ [u8]| -> (Hash, usize) { (Hash::of(&whole[begin..end]), 0) };
        let hashes: Vec<_> = self.operands.iter().map(operand).collect();
        let pairs = self.operands.iter().zip(hashes);
        pairs.map(|(whole, (hash, _))| Operand { hash, bytes: &whole[begin..end] }).collect()
    }

    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> {
        let bytes = self.of.len();
        (0..bytes).step_by(CHUNK).map(move |begin| (begin, bytes.min(begin + CHUNK)))
    }

    /// What is stored of every chunk.
    fn encode(&self, operands: &[Vec<Operand<'_>>]) -> Vec<(Codec, Vec<u8>)> {
        let coded = |((begin, end), operands): ((usize, usize), &Vec<Operand<'_>>)| {
            let bytes = &self.of[begin..end];
            let encoded = match &self.prediction {
                None => chunk::encode(bytes, self.width, Some(1)).unwrap(),
                Some(prediction) => {
                    let coded = delta::encode(bytes, self.width, prediction, operands, 1).unwrap();
                    coded.map_or(Encoded::Raw, |coded| Encoded::Coded(Codec::Delta, coded))
                }
            };
            match encoded {
                Encoded::Coded(codec, coded) => (codec, coded),
                _ => (Codec::Raw, bytes.to_vec()),
            }
        };
        self.chunks().zip(operands).map(coded).collect()
    }

    fn decode(
        &self,
        stored: &[(Codec, Vec<u8>)],
        operands: &[Vec<Operand<'_>>],
        hashes: &[Hash],
        out: &mut Vec<u8>,
    ) {
        let chunks = self.chunks().zip(stored).zip(operands).zip(hashes);
        for ((((begin, end), (codec, coded)), operands), hash) in chunks {
            out.resize(end - begin, 0);
            chunk::decode_into(*codec, coded, operands, out, hash).unwrap();
        }
    }
}

fn main() {
    let Some(reps) = options() else {
        println!("{HELP}");
        return;
    };
    let mut draw = Draw(7);
    let zeros = || vec![0.0; COUNT];
    let mut state = State([(0..COUNT).map(|_| draw.next() * 0.02).collect(), zeros(), zeros()]);
    (1..=50).for_each(|step| state.step(&mut draw, step));
    let [w, m, v] = state.bytes();
    state.step(&mut draw, 51);
    let [w1, m1, v1] = state.bytes();
    let half = |bytes: &[u8]| -> Vec<u8> {
        bytes.as_chunks::<4>().0.iter().flat_map(|number| [number[2], number[3]]).collect()
    };
    let (h, h1) = (half(&w), half(&w1));
    let f = |number: f64| f64::from(number as f32);
    let of = |rule, constants: &[f64]| {
        Some(Prediction { rule, fused: false, constants: constants.to_vec() })
    };
    let (correction, root) = (1.0 - 0.9f64.powi(51), (1.0 - 0.999f64.powi(51)).sqrt());
    let step = [f(1.0 - 3e-5), f(-3e-4 / correction), f(root), f(1e-8)];
    let plain = |rule| Some(Prediction::plain(rule));
    let case =
        |name, of, width, prediction, operands| Case { name, of, width, prediction, operands };
    let cases = [
        case("planes, weights", &w1, 4, None, vec![]),
        case("planes, averages", &m1, 4, None, vec![]),
        case("planes, bfloat16", &h1, 2, None, vec![]),
        case("xor, weights", &w1, 4, plain(Rule::Xor), vec![&w]),
        case("difference, weights", &w1, 4, plain(Rule::Difference), vec![&w]),
        case("difference, bfloat16", &h1, 2, plain(Rule::Difference), vec![&h]),
        case("averages, predicted", &m1, 4, of(Rule::Scaled, &[f(0.9)]), vec![&m]),
        case(
            "squares, predicted",
            &v1,
            4,
            of(Rule::Squares, &[f(0.999), f(0.001), f(0.1)]),
            vec![&v, &m, &m1],
        ),
        case("weights, predicted", &w1, 4, of(Rule::Adam, &step), vec![&w, &m1, &v1]),
    ];
    measure(&cases, reps);
}

fn measure(cases: &[Case<'_>], reps: usize) {
    let mut seconds = vec![[Vec::new(), Vec::new(), Vec::new()]; cases.len()];
    let mut ratios = vec![0.0; cases.len()];
    let mut out = Vec::new();
    // The first round touches the memory and does not count.
    for rep in 0..=reps {
        for (i, case) in cases.iter().enumerate() {
            let operands: Vec<_> =
                case.chunks().map(|(begin, end)| case.operands(begin, end)).collect();
            let hashes: Vec<_> =
                case.chunks().map(|(begin, end)| Hash::of(&case.of[begin..end])).collect();
            let (stored, encoding) = timed(|| case.encode(&operands));
            let ((), decoding) = timed(|| case.decode(&stored, &operands, &hashes, &mut out));
            let (_, hashing) = timed(|| black_box(Hash::of(case.of)));
            let bytes: usize = stored.iter().map(|(_, coded)| coded.len()).sum();
            ratios[i] = bytes as f64 / case.of.len() as f64;
            if rep > 0 {
                for (of, taken) in seconds[i].iter_mut().zip([encoding, decoding, hashing]) {
                    of.push(taken);
                }
            }
        }
    }
    println!(
        "{:24} {:>9} {:>12} {:>20} {:>8}",
        "GB/s, one core", "of raw", "encode", "decode and verify", "BLAKE3"
    );
    for ((case, seconds), ratio) in cases.iter().zip(&mut seconds).zip(ratios) {
        let [encoding, decoding, hashing] =
            seconds.each_mut().map(|taken| case.of.len() as f64 / median(taken) / 1e9);
        println!("{:24} {ratio:>9.4} {encoding:>12.2} {decoding:>20.2} {hashing:>8.2}", case.name);
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begin = Instant::now();
    let done = work();
    (done, begin.elapsed().as_secs_f64())
}

fn median(taken: &mut [f64]) -> f64 {
    taken.sort_by(f64::total_cmp);
    taken[taken.len() / 2]
}

/// How often; none for help.
fn options() -> Option<usize> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => Some(7),
        ["--reps", reps] => reps.parse().ok().filter(|reps| *reps > 0),
        _ => None,
    }
}
