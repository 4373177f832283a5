//! Fingerprints, compared with their definition read slowly, byte by byte.

use std::sync::LazyLock;

use lastgood_format::fingerprint::{Change, locate};
use lastgood_format::layout::NdBox;
use lastgood_format::{Dtype, ErrorKind, Fingerprint, Hash};
use proptest::prelude::*;

use crate::document;
use crate::seeded::{Seeded, seed};

const P: u128 = (1 << 107) - 1;

/// The base of the weights, from what the page says about it.
fn base() -> u128 {
    let hash = Hash::of(b"lastgood fingerprint 1");
    u128::from_le_bytes(hash.as_bytes()[..16].try_into().unwrap()) % P
}

/// `a * b`, bit by bit.
fn multiply(a: u128, b: u128) -> u128 {
    let bits = (0..107).rev().map(|i| b >> i & 1);
    let modulo = |a: u128| if a >= P { a - P } else { a };
    bits.fold(0, |sum, bit| modulo(modulo(2 * sum) + bit * a))
}

/// The base to this power.
fn power(exponent: u128) -> u128 {
    let bits = (0..107).rev().map(|i| exponent >> i & 1 == 1);
    bits.fold(1, |product, bit| {
        let square = multiply(product, product);
        if bit { multiply(square, base()) } else { square }
    })
}

/// The definition, with the weights of words 0, 1, 2, ….
fn weighed(bytes: &[u8], weights: impl IntoIterator<Item = u128>) -> Fingerprint {
    let words = bytes
        .chunks(8)
        .map(|word| word.iter().rev().fold(0u128, |number, byte| number * 256 + u128::from(*byte)));
    let sum = words.zip(weights).fold(0, |sum, (word, weight)| (sum + multiply(word, weight)) % P);
    Fingerprint::from_bytes(sum.to_be_bytes()).unwrap()
}

/// Of as many words as any tensor here has.
fn weights() -> impl Iterator<Item = u128> {
    static ALL: LazyLock<Vec<u128>> = LazyLock::new(|| {
        let next = |weight: &u128| Some(multiply(*weight, base()));
        std::iter::successors(Some(base()), next).take(16_384).collect()
    });
    ALL.iter().copied()
}

fn defined(bytes: &[u8]) -> Fingerprint {
    weighed(bytes, weights())
}

/// Every element of a box, in row-major order, as its place in the row-major order of the tensor.
fn places(shape: &[u64], extent: &NdBox) -> Vec<u64> {
    let mut all = vec![0];
    for (d, dim) in shape.iter().enumerate() {
        let range = extent.offsets[d]..extent.offsets[d] + extent.sizes[d];
        all = all.iter().flat_map(|at| range.clone().map(move |i| at * dim + i)).collect();
    }
    all
}

/// The bytes of a part, taken from the tensor's element by element, and the tensor with nothing else.
fn cut(dtype: Dtype, shape: &[u64], extent: &NdBox, whole: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let bits = dtype.bits() as usize;
    let places = places(shape, extent);
    let bit = |bytes: &[u8], i: usize| bytes[i / 8] >> (i % 8) & 1;
    let mut part = vec![0; (places.len() * bits).div_ceil(8)];
    let mut alone = vec![0; whole.len()];
    for (to, from) in places.iter().enumerate() {
        for i in 0..bits {
            let (to, from) = (to * bits + i, *from as usize * bits + i);
            part[to / 8] |= bit(whole, from) << (to % 8);
            alone[from / 8] |= bit(whole, from) << (from % 8);
        }
    }
    (part, alone)
}

/// Cuts `extent` in two along a random axis, again and again.
fn partition(seeded: &mut Seeded, extent: &NdBox, parts: u64) -> Vec<NdBox> {
    if parts < 2 || extent.sizes.is_empty() {
        return vec![extent.clone()];
    }
    let d = seeded.below(extent.sizes.len() as u64) as usize;
    let at = seeded.below(extent.sizes[d] + 1);
    let (mut low, mut high) = (extent.clone(), extent.clone());
    low.sizes[d] = at;
    high.offsets[d] += at;
    high.sizes[d] -= at;
    let parts_low = parts.div_ceil(2);
    let mut all = partition(seeded, &low, parts_low);
    all.extend(partition(seeded, &high, parts - parts_low));
    all
}

/// A part by its pieces, cut anywhere.
fn by_pieces(
    seeded: &mut Seeded,
    dtype: Dtype,
    shape: &[u64],
    extent: &NdBox,
    bytes: &[u8],
) -> Fingerprint {
    let longest = *seeded.pick(&[3, 40, 700, 9_000]);
    let (mut sum, mut at) = (Fingerprint::ZERO, 0);
    while at < bytes.len() {
        let end = bytes.len().min(at + 1 + seeded.below(longest) as usize);
        let piece = &bytes[at..end];
        sum += Fingerprint::of_piece(dtype, shape, extent, at as u64, piece).unwrap();
        at = end;
    }
    sum
}

