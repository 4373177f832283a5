//! `FORMAT.md`, "Delta".

use lastgood_format::Hash;
use lastgood_format::delta::{self, Operand, Prediction, Rule};

use super::columns::Fields;
use super::pack;
use crate::seeded::Seeded;

/// The decoded bytes of a stored delta of `operands`.
pub(super) fn decode(stored: &[u8], operands: &[Vec<u8>], decoded_bytes: usize) -> Vec<u8> {
    let (seal, rest) = stored.split_at(32);
    assert_eq!(blake3::hash(rest).as_bytes(), seal);
    let mut f = Fields(rest);
    let (rule, width, fused, count) = (f.u8(), usize::from(f.u8()), f.u8() == 1, f.u8());
    for operand in operands {
        assert_eq!(f.hash(), *blake3::hash(operand).as_bytes());
        assert_eq!(operand.len(), decoded_bytes);
    }
    let c: Vec<f64> = (0..count).map(|_| f64::from_bits(f.u64())).collect();
    let form = f.u8();
    let residual = match form {
        0 => vec![0; decoded_bytes],
        1 => pack::planes(f.0, decoded_bytes),
        _ => sparse(f, width, decoded_bytes),
    };
    let whole = decoded_bytes / width * width;
    let mut decoded = Vec::with_capacity(decoded_bytes);
    for at in (0..whole).step_by(width) {
        let residual = word(&residual[at..at + width]);
        let of: Vec<u64> = operands.iter().map(|bytes| word(&bytes[at..at + width])).collect();
        let bits = match rule {
            0 => residual ^ of[0],
            1 => plus(of[0], residual, width),
            8 => plus(cast(operands, at, decoded_bytes), residual, width),
            _ => plus(predict(rule, fused, &c, &of).into(), residual, width),
        };
        decoded.extend_from_slice(&bits.to_le_bytes()[..width]);
    }
    decoded.extend((whole..decoded_bytes).map(|at| residual[at] ^ operands[0][at]));
    decoded
}

