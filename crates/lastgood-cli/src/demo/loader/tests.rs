use super::*;

const START: LoaderState = LoaderState { seed: 7, epoch: 0, position: 0 };

#[test]
fn every_epoch_covers_each_sample_once() {
    for (samples, batch) in [(1437, 128), (10, 3), (10, 10), (5, 12), (1, 1)] {
        let mut loader = Loader::new(samples);
        let mut state = START;
        let mut given = Vec::new();
        while given.len() < 4 * samples {
            given.extend(loader.next(&mut state, batch));
        }
        for (epoch, given) in given.chunks_exact(samples).enumerate() {
            let mut sorted = given.to_vec();
            sorted.sort_unstable();
            let expected: Vec<usize> = (0..samples).collect();
            assert_eq!(sorted, expected, "{samples} samples by {batch}, epoch {epoch}");
        }
    }
}

#[test]
fn epochs_and_seeds_have_orders_of_their_own() {
    assert_ne!(shuffled(7, 0, 100), shuffled(7, 1, 100));
    assert_ne!(shuffled(7, 0, 100), shuffled(8, 0, 100));
    assert_eq!(shuffled(7, 3, 100), shuffled(7, 3, 100));
}

#[test]
fn a_new_loader_goes_on_from_a_saved_state() {
    let (mut first, mut state) = (Loader::new(100), START);
    for _ in 0..9 {
        first.next(&mut state, 32);
    }
    let mut saved = state;
    let mut second = Loader::new(100);
    for _ in 0..9 {
        assert_eq!(first.next(&mut state, 32), second.next(&mut saved, 32));
        assert_eq!(state, saved);
    }
}

#[test]
fn a_state_beyond_the_data_begins_the_next_epoch() {
    let mut state = LoaderState { position: u64::MAX, ..START };
    assert_eq!(Loader::new(10).next(&mut state, 10), shuffled(7, 1, 10));
    assert_eq!(state, LoaderState { epoch: 1, position: 10, ..START });
}
