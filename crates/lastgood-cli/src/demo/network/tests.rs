use super::*;

/// Widths that are no multiples of the lanes of `dot`, and a layer that is wider than them.
const WIDTHS: [usize; 4] = [7, 19, 11, 5];

fn sample(seed: u64, label: usize) -> (Vec<f32>, usize) {
    let mut state = seeded(seed, Stream::Noise(label as u64));
    let mut rng = Rng(&mut state);
    ((0..WIDTHS[0]).map(|_| rng.unit()).collect(), label)
}

fn loss(network: &Network, flat: &[f32], (input, label): (&[f32], usize)) -> f64 {
    let mut activations = network.activations();
    network.forward(flat, input, &mut activations);
    let exps = activations.logits().iter().map(|logit| f64::from(*logit).exp());
    exps.sum::<f64>().ln() - f64::from(activations.logits()[label])
}

#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    const STEP: f32 = 1e-2;
    let network = Network::new(&WIDTHS);
    for seed in 0..5 {
        let flat = network.initial(seed);
        let (input, label) = sample(seed, seed as usize);
        let mut gradient = vec![0.0; network.len()];
        let mut activations = network.activations();
        let found = network.add_gradient(&flat, (&input, label), &mut activations, &mut gradient);
        assert!((f64::from(found) - loss(&network, &flat, (&input, label))).abs() < 1e-5);

        let mut wrong = Vec::new();
        for index in 0..flat.len() {
            let at = |step: f32| {
                let mut moved = flat.clone();
                moved[index] += step;
                loss(&network, &moved, (&input, label))
            };
            let slope = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
            if (slope - f64::from(gradient[index])).abs() > 2e-3 + 1e-2 * slope.abs() {
                wrong.push((index, slope, gradient[index]));
            }
        }
        // A step may cross the kink of a ReLU, where the slope is not one number.
        assert!(wrong.len() <= flat.len() / 50, "seed {seed}: {wrong:?}");
    }
}

#[test]
fn gradients_add_up() {
    let network = Network::new(&WIDTHS);
    let flat = network.initial(1);
    let mut activations = network.activations();
    let mut gradient_of = |samples: &[u64]| {
        let mut gradient = vec![0.0; network.len()];
        for seed in samples {
            let (input, label) = sample(*seed, 2);
            network.add_gradient(&flat, (&input, label), &mut activations, &mut gradient);
        }
        gradient
    };
    let (a, b, both) = (gradient_of(&[1]), gradient_of(&[2]), gradient_of(&[1, 2]));
    for ((a, b), both) in a.iter().zip(&b).zip(&both) {
        assert!((a + b - both).abs() <= 1e-6);
    }
}

#[test]
fn tensors_fill_the_flat_vector() {
    let network = Network::new(&[64, 96, 10]);
    let names: Vec<&str> = network.parameters().iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias"]);
    let mut end = 0;
    for parameter in network.parameters() {
        assert_eq!(parameter.range.start, end);
        assert_eq!(parameter.shape.iter().product::<u64>(), parameter.range.len() as u64);
        assert_eq!(parameter.rows_range(&(0..parameter.rows())), parameter.range);
        end = parameter.range.end;
    }
    assert_eq!(network.len(), end);
    assert_eq!(network.parameters()[2].rows_range(&(2..4)), 64 * 96 + 96 + 20..64 * 96 + 96 + 40);
}

#[test]
fn large_logits_do_not_overflow() {
    let mut slopes = [0.0; 3];
    let loss = cross_entropy(&[1e4, 0.0, -1e4], 1, &mut slopes);
    assert_eq!((loss, slopes), (1e4, [1.0, -1.0, 0.0]));
}

#[test]
fn dot_is_the_sum_of_products() {
    for length in [0, 1, 7, 8, 9, 96, 101] {
        let a: Vec<f32> = (0..length).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..length).map(|i| (i % 3) as f32).collect();
        let expected: usize = (0..length).map(|i| i * (i % 3)).sum();
        assert_eq!(dot(&a, &b), expected as f32);
    }
}