/// All parts of one partition: each as it is defined, by its pieces, and their sum.
fn check_partition(dtype: Dtype, shape: &[u64], seed: u64, parts: u64) {
    let seeded = &mut Seeded(seed);
    let Some(size) = dtype.bytes_of(shape.iter().product()) else { return };
    let whole = seeded.bytes(size as usize);
    let all = partition(seeded, &NdBox::whole(shape), parts);
    let mut sum = Some(Fingerprint::ZERO);
    for extent in &all {
        let (part, alone) = cut(dtype, shape, extent, &whole);
        let found = Fingerprint::of_part(dtype, shape, extent, &part);
        match extent.runs_into(&NdBox::whole(shape), dtype) {
            Ok(_) => {
                let found = found.unwrap();
                assert_eq!(found, defined(&alone), "{extent} of {dtype} {shape:?}");
                assert_eq!(found, by_pieces(seeded, dtype, shape, extent, &part), "{extent}");
                sum = sum.map(|sum| sum + found);
            }
            Err(error) => {
                assert_eq!(found.unwrap_err().kind(), error.kind(), "{extent} of {dtype}");
                sum = None;
            }
        }
    }
    assert_eq!(Fingerprint::of(&whole), defined(&whole));
    assert_eq!(sum.unwrap_or(defined(&whole)), defined(&whole), "{dtype} {shape:?} in {parts}");
}

