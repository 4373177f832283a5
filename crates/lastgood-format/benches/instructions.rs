//! Runs each hot loop once, for `cargo xtask instructions`, which counts the instructions under valgrind: a regression
//! shows on any machine, however busy. Prints the name of each case in the order in which they run; alone it measures
//! nothing.
#![expect(clippy::print_stdout, reason = "it tells what it runs")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::hint::black_box;

use lastgood_format::chunk::{self, Codec, Encoded};
use lastgood_format::delta::{self, Operand, Prediction, Rule};
use lastgood_format::index::{Chunk, Component, Durability, Pack, Shard, ShardIndex, Tensor};
use lastgood_format::journal::{self, Frame, Lane, Value};
use lastgood_format::key::{self, SaveKey};
use lastgood_format::layout::NdBox;
use lastgood_format::{Dtype, Fingerprint, Hash};

const CHUNK: usize = 1 << 18;

/// What is counted is what happens in here.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
    // Nothing is left by a jump.
    black_box(());
}

/// Numbers of binary32 as a training leaves them; `seed` moves them a little.
fn numbers(seed: u32) -> Vec<u8> {
    let number = |i: u32| {
        let noise = i.wrapping_mul(2_654_435_761) ^ (i << 7);
        (noise >> 8) as f32 / (1 << 24) as f32 * 0.02 - 0.01 + seed as f32 * 1e-7
    };
    (0..CHUNK as u32 / 4).flat_map(|i| number(i).to_le_bytes()).collect()
}

/// The index of so many small tensors.
fn index(count: u32) -> ShardIndex {
    let save = SaveKey { attempt: 1, step: 1, generation: 0 };
    let per_chunk = (1 << 20) / 64;
    let rows = count.div_ceil(per_chunk);
    let chunk = |row: u32| {
        let bytes = (count - row * per_chunk).min(per_chunk) * 64;
        Chunk {
            hash: Hash::of(&row.to_le_bytes()),
            decoded_bytes: bytes,
            stored_bytes: bytes,
            codec: Codec::Raw,
            pack: 0,
            offset: 16 + (u64::from(row) << 20),
        }
    };
    let tensor = |i: u32| Tensor {
        component: 0,
        name: format!("layers.{:04}.experts.{:04}.bias", i / 1000, i % 1000),
        dtype: Dtype::F32,
        shape: vec![16],
        tied_to: None,
        shards: i..i + 1,
    };
    let shard = |i: u32| Shard {
        extent: NdBox::whole(&[16]),
        first_chunk: i / per_chunk,
        chunk_offset: i % per_chunk * 64,
    };
    ShardIndex {
        run: "counted".parse().unwrap(),
        save,
        rank: 0,
        world_size: 1,
        parent: None,
        reuses: Vec::new(),
        chunk_bytes: 1 << 20,
        components: vec![Component {
            name: "model".into(),
            owner: "counted".into(),
            durability: Durability::Durable,
        }],
        tensors: (0..count).map(tensor).collect(),
        shards: (0..count).map(shard).collect(),
        chunks: (0..rows).map(chunk).collect(),
        bases: Vec::new(),
        operands: [].into(),
        packs: vec![Pack { object: key::pack_in_run(&save, 0, 0), bytes: 1 << 30, is_new: true }],
        metadata: [].into(),
    }
}

fn prediction(rule: Rule) -> Prediction {
    let constants: &[f64] = match rule {
        Rule::Squares => &[0.999, 0.001, 0.1],
        Rule::Adam => &[1.0, -1e-6, 0.5, 1e-8],
        _ => &[],
    };
    Prediction { rule, fused: false, constants: constants.to_vec() }
}

fn counted(name: &str, mut work: impl FnMut()) {
    println!("{name}");
    measured(&mut work);
}

fn main() {
    let chunks: Vec<Vec<u8>> = (0..4).map(numbers).collect();
    let operands: Vec<Operand<'_>> =
        chunks.iter().map(|bytes| Operand { hash: Hash::of(bytes), bytes }).collect();
    let (decoded, hash) = (&chunks[3], operands[3].hash);
    let mut back = vec![0; decoded.len()];
    counted("blake3", || _ = black_box(Hash::of(decoded)));
    counted("fingerprint", || _ = black_box(Fingerprint::of(decoded)));
    let mut stored = Vec::new();
    counted("planes encode", || {
        if let Encoded::Coded(_, coded) = chunk::encode(decoded, 4, Some(1)).unwrap() {
            stored = coded;
        }
    });
    counted("planes decode", || {
        chunk::decode_into(Codec::Planes, &stored, &[], &mut back, &hash).unwrap();
    });
    for rule in [Rule::Difference, Rule::Squares, Rule::Adam] {
        let (prediction, operands) = (prediction(rule), &operands[..rule.operands()]);
        counted(&format!("{} encode", rule.name()), || {
            stored = delta::encode(decoded, 4, &prediction, operands, 1).unwrap().unwrap();
        });
        counted(&format!("{} decode", rule.name()), || {
            chunk::decode_into(Codec::Delta, &stored, operands, &mut back, &hash).unwrap();
        });
    }
    let index = index(10_000);
    counted("index encode", || stored = index.encode().unwrap());
    counted("index decode", || _ = black_box(ShardIndex::decode(&stored).unwrap()));
    let payload = Value::map([
        ("loss", 0.25f32.into()),
        ("lr", 3e-4f64.into()),
        ("rng", vec![7u8; 32].into()),
    ]);
    let lane = Lane::of_rank(0).unwrap();
    let run = "counted".parse().unwrap();
    let mut frame = Frame {
        kind: journal::Kind::from_code(2),
        lane,
        attempt: 1,
        sequence: 0,
        step: 1,
        clock: 0,
        prev: journal::genesis("0123", &run, 1, lane),
        payload: payload.encode().unwrap(),
    };
    let mut frames = Vec::new();
    counted("journal frames", || {
        for sequence in 0..1000 {
            frame.sequence = sequence;
            frame.prev = frame.encode(&mut frames).unwrap();
        }
    });
}
