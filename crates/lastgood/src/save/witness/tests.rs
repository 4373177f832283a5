use super::*;
use crate::state::{Durability, World};

const MIB: usize = 1 << 20;

fn told(data: &[u8], step: u64, size: u32) -> BTreeMap<String, String> {
    let mut capture = Capture::new(World { rank: 0, size });
    let mut part = capture.component("m", "t", Durability::Durable).unwrap();
    part.blob("b", data).unwrap();
    testify(&capture, step).unwrap()
}

#[test]
fn a_rank_alone_tells_nothing() {
    assert!(told(&[1], 1, 1).is_empty());
}

#[test]
fn one_bit_anywhere_in_a_small_state_is_told() {
    let data = vec![7; 3 * MIB + 5];
    let same = told(&data, 1, 2);
    assert_eq!(same, told(&data, 1, 2));
    for at in [0, HEAD_BYTES, MIB, 3 * MIB + 4] {
        let mut other = data.clone();
        other[at] ^= 1;
        assert_ne!(same, told(&other, 1, 2), "byte {at}");
    }
}

#[test]
fn of_a_large_state_every_window_has_its_turn_and_the_head_every_time() {
    let data = vec![0; 80 * MIB];
    let (mut head, mut middle) = (data.clone(), data.clone());
    head[1] = 1;
    middle[70 * MIB] = 1;
    assert_eq!(windows(data.len() as u64), 2);
    let told_apart: Vec<bool> =
        (0..6).map(|step| told(&data, step, 2) != told(&middle, step, 2)).collect();
    assert!(told_apart.contains(&true) && told_apart.contains(&false), "{told_apart:?}");
    assert!((0..6).all(|step| told(&data, step, 2) != told(&head, step, 2)));
}

#[test]
fn text_of_somebody_else_is_not_compared() {
    assert_eq!(entries("").count(), 0);
    assert_eq!(entries("short").count(), 0);
    assert_eq!(entries(&"ü".repeat(40)).count(), 2);
    assert_eq!(entries(&"aü".repeat(40)).count(), 0);
}
