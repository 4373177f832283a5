use super::*;

#[test]
fn the_rate_rises_and_falls() {
    let schedule = Schedule { peak: 0.01, warmup: 10, steps: 110 };
    let rates: Vec<f32> = (0..=120).map(|step| schedule.rate(step)).collect();
    assert!(rates[..=10].is_sorted() && rates[10..].is_sorted_by(|a, b| a >= b));
    assert!((rates[0] - 0.01 / 11.0).abs() < 1e-9, "a first step of rate 0 would be lost");
    assert_eq!(rates[10], 0.01);
    assert!((rates[60] - 0.005).abs() < 1e-7);
    assert_eq!(rates[110..], [0.0; 11]);
}

#[test]
fn a_schedule_without_steps_is_no_division_by_zero() {
    for schedule in
        [Schedule { peak: 0.01, warmup: 0, steps: 0 }, Schedule { peak: 0.01, warmup: 5, steps: 2 }]
    {
        assert!((0..10).all(|step| schedule.rate(step).is_finite()));
    }
}

#[test]
fn the_first_step_has_the_size_of_the_rate() {
    // After the correction the first direction is the sign of the gradient, whatever its size.
    let mut optimizer = AdamW::new(vec![0.0; 3]);
    let mut weights = [1.0, 1.0, 1.0];
    optimizer.update(0, 0.1, &[1e-3, -5.0, 0.0], &mut weights);
    for (found, expected) in weights.iter().zip([0.9, 1.1, 1.0]) {
        assert!((found - expected).abs() < 1e-5);
    }
}

#[test]
fn decay_shrinks_only_what_it_is_set_for() {
    let mut optimizer = AdamW::new(vec![0.5, 0.0]);
    let mut weights = [2.0, 2.0];
    optimizer.update(0, 0.1, &[0.0, 0.0], &mut weights);
    assert_eq!(weights, [1.9, 2.0]);
}

#[test]
fn shares_are_updated_as_the_whole_is() {
    let gradient: Vec<f32> = (0..10).map(|i| i as f32 - 4.5).collect();
    let mut whole = (AdamW::new(vec![0.01; 10]), vec![1.0; 10]);
    let mut low = (AdamW::new(vec![0.01; 4]), vec![1.0; 4]);
    let mut high = (AdamW::new(vec![0.01; 6]), vec![1.0; 6]);
    for step in 0..5 {
        whole.0.update(step, 0.1, &gradient, &mut whole.1);
        low.0.update(step, 0.1, &gradient[..4], &mut low.1);
        high.0.update(step, 0.1, &gradient[4..], &mut high.1);
    }
    assert_eq!(whole.1, [low.1, high.1].concat());
    assert_eq!(whole.0.v, [low.0.v, high.0.v].concat());
}
