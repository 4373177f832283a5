//! Values, frames and segments of the journal: round trips, the one way to write, torn ends, hostile bytes.

use allocation_counter::measure;
use lastgood_format::journal::frame::{self, Next};
use lastgood_format::journal::tail::{self, Owner};
use lastgood_format::journal::{
    Cut, Frame, Lane, LaneName, Position, Segment, Value, genesis, segment, value,
};
use lastgood_format::{ErrorKind, Hash};
use proptest::prelude::*;

use crate::corpus;
use crate::seeded::Seeded;

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u32>().prop_map(|bits| Value::from(f32::from_bits(bits))),
        any::<u64>().prop_map(|bits| Value::from(f64::from_bits(bits))),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(".{0,30}", inner, 0..6).prop_map(Value::from),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(value in any_value()) {
        let bytes = value.encode().unwrap();
        prop_assert_eq!(Value::decode(&bytes).unwrap(), value);
    }

    /// Whatever is read is written the same again: there is one way.
    #[test]
    fn there_is_one_way(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
        if let Ok(value) = Value::decode(&bytes) {
            prop_assert_eq!(value.encode().unwrap(), bytes);
        }
    }
}

/// A flipped bit of a value gives an error or another value, never the same.
#[test]
fn every_flipped_bit_of_a_value_is_another_value() {
    let value = corpus::value();
    let bytes = value.encode().unwrap();
    let mut read = 0;
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Value::decode(&damaged) {
            assert!(other != value, "bit {bit}");
            read += 1;
        }
    }
    assert!(read > 200, "{read}: numbers and text are free");
}

#[test]
fn other_ways_to_write_are_refused() {
    let cases: [(&str, &[u8]); 13] = [
        ("a long 0", &[0x18, 0]),
        ("a long 23", &[0x18, 23]),
        ("a long -1", &[0x38, 0]),
        ("a long text", &[0x78, 1, b'a']),
        ("an indefinite array", &[0x9f, 0xff]),
        ("an indefinite map", &[0xbf, 0xff]),
        ("keys that fall", &[0xa2, 0x61, b'b', 0, 0x61, b'a', 0]),
        ("a key twice", &[0xa2, 0x61, b'a', 0, 0x61, b'a', 0]),
        ("a key that is no text", &[0xa1, 0, 0]),
        ("a binary16", &[0xf9, 0x3c, 0]),
        ("undefined", &[0xf7]),
        ("a tag", &[0xc0, 0x60]),
        ("two items", &[0, 0]),
    ];
    for (what, bytes) in cases {
        let error = Value::decode(bytes).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
    }
    assert!(Value::decode(&[0xa2, 0x61, b'b', 0, 0x62, b'a', b'a', 0]).is_ok());
}

