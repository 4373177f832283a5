use super::*;

#[test]
fn it_is_xoshiro256_plus_plus() {
    // The first outputs for the state 1, 2, 3, 4, as the authors' C code and the crate
    // `rand_xoshiro` give them.
    let mut state = [1, 2, 3, 4];
    let mut rng = Rng(&mut state);
    let found: [u64; 4] = std::array::from_fn(|_| rng.next());
    assert_eq!(found, [41943041, 58720359, 3588806011781223, 3591011842654386]);
}

#[test]
fn streams_differ_by_seed_purpose_and_index() {
    let states = [
        seeded(1, Stream::Weights),
        seeded(2, Stream::Weights),
        seeded(1, Stream::Order(0)),
        seeded(1, Stream::Order(1)),
        seeded(1, Stream::Noise(0)),
        seeded(1, Stream::Noise(1)),
    ];
    for (i, a) in states.iter().enumerate() {
        assert!(states[..i].iter().all(|b| a != b), "stream {i} repeats another");
    }
}

#[test]
fn numbers_stay_in_their_range() {
    let mut state = seeded(7, Stream::Weights);
    let mut rng = Rng(&mut state);
    for bound in 1..2000 {
        assert!(rng.below(bound) < bound);
        assert!((0.0..1.0).contains(&rng.unit()));
    }
}
