use super::*;
use crate::demo::rng::{Stream, seeded};

fn applied(shift: f32, noise: f32, image: &[f32]) -> [f32; PIXELS] {
    let mut state = seeded(1, Stream::Noise(0));
    let mut target = [0.0; PIXELS];
    Augmentation { shift, noise }.apply(image, &mut Rng(&mut state), &mut target);
    target
}

fn dot_at(row: usize, column: usize) -> [f32; PIXELS] {
    let mut image = [0.0; PIXELS];
    image[row * SIDE + column] = 1.0;
    image
}

#[test]
fn nothing_leaves_an_image_as_it_is() {
    let image: [f32; PIXELS] = std::array::from_fn(|index| index as f32 / 64.0);
    assert_eq!(applied(0.0, 0.0, &image), image);
}

#[test]
fn a_shift_keeps_the_ink_in_the_image() {
    let moved = applied(0.5, 0.0, &dot_at(3, 4));
    assert!((moved.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    let (mut rows, mut columns) = (0.0, 0.0);
    for (index, ink) in moved.iter().enumerate() {
        rows += ink * (index / SIDE) as f32;
        columns += ink * (index % SIDE) as f32;
    }
    assert!((rows - 3.0).abs() <= 0.5 && (columns - 4.0).abs() <= 0.5, "({rows}, {columns})");
    assert!((rows, columns) != (3.0, 4.0));
}

#[test]
fn what_moves_over_the_edge_is_gone() {
    for (row, column) in [(0, 0), (0, 7), (7, 0), (7, 7)] {
        let moved = applied(1.0, 0.0, &dot_at(row, column));
        assert!(moved.iter().sum::<f32>() <= 1.0 + 1e-6);
    }
}

#[test]
fn noise_is_bounded_and_has_no_direction() {
    let noise = applied(0.0, 0.5, &[0.0; PIXELS]);
    assert!(noise.iter().all(|change| change.abs() <= 0.5));
    assert!((noise.iter().sum::<f32>() / PIXELS as f32).abs() < 0.1);
}

#[test]
fn every_image_takes_as_many_numbers() {
    let mut states = [0.0, 1.0].map(|amount| {
        let mut state = seeded(1, Stream::Noise(0));
        let augmentation = Augmentation { shift: amount, noise: amount };
        augmentation.apply(&dot_at(1, 1), &mut Rng(&mut state), &mut [0.0; PIXELS]);
        state
    });
    assert_eq!(states[0], states[1]);
    assert_ne!(Rng(&mut states[0]).next(), Rng(&mut seeded(1, Stream::Noise(0))).next());
}
