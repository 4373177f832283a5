//! Many tensors, many shards, many saves: what they cost grows no faster than they do.
#![expect(clippy::disallowed_methods, reason = "measures time, and asks how much is wanted")]

use std::time::{Duration, Instant};

use lastgood::save::Mode;
use lastgood::state::{Durability, Targets};
use lastgood::{Dtype, Repository, Result};

use crate::fixture::{bytes, in_memory, open_alone};

const WIDTH: usize = 64;

fn name(i: usize) -> String {
    format!("model.layers.{}.experts.{}.weight_scale", i / 128, i % 128)
}

struct Cost {
    capture: Duration,
    save: Duration,
    restore: Duration,
    index_bytes: usize,
    objects: usize,
}

/// Saves and restores `count` tensors of 64 bytes, every fourth of them tied to the one before.
fn cost(count: usize) -> Cost {
    let (store, repository) = in_memory();
    let data = bytes(1, count * WIDTH);
    let names: Vec<String> = (0..count).map(name).collect();
    let mut run = open_alone(&repository, "save");
    let begin = Instant::now();
    let mut capture = Duration::ZERO;
    let handle = run.save(1, Mode::Async, |to| {
        let mut part = to.component("m", "t", Durability::Durable)?;
        for (i, name) in names.iter().enumerate() {
            match i % 4 {
                3 => part.tied(name, &names[i - 1])?,
                _ => part.tensor(name, Dtype::F32, &[16], &data[i * WIDTH..(i + 1) * WIDTH])?,
            }
        }
        Ok(())
    });
    let handle = handle.unwrap();
    capture += begin.elapsed();
    handle.wait().unwrap();
    let save = begin.elapsed();
    run.close().unwrap();
    let index = store.keys().into_iter().find(|key| key.ends_with(".idx")).unwrap();
    let begin = Instant::now();
    let found = restored(&repository, &names).unwrap();
    let restore = begin.elapsed();
    for (i, found) in found.chunks(WIDTH).enumerate() {
        let of = if i % 4 == 3 { i - 1 } else { i };
        assert!(found == &data[of * WIDTH..(of + 1) * WIDTH], "tensor {i}");
    }
    let index_bytes = store.peek(&index).unwrap().len();
    Cost { capture, save, restore, index_bytes, objects: store.keys().len() }
}

fn restored(repository: &Repository, names: &[String]) -> Result<Vec<u8>> {
    let mut found = vec![0xee; names.len() * WIDTH];
    let mut run = open_alone(repository, "restore");
    run.restore(found.as_mut_slice(), |found, targets: &mut Targets<'_>| {
        let mut slots = targets.component("m", "t", Durability::Durable)?;
        for (name, memory) in names.iter().zip(found.chunks_mut(WIDTH)) {
            slots.tensor(name, Dtype::F32, &[16], memory)?;
        }
        Ok(())
    })?;
    Ok(found)
}

fn report(count: usize) -> Duration {
    let cost = cost(count);
    let each = |time: Duration| time.as_nanos() / count as u128;
    println!(
        "{count} tensors of 64 bytes: the call {} ns, save {} ns, restore {} ns each; {:.1} bytes of \
         index each; {} objects",
        each(cost.capture),
        each(cost.save),
        each(cost.restore),
        cost.index_bytes as f64 / count as f64,
        cost.objects
    );
    assert!(cost.objects < 12, "{} objects", cost.objects);
    assert!(cost.index_bytes < 40 * count, "{} bytes of index", cost.index_bytes);
    cost.save + cost.restore
}

#[test]
fn a_hundred_thousand_small_tensors_and_a_million_if_asked_for() {
    let few = report(10_000);
    let more = report(100_000);
    // Ten times as many in ten times the time: a hundred would be quadratic. The machine may be busy.
    assert!(more < 40 * few.max(Duration::from_millis(50)), "{few:?}, then {more:?}");
    if std::env::var("LASTGOOD_SLOW").is_ok_and(|slow| slow == "1") {
        let million = report(1_000_000);
        assert!(million < 40 * more, "{more:?}, then {million:?}");
    }
}

#[test]
fn a_tensor_in_many_shards() {
    use lastgood_format::layout::NdBox;
    let time = |side: u64| {
        let (_store, repository) = in_memory();
        let data = bytes(1, (side * side) as usize);
        let mut run = open_alone(&repository, "save");
        let begin = Instant::now();
        run.save(1, Mode::Sync, |to| {
            let mut part = to.component("m", "t", Durability::Durable)?;
            for i in 0..side * side {
                let at = NdBox { offsets: vec![i / side, i % side], sizes: vec![1, 1] };
                part.shard("w", Dtype::U8, &[side, side], at, &data[i as usize..][..1])?;
            }
            Ok(())
        })
        .unwrap();
        let mut run = open_alone(&repository, "restore");
        let mut found = vec![0; data.len()];
        run.restore(found.as_mut_slice(), |found, targets: &mut Targets<'_>| {
            let mut slots = targets.component("m", "t", Durability::Durable)?;
            slots.tensor("w", Dtype::U8, &[side, side], found)
        })
        .unwrap();
        assert!(found == data);
        begin.elapsed()
    };
    let (few, more) = (time(30), time(120));
    println!("900 shards in {few:?}, 14400 in {more:?}");
    assert!(more < 160 * few.max(Duration::from_millis(10)), "{few:?}, then {more:?}");
}