fn shapes() -> impl Strategy<Value = Vec<u64>> {
    let short = proptest::collection::vec(1u64..8, 0..5);
    prop_oneof![
        short.clone(),
        (proptest::collection::vec(1u64..5, 0..3), 1u64..400).prop_map(|(outer, inner)| [
            &outer[..],
            &[inner]
        ]
        .concat()),
        // Long enough for blocks and pairs of blocks.
        (1u64..4, 500u64..4_000).prop_map(|(outer, inner)| vec![outer, inner]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn parts_and_pieces_add_up(
        dtype in proptest::sample::select(Dtype::ALL),
        shape in shapes(),
        seed in any::<u64>(),
        parts in proptest::sample::select(&[1u64, 2, 3, 8][..]),
    ) {
        check_partition(dtype, &shape, seed, parts);
    }

    /// Wherever the bytes begin in a word, and however many they are.
    #[test]
    fn runs_of_any_length_at_any_byte(
        begin in 0usize..40, length in 0usize..20_000, seed in any::<u64>(),
    ) {
        let mut whole = vec![0; begin + length + 5];
        let bytes = Seeded(seed).bytes(length);
        whole[begin..begin + length].copy_from_slice(&bytes);
        let shape = [whole.len() as u64];
        let extent = NdBox { offsets: vec![begin as u64], sizes: vec![length as u64] };
        let found = Fingerprint::of_part(Dtype::U8, &shape, &extent, &bytes).unwrap();
        prop_assert_eq!(found, defined(&whole));
    }

    #[test]
    fn the_one_changed_word_is_found(
        words in 1usize..3_000, at in any::<u64>(), seed in any::<u64>(), bit in 0u32..64,
    ) {
        let seeded = &mut Seeded(seed);
        let old = seeded.bytes(words * 8);
        let at = at as usize % words;
        let mut new = old.clone();
        let word = &mut new[at * 8..at * 8 + 8];
        let before = u64::from_le_bytes((&*word).try_into().unwrap());
        let after = if seeded.one_in(2) { before ^ 1 << bit } else { !before };
        word.copy_from_slice(&after.to_le_bytes());
        let difference = Fingerprint::of(&new) - Fingerprint::of(&old);
        let change = Change { word: at as u64, delta: i128::from(after) - i128::from(before) };
        prop_assert_eq!(locate(difference, words as u64), Some(change));
        // Not beyond the tensor, and not where a second word changed.
        prop_assert_eq!(locate(difference, at as u64), None);
        if words > 1 {
            new[(at + 1) % words * 8] ^= 1;
            let difference = Fingerprint::of(&new) - Fingerprint::of(&old);
            prop_assert_eq!(locate(difference, words as u64), None);
        }
    }
}

#[test]
fn rows_columns_and_blocks() {
    // A shard of one column, two ranks, eight ranks; 63 and 64 bytes in each row.
    for (dtype, shape) in [
        (Dtype::U8, vec![40, 9 * 63]),
        (Dtype::U8, vec![40, 8 * 64]),
        (Dtype::Bf16, vec![33, 7]),
        (Dtype::F32, vec![16, 24]),
        (Dtype::F32, vec![3, 5, 7, 2]),
        (Dtype::F4, vec![6, 10, 4]),
        (Dtype::F6E2M3, vec![5, 8]),
    ] {
        let whole =
            Seeded(seed(11)).bytes(dtype.bytes_of(shape.iter().product()).unwrap() as usize);
        for d in 0..shape.len() {
            for ranks in [1, 2, 8] {
                let place = |rank: u64| {
                    shape[d] * rank / ranks / 4 * 4 * u64::from(rank < ranks)
                        + shape[d] * u64::from(rank == ranks)
                };
                let part = |rank| {
                    let mut extent = NdBox::whole(&shape);
                    extent.offsets[d] = place(rank);
                    extent.sizes[d] = place(rank + 1) - place(rank);
                    let (bytes, _) = cut(dtype, &shape, &extent, &whole);
                    Fingerprint::of_part(dtype, &shape, &extent, &bytes).unwrap()
                };
                let sum: Fingerprint = (0..ranks).map(part).sum();
                assert_eq!(sum, defined(&whole), "{dtype} {shape:?} {ranks} along {d}");
            }
        }
    }
}

/// What a small change makes of the fingerprint: something else.
#[test]
fn changes_are_seen() {
    let seeded = &mut Seeded(seed(12));
    let bytes = seeded.bytes(9_000);
    let print = Fingerprint::of(&bytes);
    for _ in 0..2_000 {
        let mut other = bytes.clone();
        let [a, b] = [0, 1].map(|_| seeded.below(9_000) as usize);
        match seeded.below(4) {
            0 => other[a] ^= 1 << seeded.below(8),
            1 => (0..8).for_each(|i| other.swap(a / 8 * 8 + i, b / 8 * 8 + i)),
            2 => other.rotate_left(*seeded.pick(&[1, 2, 4, 8, 4096])),
            _ => other.swap(a, b),
        }
        assert_eq!(Fingerprint::of(&other) == print, other == bytes);
    }
}

/// The tests above would find these mistakes: each is another function.
#[test]
fn near_definitions_are_others() {
    let bytes = Seeded(seed(13)).bytes(5_003);
    let right = Fingerprint::of(&bytes);
    assert_eq!(right, weighed(&bytes, weights()));
    let mut reversed = bytes.clone();
    reversed.chunks_mut(8).for_each(<[u8]>::reverse);
    let padded = [&bytes[..5_000], &[0; 5], &bytes[5_000..]].concat();
    let wrong = [
        ("from r^0 on", weighed(&bytes, std::iter::once(1).chain(weights()))),
        ("from r^2 on", weighed(&bytes, weights().skip(1))),
        (
            "one block skips a power",
            weighed(&bytes, weights().take(512).chain(weights().skip(513))),
        ),
        ("each block begins again", weighed(&bytes, weights().take(512).chain(weights()))),
        ("big-endian words", weighed(&reversed, weights())),
        ("zeros before the last bytes", weighed(&padded, weights())),
        ("no last word", weighed(&bytes[..5_000], weights())),
    ];
    for (mistake, found) in wrong {
        assert_ne!(found, right, "{mistake}");
    }
}

#[test]
fn refusals() {
    let shape = [4, 6];
    let part = |offsets: [u64; 2], sizes: [u64; 2]| NdBox {
        offsets: offsets.to_vec(),
        sizes: sizes.to_vec(),
    };
    let kind = |dtype, shape: &[u64], extent: &NdBox, at, bytes: usize| {
        let bytes = vec![1; bytes];
        Fingerprint::of_piece(dtype, shape, extent, at, &bytes).map_err(|error| error.kind())
    };
    let half = part([0, 3], [4, 3]);
    assert!(kind(Dtype::F32, &shape, &half, 0, 48).is_ok());
    assert_eq!(kind(Dtype::F32, &shape, &half, 48, 0), Ok(Fingerprint::ZERO));
    assert_eq!(kind(Dtype::F32, &shape, &half, 1, 48), Err(ErrorKind::Invalid));
    assert_eq!(kind(Dtype::F32, &shape, &half, u64::MAX, 1), Err(ErrorKind::Invalid));
    for bytes in [0, 47, 49] {
        let error = Fingerprint::of_part(Dtype::F32, &shape, &half, &vec![1; bytes]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let outside = part([0, 4], [4, 3]);
    assert_eq!(kind(Dtype::F32, &shape, &outside, 0, 1), Err(ErrorKind::Invalid));
    assert_eq!(kind(Dtype::F32, &[4], &half, 0, 1), Err(ErrorKind::Invalid));
    assert_eq!(kind(Dtype::F4, &shape, &half, 0, 1), Err(ErrorKind::Incompatible));
    assert_eq!(kind(Dtype::F4, &shape, &part([0, 0], [1, 3]), 0, 1), Err(ErrorKind::Incompatible));
    let huge = [u64::MAX, u64::MAX];
    assert_eq!(kind(Dtype::F32, &huge, &NdBox::whole(&huge), 0, 1), Err(ErrorKind::Corrupt));
    let corner = part([u64::MAX - 1, u64::MAX - 1], [1, 1]);
    assert_eq!(kind(Dtype::F32, &huge, &corner, 0, 4), Err(ErrorKind::Corrupt));
    // Nothing of something that cannot be is nothing.
    assert_eq!(kind(Dtype::F32, &huge, &part([0, 0], [0, 1]), 0, 0), Ok(Fingerprint::ZERO));
}

/// The place of a byte near the end of the largest tensor there is.
#[test]
fn far_places() {
    let shape = [1 << 29, 1 << 28];
    let extent = NdBox { offsets: vec![(1 << 29) - 2, (1 << 28) - 1], sizes: vec![2, 1] };
    let bytes = [1, 0, 0, 0, 0, 0, 0, 0];
    let found = Fingerprint::of_part(Dtype::F64, &shape, &extent, &bytes[..]);
    assert_eq!(found.unwrap_err().kind(), ErrorKind::Invalid);
    let bytes = [bytes, bytes].concat();
    let found = Fingerprint::of_part(Dtype::F64, &shape, &extent, &bytes).unwrap();
    // Words 2^57 - 2^28 - 1 and 2^57 - 1.
    let sum = (power((1 << 57) - (1 << 28)) + power(1 << 57)) % P;
    assert_eq!(found.to_bytes(), sum.to_be_bytes());
}

/// No two words of a tensor weigh the same: the order of the base is (p - 1) / 2.
#[test]
fn powers_of_the_base_repeat_late() {
    let order = (P - 1) / 2;
    let primes = [3, 107, 6_361, 69_431, 20_394_401, 28_059_810_762_433];
    assert_eq!(primes.iter().product::<u128>(), order);
    assert_eq!(power(order), 1);
    for prime in primes {
        assert_ne!(power(order / prime), 1, "{prime}");
    }
}

#[test]
fn numbers_and_text() {
    let largest = Fingerprint::from_bytes((P - 1).to_be_bytes()).unwrap();
    let one = Fingerprint::from_bytes(1u128.to_be_bytes()).unwrap();
    assert_eq!(Fingerprint::from_bytes(P.to_be_bytes()), None);
    assert_eq!(Fingerprint::from_bytes([0xff; 16]), None);
    assert_eq!(largest + one, Fingerprint::ZERO);
    assert_eq!(Fingerprint::ZERO - one, largest);
    assert_eq!(largest - largest, Fingerprint::ZERO);
    assert!(one < largest && one.to_bytes() < largest.to_bytes());
    let text = "000007fffffffffffffffffffffffffe";
    assert_eq!(largest.to_string(), text);
    assert_eq!(text.parse::<Fingerprint>().unwrap(), largest);
    assert_eq!(serde_json::to_string(&largest).unwrap(), format!("{text:?}"));
    assert_eq!(serde_json::from_str::<Fingerprint>(&format!("{text:?}")).unwrap(), largest);
    for bad in [
        "",
        "000007ffffffffffffffffffffffffff",
        "ffffffffffffffffffffffffffffffff",
        "000007FFFFFFFFFFFFFFFFFFFFFFFFFE",
        "7fffffffffffffffffffffffffe",
        "+00007fffffffffffffffffffffffffe",
        "0000007fffffffffffffffffffffffffe",
    ] {
        assert_eq!(bad.parse::<Fingerprint>().unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        assert!(serde_json::from_str::<Fingerprint>(&format!("{bad:?}")).is_err(), "{bad}");
    }
}

/// The page's vectors, which were computed with Python's integers.
#[test]
fn vectors() {
    assert!(document::PAGE.contains(&format!("`0x{:032x}`", base())));
    let count = |n: u32| (0..n).map(|i| (i % 251) as u8).collect::<Vec<u8>>();
    let shape = [3, 5];
    let columns = NdBox { offsets: vec![0, 1], sizes: vec![3, 2] };
    let rows = document::table("| vector | bytes | fingerprint |");
    for row in &rows {
        let found = match (&*row[0], row[1].split_once(" bytes")) {
            ("columns", _) => {
                Fingerprint::of_part(Dtype::F32, &shape, &columns, &count(24)).unwrap()
            }
            ("zeros", Some((n, _))) => Fingerprint::of(&vec![0; n.parse().unwrap()]),
            ("counting", Some((n, _))) => Fingerprint::of(&count(n.parse().unwrap())),
            _ => {
                let bytes = row[1].split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap());
                Fingerprint::of(&bytes.collect::<Vec<u8>>())
            }
        };
        assert_eq!(found.to_string(), row[2], "{row:?}");
    }
    assert_eq!(rows.len(), 10);
}