fn sparse(mut f: Fields<'_>, width: usize, decoded_bytes: usize) -> Vec<u8> {
    let (differ, gap_bytes) = (f.u32() as usize, f.u32() as usize);
    let mut next = |count: usize| {
        let (kind, bytes) = (f.u8(), f.u32() as usize);
        pack::plane(kind, f.take(bytes), count)
    };
    let mut at = 0;
    let mut places = Vec::new();
    for gap in next(gap_bytes) {
        at += usize::from(gap);
        if gap < 255 {
            places.push(at);
            at += 1;
        }
    }
    assert_eq!(places.len(), differ);
    let mut residual = vec![0; decoded_bytes];
    for p in 0..width {
        for (place, byte) in places.iter().zip(next(differ)) {
            residual[place * width + p] = byte;
        }
    }
    residual[decoded_bytes / width * width..].copy_from_slice(f.0);
    residual
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The number that comes `residual` after `bits` in the order of numbers.
fn plus(bits: u64, residual: u64, width: usize) -> u64 {
    let all = u64::MAX >> (64 - 8 * width);
    let top = all ^ (all >> 1);
    let place = if bits & top == 0 { bits | top } else { !bits & all };
    let after = match residual % 2 {
        0 => place.wrapping_add(residual / 2) & all,
        _ => place.wrapping_sub(residual / 2 + 1) & all,
    };
    if after & top == 0 { !after & all } else { after & !top }
}

/// A number of binary32 of a prediction; subnormal ones are zero.
fn number(bits: u64) -> f64 {
    let number = f32::from_bits(bits as u32);
    if number.is_subnormal() { 0.0 } else { number.into() }
}

fn r(number: f64) -> f64 {
    if number.abs() < f32::MIN_POSITIVE.into() { 0.0 } else { (number as f32).into() }
}

/// The upper half of the number of binary32 that belongs to the element at `at`, rounded to the nearest, ties to even.
fn cast(operands: &[Vec<u8>], at: usize, decoded_bytes: usize) -> u64 {
    let numbers = operands.concat();
    assert_eq!(numbers.len(), 2 * decoded_bytes);
    let bits = word(&numbers[2 * at..2 * at + 4]);
    if f32::from_bits(bits as u32).is_nan() {
        return 0x7fc0;
    }
    let (upper, lower) = (bits >> 16, bits & 0xffff);
    let up = lower > 0x8000 || (lower == 0x8000 && upper % 2 == 1);
    upper + u64::from(up)
}

/// The table of rules.
fn predict(rule: u8, fused: bool, c: &[f64], of: &[u64]) -> u32 {
    let x: Vec<f64> = of.iter().map(|bits| number(*bits)).collect();
    let p = |a: f64, b: f64| if fused { a * b } else { r(a * b) };
    let predicted = match rule {
        2 => r(c[0] * x[0]),
        3 => {
            let g = r(x[1] + (x[2] - x[1]) / c[2]);
            r(p(r(c[1] * g), g) + r(c[0] * x[0]))
        }
        4 => {
            let root = r(r(r(x[2].sqrt()) / c[2]) + c[3]);
            r(p(c[0], x[0]) + r(r(c[1] * x[1]) / root))
        }
        5 => r(r(c[0] * x[0]) + p(c[1], x[1])),
        6 => {
            let g = r(x[2] - r(c[2] * x[1]));
            r(r(c[0] * x[0]) + p(c[1], r(g + p(c[2], x[2]))))
        }
        _ => {
            assert_eq!(rule, 7);
            let g = r(x[1] + (x[2] - x[1]) / c[4]);
            let toward = r(r(c[2] * x[1]) + p(c[3], g));
            let sign = match toward.partial_cmp(&0.0) {
                Some(std::cmp::Ordering::Greater) => 1.0,
                Some(std::cmp::Ordering::Less) => -1.0,
                _ => 0.0,
            };
            r(r(c[0] * x[0]) + r(c[1] * sign))
        }
    };
    let predicted = predicted as f32;
    if predicted.is_nan() { 0 } else { predicted.to_bits() }
}

/// Both readers give the chunk back, for every rule, whatever the numbers are.
#[test]
fn both_readers_decode_the_same_deltas() {
    let mut seeded = Seeded(31);
    let special = [0, 0x8000_0000, 1, 0x7f80_0000, 0xff80_0000, 0x7fc0_0001, 0x0080_0000, u32::MAX];
    let mut numbers = |count: usize| -> Vec<u8> {
        let number = |seeded: &mut Seeded| match seeded.below(9) {
            0 => *seeded.pick(&special),
            1 => seeded.next() as u32,
            _ => ((seeded.below(1 << 24) as f32 / (1 << 24) as f32 - 0.5) * 0.1).to_bits(),
        };
        (0..count).flat_map(|_| number(&mut seeded).to_le_bytes()).collect()
    };
    let cases: Vec<Vec<Vec<u8>>> =
        (0..160).map(|_| (0..4).map(|_| numbers(700)).collect()).collect();
    let mut compared = 0;
    for (i, (case, constants)) in cases.iter().zip(0u64..).enumerate() {
        let rule = Rule::ALL[i % Rule::ALL.len()];
        let constants = (0..rule.constants() as u64).map(|k| 0.9 + (constants + k) as f64 * 1e-3);
        let prediction = Prediction { rule, fused: i % 3 == 0, constants: constants.collect() };
        let of = &case[..rule.operands()];
        let operands: Vec<_> =
            of.iter().map(|bytes| Operand { hash: Hash::of(bytes), bytes }).collect();
        // Near what one of the operands is, so that it becomes smaller.
        let mut decoded = case[0].clone();
        (0..decoded.len()).step_by(if i % 2 == 0 { 4 } else { 90 }).for_each(|at| decoded[at] ^= 3);
        let width = if rule == Rule::Cast { 2 } else { 4 };
        if rule == Rule::Cast {
            // Near the upper halves.
            let upper = |part: &Vec<u8>| part.chunks(4).flat_map(|n| [n[2], n[3]]).collect();
            decoded = of.iter().flat_map::<Vec<u8>, _>(upper).collect();
        }
        let stored = delta::encode(&decoded, width, &prediction, &operands, 1).unwrap();
        let Some(stored) = stored else { continue };
        assert!(decode(&stored, of, decoded.len()) == decoded, "{prediction:?}");
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
}
