use super::*;

/// The steps of the checkpoints of a run of `steps` steps, by what each of several programs would save.
fn runs(steps: u64) -> Vec<Vec<u64>> {
    let every = |n: u64| (1..=steps).filter(move |step| step % n == 0 || *step == steps);
    let early = (1..=steps).filter(|step| *step <= steps / 2 || *step == steps);
    let late = (1..=steps).filter(|step| *step > steps / 2);
    let rare = (0..64).map(|i| 1_u64 << i).take_while(|step| *step < steps).chain([steps]);
    let mut runs: Vec<Vec<u64>> =
        [1, 2, 3, 7, 50, steps].into_iter().map(|n| every(n).collect()).collect();
    runs.extend([early.collect(), late.collect(), rare.collect()]);
    runs
}

/// Executes until the step `parts` is in what was executed; gives the executions, that of the element with them.
fn search(checkpoints: &[u64], steps: u64, parts: u64) -> u32 {
    let (mut executions, mut from) = (0, 0);
    for end in ends(checkpoints.len(), steps) {
        let to = checkpoints[end - 1];
        assert!(to > from, "every execution has steps to do, and none does those of another");
        executions += 1;
        if (from + 1..=to).contains(&parts) {
            return executions + 1;
        }
        from = to;
    }
    assert_eq!(from, steps, "all steps were executed");
    executions
}

#[test]
fn a_search_takes_at_most_as_many_executions_as_the_steps_can_be_halved() {
    let sizes = (1..=300).chain([511, 512, 513, 1000, 4095, 4096, 4097, 10_000]);
    for steps in sizes {
        let bound = (steps as f64).log2().ceil().max(2.0) as u32;
        assert_eq!(executions_max(steps), bound, "{steps} steps");
        for checkpoints in runs(steps) {
            let places = if steps <= 300 { 1 } else { 61 };
            // The last one is nowhere: nothing parts.
            for parts in (1..=steps).step_by(places).chain([steps, steps + 1]) {
                let executions = search(&checkpoints, steps, parts);
                assert!(
                    executions <= bound,
                    "{executions} executions of {steps} steps with {} checkpoints, part at {parts}",
                    checkpoints.len()
                );
            }
        }
    }
}

#[test]
fn the_first_executions_are_short_and_the_last_goes_to_the_end() {
    assert_eq!(ends(1, 1000), [1]);
    assert_eq!(ends(20, 1000), [1, 5, 20]);
    assert_eq!(ends(1000, 1000), [1, 5, 21, 85, 341, 1000]);
    // Eight steps can be halved three times: two executions, and one for the element.
    assert_eq!(ends(8, 8), [1, 8]);
    assert_eq!(ends(2, 2), [2]);
    assert!(ends(0, 10).is_empty());
}

#[test]
fn a_run_without_end_has_a_bound_too() {
    assert_eq!(executions_max(u64::MAX / 2), 63);
    assert_eq!(executions_max(0), 2);
}
