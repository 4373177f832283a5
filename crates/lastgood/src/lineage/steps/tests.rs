use super::*;

fn ranges(numbers: &[u64]) -> Vec<(u64, u64)> {
    let mut samples = Samples::new(numbers[0]);
    numbers.iter().for_each(|number| samples.add(*number));
    assert_eq!(samples.count, numbers.len() as u64);
    assert_eq!(Some(samples.least), numbers.iter().min().copied());
    assert_eq!(Some(samples.greatest), numbers.iter().max().copied());
    samples.ranges.unwrap().into_iter().collect()
}

#[test]
fn samples_become_ranges_in_any_order() {
    assert_eq!(ranges(&[3, 1, 2]), [(1, 3)]);
    assert_eq!(ranges(&[5, 7, 9, 6]), [(5, 7), (9, 9)]);
    assert_eq!(ranges(&[8, 7, 9, 8, 0]), [(0, 0), (7, 9)]);
    assert_eq!(ranges(&[u64::MAX, u64::MAX - 1]), [(u64::MAX - 1, u64::MAX)]);
}

#[test]
fn too_many_ranges_are_counted_and_not_kept() {
    let mut samples = Samples::new(0);
    (0..=KEPT_MAX as u64).for_each(|i| samples.add(2 * i));
    assert_eq!(samples.count, KEPT_MAX as u64 + 1);
    assert_eq!((samples.ranges, samples.greatest), (None, 2 * KEPT_MAX as u64));
}

#[test]
fn an_input_is_told_by_places_or_by_samples() {
    let place = |position: u64| Value::map([("position", position.into())]);
    let mut input = Input::default();
    input.add(&place(8), true);
    input.add(&place(16), false);
    input.add(&place(24), false);
    let expected = Input { from: Some(place(8)), to: Some(place(24)), samples: None };
    assert_eq!(input, expected);
    let mut input = Input::default();
    input.add(&Value::Array(vec![1_u64.into()]), true);
    input.add(&Value::Array(vec![4_u64.into(), 3_u64.into()]), false);
    let samples = input.samples.unwrap();
    assert_eq!((samples.count, samples.ranges), (2, Some([(3, 4)].into())));
    assert_eq!((input.from, input.to), (None, None));
}