#[test]
fn nesting_has_an_end() {
    let nested = |depth| (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
    let deepest = nested(value::DEPTH_MAX).encode().unwrap();
    assert!(Value::decode(&deepest).is_ok());
    assert_eq!(nested(value::DEPTH_MAX + 1).encode().unwrap_err().kind(), ErrorKind::Invalid);
    let deeper = [&[0x81][..], &deepest].concat();
    assert_eq!(Value::decode(&deeper).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(Value::decode(&[0x81; 100_000]).is_err());
}

/// Counts and lengths that cannot be there make no room.
#[test]
fn absurd_counts_allocate_nothing() {
    for head in [0x5b, 0x7b, 0x9b, 0xbb] {
        let bytes = [&[head][..], &[0xff; 8], &[0; 64]].concat();
        let memory = measure(|| assert!(Value::decode(&bytes).is_err()));
        assert!(memory.bytes_max < 4096, "{head:x}: {}", memory.bytes_max);
    }
    let mut frame = Vec::new();
    corpus::frames(Lane::CONTROL)[0].encode(&mut frame).unwrap();
    frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let memory = measure(|| assert!(matches!(Frame::next(&frame), Next::Torn(_))));
    assert!(memory.bytes_max < 4096, "{}", memory.bytes_max);
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        frame.encode(&mut bytes).unwrap();
    }
    bytes
}

/// Cut anywhere, an open segment gives exactly the frames that are whole.
#[test]
fn a_torn_end_is_cut_at_the_last_whole_frame() {
    let frames = corpus::frames(Lane::CONTROL);
    let bytes = encoded(&frames);
    let size = bytes.len() / frames.len();
    for length in 0..=bytes.len() {
        let scan = tail::scan(1, &bytes[..length]).unwrap();
        let whole = length / size;
        let found = scan.lanes.get(&Lane::CONTROL).map_or(0, |stretch| stretch.frames.len());
        assert_eq!(found, whole, "cut at {length}");
        let left = scan.left.map_or(0, |left| {
            assert!(!left.holds_frames);
            left.bytes
        });
        assert_eq!(left, length - whole * size);
    }
}

/// Damage before the end cuts there too, and is told from a torn end.
#[test]
fn damage_in_an_open_segment_is_told_from_a_torn_end() {
    let frames = corpus::frames(Lane::CONTROL);
    let bytes = encoded(&frames);
    let size = bytes.len() / frames.len();
    let mut seeded = Seeded(3);
    for _ in 0..500 {
        let at = seeded.below(bytes.len() as u64) as usize;
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << seeded.below(8);
        let Ok(scan) = tail::scan(1, &damaged) else {
            assert_eq!(at % size / 2, 2, "only a version of the future is refused");
            continue;
        };
        let found = scan.lanes.get(&Lane::CONTROL).map_or(0, |stretch| stretch.frames.len());
        assert_eq!(found, at / size);
        let left = scan.left.unwrap();
        assert_eq!(left.holds_frames, at / size + 1 < frames.len(), "byte {at}");
    }
}

#[test]
fn lanes_in_one_open_segment_are_chains_of_their_own() {
    let [a, b] = [Lane::CONTROL, Lane::of_rank(3).unwrap()].map(corpus::frames);
    let mixed: Vec<Frame> = a.iter().zip(&b).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let scan = tail::scan(1, &encoded(&mixed)).unwrap();
    assert_eq!(scan.left, None);
    let counts: Vec<_> = scan.lanes.values().map(|stretch| stretch.frames.len()).collect();
    assert_eq!(counts, [a.len(), b.len()]);
    // One that is left out, or exchanged, or of another attempt, ends the chain.
    let without = [&a[..2], &a[3..]].concat();
    assert_eq!(tail::scan(1, &encoded(&without)).unwrap().lanes[&Lane::CONTROL].frames.len(), 2);
    let mut exchanged = a.clone();
    exchanged[2].payload = Value::Null.encode().unwrap();
    assert_eq!(tail::scan(1, &encoded(&exchanged)).unwrap().lanes[&Lane::CONTROL].frames.len(), 3);
    assert!(tail::scan(2, &encoded(&a)).unwrap().lanes.is_empty());
}

#[test]
fn the_head_of_an_open_segment_says_whose_it_is() {
    let owner = Owner { repository: "ab".repeat(16), run: corpus::run(), attempt: 7 };
    let head = owner.encode();
    let bytes = [&head[..], b"rest"].concat();
    assert_eq!(Owner::decode(&bytes).unwrap(), (owner, &b"rest"[..]));
    for length in 0..head.len() {
        assert_eq!(Owner::decode(&head[..length]).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    for bit in 0..head.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Owner::decode(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn a_segment_is_read_only_where_it_belongs() {
    let lane = Lane::of_rank(0).unwrap();
    let frames = corpus::frames(lane);
    let begin = Position { next: 0, head: frames[0].prev };
    let stored = Segment::encode(1, lane, begin, &encoded(&frames)).unwrap();
    let read = Segment::decode(&stored, 1, lane).unwrap();
    assert_eq!(read.frames, frames);
    assert_eq!((read.header.begin, *read.header.steps.end()), (begin, frames.last().unwrap().step));
    assert_eq!(read.header.rewinds, 1);
    assert!(Segment::decode(&stored, 2, lane).is_err());
    assert!(Segment::decode(&stored, 1, Lane::CONTROL).is_err());
    // What does not follow cannot be written.
    for (begin, frames) in [
        (Position { next: 1, ..begin }, &frames[..]),
        (Position { head: Hash::of(b""), ..begin }, &frames[..]),
        (begin, &frames[1..]),
        (begin, &[][..]),
    ] {
        assert!(Segment::encode(1, lane, begin, &encoded(frames)).is_err());
    }
}

#[test]
fn an_event_has_a_largest_size() {
    let mut frame = corpus::frames(Lane::CONTROL)[0].clone();
    let bytes = |count: usize| Value::Bytes(vec![7; count]).encode().unwrap();
    frame.payload = bytes(frame::PAYLOAD_BYTES_MAX - 5);
    assert_eq!(frame.payload.len(), frame::PAYLOAD_BYTES_MAX);
    let stored = encoded(&[frame.clone()]);
    assert!(matches!(Frame::next(&stored), Next::Frame(..)));
    let begin = Position { next: 0, head: frame.prev };
    let sealed = Segment::encode(1, Lane::CONTROL, begin, &stored).unwrap();
    assert!(sealed.len() as u64 <= segment::BYTES_MAX);
    frame.payload = bytes(frame::PAYLOAD_BYTES_MAX - 4);
    assert_eq!(frame.encode(&mut Vec::new()).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_cut_is_json() {
    let position = Position { next: 3, head: Hash::of(b"x") };
    let lanes = [Lane::CONTROL, Lane::of_rank(12).unwrap()].map(|lane| (LaneName(lane), position));
    let cut = Cut { attempt: 4, lanes: lanes.into() };
    let text = cut.encode().unwrap();
    let expected = serde_json::json!({"attempt": 4, "lanes": {
        "control": {"next": 3, "head": Hash::of(b"x").to_string()},
        "12": {"next": 3, "head": Hash::of(b"x").to_string()},
    }});
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
    assert_eq!(Cut::decode(&text).unwrap(), cut);
    for wrong in ["{}", "[]", "{\"attempt\":1,\"lanes\":{\"01\":{\"next\":0}}}"] {
        assert_eq!(Cut::decode(wrong).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

/// The genesis binds a lane to its repository, run, attempt and number.
#[test]
fn no_two_lanes_begin_alike() {
    let run = corpus::run();
    let other = "other".parse().unwrap();
    let rank = Lane::of_rank(0).unwrap();
    let all = [
        genesis("a", &run, 1, rank),
        genesis("b", &run, 1, rank),
        genesis("a", &other, 1, rank),
        genesis("a", &run, 2, rank),
        genesis("a", &run, 1, Lane::CONTROL),
    ];
    assert_eq!(std::collections::BTreeSet::from(all).len(), all.len());
}
