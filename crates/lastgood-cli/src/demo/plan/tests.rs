use super::*;

#[test]
fn every_kill_of_every_seed_can_come() {
    for seed in 0..300 {
        for (kills, steps, every) in
            [(0, 300, 5), (1, 15, 5), (5, 300, 5), (58, 300, 5), (7, 90, 10)]
        {
            assert!(u64::from(kills) <= kills_max(steps, every));
            let plan = plan(seed, kills, |_| 4, steps, every);
            assert_eq!(plan.len(), kills as usize);
            let mut saved = 0;
            for kill in &plan {
                assert!(kill.rank < 4);
                let step = kill.at.step();
                let save = step / every;
                assert!(save > saved && step < steps, "{plan:?}");
                saved = save;
                if let Moment::Save(pause) = kill.at {
                    assert!(pause.step % every == 0 && (pause.put as usize) < PUTS);
                }
            }
            let inside = plan.iter().filter(|kill| matches!(kill.at, Moment::Save(_))).count();
            assert_eq!(inside, plan.len().div_ceil(2));
        }
    }
}

#[test]
fn a_plan_is_a_function_of_its_seed() {
    assert_eq!(plan(7, 5, |_| 4, 300, 5), plan(7, 5, |_| 4, 300, 5));
    assert_ne!(plan(7, 5, |_| 4, 300, 5), plan(8, 5, |_| 4, 300, 5));
}

#[test]
fn a_rank_that_is_not_there_any_more_is_not_killed() {
    for seed in 0..300 {
        let plan = plan(seed, 6, |killed| left(4, killed), 300, 5);
        for (kill, ranks) in plan.iter().zip([4, 3, 2, 1, 1, 1]) {
            assert!(kill.rank < ranks, "{plan:?}");
        }
    }
}
