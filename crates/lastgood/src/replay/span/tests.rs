use std::sync::Arc;

use crate::journal::{JournalOptions, StepRecord};
use crate::save::Mode;
use crate::state::Durability;
use crate::{Run, RunName, RunOptions};
use lastgood_store::{LocalStore, SystemEnv};
use tempfile::TempDir;

use super::*;

const STEPS: u64 = 1000;

/// A run of a thousand small steps that is saved every `every`, and begun again after the steps `ends`: each attempt
/// goes on from the last checkpoint.
fn trained(every: u64, ends: &[u64]) -> (TempDir, Repository, RunName) {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path().join("store")).unwrap();
    let repository = Repository::create(Arc::new(store), Arc::new(SystemEnv::default())).unwrap();
    let name: RunName = "small".parse().unwrap();
    for end in ends.iter().copied().chain([STEPS]) {
        let journal = Some(JournalOptions::default());
        let options = RunOptions { journal, ..RunOptions::default() };
        let mut run = Run::open(&repository, &name, options).unwrap();
        let mut done = 0_u64;
        run.restore(&mut done, |done, to| {
            to.component("control", "test", Durability::Durable)?.value("step", done)
        })
        .unwrap();
        for step in done + 1..=end {
            run.step(StepRecord::new(step));
            if step.is_multiple_of(every) || step == STEPS {
                run.save(step, Mode::Sync, |to| {
                    to.component("control", "test", Durability::Durable)?.value("step", &step)
                })
                .unwrap();
            }
        }
        run.close().unwrap();
    }
    (folder, repository, name)
}

/// How many steps it takes to come to each step of the run.
fn costs(repository: &Repository, name: &RunName) -> Vec<u64> {
    let ledger = repository.existing(name).unwrap();
    let cost = |to| {
        let ends = (None, &Selector::Step(to));
        let span = Span::find(repository, &ledger, ends, None).unwrap();
        let from = span.from.map(|id| ledger.history().checkpoint(&id).unwrap().step);
        assert_eq!((span.from_step, span.to), (from.unwrap_or(0), to));
        to - span.from_step
    };
    (1..=STEPS).map(cost).collect()
}

#[test]
fn any_of_a_thousand_steps_costs_at_most_the_steps_between_two_checkpoints() {
    for (every, ends) in [(50, &[][..]), (64, &[63, 400, 777])] {
        let (_folder, repository, name) = trained(every, ends);
        for (cost, step) in costs(&repository, &name).into_iter().zip(1..) {
            assert!((1..=every).contains(&cost), "step {step}: {cost} steps, saved every {every}");
            // Not only at most: from the nearest checkpoint before it.
            assert_eq!(cost, (step - 1) % every + 1, "step {step}");
        }
    }
}

#[test]
fn a_bad_checkpoint_is_passed_over_at_the_cost_of_the_next_interval() {
    let (_folder, repository, name) = trained(100, &[]);
    let mut ledger = repository.existing(&name).unwrap();
    let id = resolve(ledger.history(), &Selector::Step(500)).unwrap().id;
    let writer = crate::ledger::Writer { attempt: 0, actor: "test".into() };
    repository.block_on(crate::mark(&mut ledger, &writer, &id, Standing::Bad, "damaged")).unwrap();
    for (cost, step) in costs(&repository, &name).into_iter().zip(1..) {
        let passed = if (501..=600).contains(&step) { 100 } else { 0 };
        assert_eq!(cost, (step - 1) % 100 + 1 + passed, "step {step}");
    }
}
