//! A training state of several ranks comes back byte for byte, on any number of ranks.

use lastgood::Repository;
use lastgood::save::Mode;
use lastgood::state::World;

use crate::fixture::{Model, in_folder, in_memory, open};

fn save_in_threads(repository: &Repository, size: u32, seed: u64, mode: Mode) {
    std::thread::scope(|scope| {
        for rank in 0..size {
            scope.spawn(move || {
                let world = World { rank, size };
                let mut run = open(repository, world, &format!("save {seed} of {size}"));
                let model = Model::at(seed, world);
                let handle = run.save(seed, mode, |capture| model.capture(capture)).unwrap();
                drop(model);
                handle.wait().unwrap();
                run.close().unwrap();
            });
        }
    });
}

fn check_restore(repository: &Repository, size: u32, seed: u64, saved_by: u32) {
    for rank in 0..size {
        let world = World { rank, size };
        let mut run = open(repository, world, &format!("restore {seed} of {size}"));
        let mut model = Model::blank(world);
        let restored = run
            .restore(&mut model, |model, targets| {
                if saved_by != size {
                    targets.partial();
                }
                model.targets(targets, world)
            })
            .unwrap()
            .unwrap();
        assert_eq!(restored.step, seed);
        assert_eq!(restored.world_size, saved_by);
        assert!(restored.notices.is_empty(), "{:?}", restored.notices);
        assert!(model == Model::at(seed, world), "rank {rank} of {size} differs");
    }
}

#[test]
fn one_rank_sync_and_async_in_memory_and_in_a_folder() {
    let (_store, memory) = in_memory();
    let (_folder, local) = in_folder();
    for repository in [&memory, &local] {
        for (seed, mode) in [(1, Mode::Sync), (2, Mode::Async)] {
            save_in_threads(repository, 1, seed, mode);
            check_restore(repository, 1, seed, 1);
        }
    }
}

#[test]
fn many_ranks_and_other_numbers_of_ranks() {
    let (_folder, repository) = in_folder();
    save_in_threads(&repository, 4, 7, Mode::Async);
    for size in [4, 3, 2, 1] {
        check_restore(&repository, size, 7, 4);
    }
}
