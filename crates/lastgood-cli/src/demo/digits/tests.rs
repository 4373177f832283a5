use super::*;

#[test]
fn samples_are_split_and_in_range() {
    let (training, test) = Digits::load().unwrap();
    assert_eq!((training.len(), test.len()), (1437, 360));
    for digits in [&training, &test] {
        let mut seen = [0; CLASSES];
        for index in 0..digits.len() {
            let (image, label) = digits.sample(index);
            assert_eq!(image.len(), PIXELS);
            assert!(image.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
            seen[label] += 1;
        }
        // Each digit is about a tenth of the samples.
        let tenth = digits.len() / CLASSES;
        assert!(seen.iter().all(|count| (tenth * 8 / 10..tenth * 12 / 10).contains(count)));
    }
}

#[test]
fn the_first_sample_is_a_zero() {
    let (training, _) = Digits::load().unwrap();
    let (image, label) = training.sample(0);
    let first_row = [0.0, 0.0, 5.0, 13.0, 9.0, 1.0, 0.0, 0.0].map(|ink| ink / 16.0);
    assert_eq!((&image[..8], label), (&first_row[..], 0));
}
