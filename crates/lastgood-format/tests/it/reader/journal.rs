//! The journal, read from the page alone.

use std::collections::BTreeMap;

use super::{Objects, hex};
use crate::vectors;

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Castagnoli's polynomial, bit by bit.
fn checksum(bytes: &[u8]) -> u64 {
    let mut state = u32::MAX;
    for byte in bytes {
        state ^= u32::from(*byte);
        for _ in 0..8 {
            state = state >> 1 ^ if state & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    u64::from(!state)
}

/// The head of an item of CBOR: major type, argument, and the bytes that it takes.
fn head(bytes: &[u8]) -> (u8, u64, usize) {
    let (major, short) = (bytes[0] >> 5, bytes[0] & 31);
    let width = match short {
        0..24 => return (major, u64::from(short), 1),
        _ => 1_usize << (short - 24),
    };
    assert!(width <= 8, "an indefinite length");
    let argument = bytes[1..=width].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    if major != 7 {
        let shortest = [24, 1 << 8, 1 << 16, 1 << 32][width.trailing_zeros() as usize];
        assert!(argument >= shortest, "{argument} could be shorter");
    }
    (major, argument, 1 + width)
}

/// The bytes of the item at the front.
fn item(bytes: &[u8], depth: usize) -> usize {
    assert!(depth <= 16);
    let (major, argument, mut taken) = head(bytes);
    match major {
        0 | 1 => {}
        2 | 3 => taken += argument as usize,
        4 => (0..argument).for_each(|_| taken += item(&bytes[taken..], depth + 1)),
        5 => {
            let mut before: &[u8] = &[];
            for _ in 0..argument {
                let key = &bytes[taken..taken + item(&bytes[taken..], depth + 1)];
                assert!(key[0] >> 5 == 3 && key > before, "keys are text and rise");
                before = key;
                taken += key.len();
                taken += item(&bytes[taken..], depth + 1);
            }
        }
        _ => assert!([0xf4, 0xf5, 0xf6, 0xfa, 0xfb].contains(&bytes[0]), "major type {major}"),
    }
    taken
}

/// Reads a segment, and gives where it begins and ends: the numbers and hashes, and the kinds of its frames.
fn segment(stored: &[u8], lane: u64) -> ((u64, String), (u64, String), Vec<u64>) {
    assert_eq!(&stored[..8], b"LGJSEGM\0");
    assert_eq!((number(stored, 8, 4), number(stored, 12, 4), number(stored, 16, 8)), (1, lane, 1));
    let hash =
        |at: usize| blake3::Hash::from_slice(&stored[at..at + 32]).unwrap().to_hex().to_string();
    assert_eq!(hash(136), hex(&stored[..136]));
    let frames = &stored[168..];
    assert_eq!(number(stored, 64, 8), frames.len() as u64);
    let (mut at, mut prev, mut next) = (0, hash(72), number(stored, 24, 8));
    let (mut kinds, mut steps) = (Vec::new(), Vec::new());
    while at < frames.len() {
        let frame = &frames[at..];
        assert_eq!(&frame[..4], b"LGJF");
        assert_eq!((number(frame, 4, 2), number(frame, 12, 4), number(frame, 16, 8)), (1, lane, 1));
        assert_eq!(number(frame, 24, 8), next);
        assert_eq!(blake3::Hash::from_slice(&frame[48..80]).unwrap().to_hex().to_string(), prev);
        let end = 80 + number(frame, 8, 4) as usize;
        assert_eq!(number(frame, end, 4), checksum(&frame[..end]));
        assert_eq!(item(&frame[80..end], 0), end - 80);
        kinds.push(number(frame, 6, 2));
        steps.push(number(frame, 32, 8));
        (prev, next, at) = (hex(&frame[..end]), next + 1, at + end + 4);
    }
    assert_eq!((number(stored, 32, 8), hash(104)), (next, prev.clone()));
    let least_and_greatest = (*steps.iter().min().unwrap(), *steps.iter().max().unwrap());
    assert_eq!((number(stored, 40, 8), number(stored, 48, 8)), least_and_greatest);
    let rewound = kinds.iter().filter(|kind| **kind == 17).count();
    assert_eq!(number(stored, 56, 8), rewound as u64);
    ((number(stored, 24, 8), hash(72)), (next, prev), kinds)
}

#[test]
fn the_second_reader_follows_every_lane() {
    let objects: Objects = vectors::repository();
    let id = "0123456789abcdef0011223344556677";
    assert!(String::from_utf8_lossy(&objects["lastgood.json"]).contains(id));
    let mut ends = BTreeMap::new();
    let mut kinds = Vec::new();
    for (key, stored) in &objects {
        let Some(name) = key.strip_prefix("runs/demo/journal/1/") else { continue };
        let (lane, first) = name.split_once('/').unwrap();
        let lane = if lane == "control" { 0 } else { lane.parse::<u64>().unwrap() + 1 };
        let (begin, end, found) = segment(stored, lane);
        assert_eq!(first, format!("{:020}.seg", begin.0));
        let genesis = [
            &b"lastgood journal 1\0"[..],
            id.as_bytes(),
            b"\0demo\0",
            &1u64.to_le_bytes(),
            &(lane as u32).to_le_bytes(),
        ];
        let before = ends.insert(lane, end).unwrap_or((0, hex(&genesis.concat())));
        assert_eq!(begin, before, "{key}");
        kinds.extend(found);
    }
    assert_eq!(ends.values().map(|(next, _)| *next).collect::<Vec<_>>(), [4, 20]);
    assert!((1..=19).chain([9_999]).all(|kind| kinds.contains(&kind)));
}
