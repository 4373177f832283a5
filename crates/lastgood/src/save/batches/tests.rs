use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use super::super::arena::Arena;
use super::super::plan::Plan;
use super::*;
use crate::state::{Capture, Durability, World};

const MIB: usize = 1 << 20;

/// Runs `check` on the batches of a state of 70 MiB, which has two segments.
fn with_batches(encodes: bool, check: impl FnOnce(&Batches<'_>, &Plan)) {
    let data = vec![1; 70 * MIB];
    let mut capture = Capture::new(World::ALONE);
    let mut part = capture.component("m", "t", Durability::Durable).unwrap();
    part.blob("b", data.as_slice()).unwrap();
    let plan = Plan::new(&capture, MIB).unwrap();
    let (full, segments) = channel();
    Arena::new(u64::MAX, None)
        .fill(&capture, &plan, |i, s| full.send((i, s)).map_err(|_| unreachable!()))
        .unwrap();
    drop(full);
    check(&Batches::new(&plan, encodes, segments), &plan);
}

#[test]
fn every_row_is_in_one_batch_and_in_order() {
    for encodes in [false, true] {
        with_batches(encodes, |batches, plan| {
            let mut row = 0;
            for number in 0.. {
                let Some(batch) = batches.next() else { break };
                assert_eq!((batch.number, batch.rows.start), (number, row));
                assert!(batch.rows.len() * MIB <= BATCH_BYTES);
                let segment = plan.rows[row].segment;
                assert!(plan.rows[batch.rows.clone()].iter().all(|row| row.segment == segment));
                row = batch.rows.end;
                batches.packed(&batch);
            }
            assert_eq!(row, plan.rows.len());
        });
    }
}

#[test]
fn nobody_runs_ahead_of_a_batch_that_is_held_up() {
    with_batches(true, |batches, _| {
        let held_up = batches.next().unwrap();
        thread::scope(|scope| {
            let (taken, numbers) = channel();
            scope.spawn(move || {
                while let Some(batch) = batches.next() {
                    taken.send(batch.number).unwrap();
                }
            });
            let soon = Duration::from_millis(200);
            let last = AHEAD_BYTES / BATCH_BYTES - 1;
            for number in 1..=last {
                assert_eq!(numbers.recv().unwrap(), number);
            }
            assert!(numbers.recv_timeout(soon).is_err(), "there was no room for it");
            batches.packed(&held_up);
            assert_eq!(numbers.recv().unwrap(), last + 1);
            assert!(numbers.recv_timeout(soon).is_err(), "there was room for one");
            // After a failure nothing is held up, so that the capture comes to its end.
            batches.fail();
            assert_eq!(numbers.iter().last(), Some(34));
        });
    });
}
