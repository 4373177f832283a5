//! What the default does: nothing on a fast store, deltas on a slow one where they pay; and every save comes back.
#![expect(clippy::disallowed_methods, reason = "a store is slow because it sleeps")]

use std::time::Duration;

use lastgood::save::{Compression, Mode, SaveOptions};
use lastgood::state::Durability;
use lastgood::{Dtype, Hash, Repository, Run, RunOptions};
use lastgood_format::chunk::Codec;

use crate::fixture::{bytes, in_memory, options, quick, read_bytes, run_name, tapped};
use crate::tap::{Act, Op, Tap};

/// A save of this size tells how fast the store is.
const BYTES: usize = 12 << 20;

fn open(repository: &Repository) -> Run {
    let save = SaveOptions { compression: Compression::Auto, ..quick() };
    let options = RunOptions { save, ..options(lastgood::state::World::ALONE, "a") };
    Run::open(repository, &run_name(), options).unwrap()
}

fn save(run: &mut Run, step: u64, data: &[u8]) -> Hash {
    let handle = run.save(step, Mode::Sync, |capture| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.tensor("w", Dtype::U8, &[data.len() as u64], data)
    });
    handle.unwrap().wait().unwrap()
}

/// A pack takes a fifth of a second, whatever its size.
fn slow(tap: &Tap) {
    tap.play(|call| {
        if call.op == Op::Put && call.key.contains("/packs/") {
            std::thread::sleep(Duration::from_millis(200));
        }
        Act::Pass
    });
}

/// What was chosen and why, and the codecs of the chunks that were written.
fn found(repository: &Repository, id: &Hash) -> (String, Vec<Codec>) {
    let ledger = repository.existing(&run_name()).unwrap();
    let contents = repository.contents(&ledger, id).unwrap();
    let why = contents.metadata().get("lastgood.compression").copied().unwrap_or_default();
    let mut codecs: Vec<Codec> =
        contents.indexes()[0].chunks.iter().map(|chunk| chunk.codec).collect();
    codecs.sort_unstable();
    codecs.dedup();
    (why.to_owned(), codecs)
}

#[test]
fn a_slow_store_gets_deltas_once_they_have_shown_to_pay() {
    let (_, tap, repository) = tapped();
    slow(&tap);
    let mut run = open(&repository);
    assert!(!run.predicts());
    let mut data = bytes(1, BYTES);
    let mut seen = Vec::new();
    for step in 1..=5 {
        // One byte in a hundred, in every chunk.
        (step as usize..BYTES).step_by(100).for_each(|at| data[at] ^= 1);
        let id = save(&mut run, step, &data);
        seen.push(found(&repository, &id));
        let target = lastgood::restore::Selector::Id(id.to_string());
        assert!(read_bytes(&repository, &target, BYTES).unwrap().1 == data, "step {step}");
    }
    assert!(run.predicts());
    let says = |i: usize, begin: &str| assert!(seen[i].0.starts_with(begin), "{i}: {}", seen[i].0);
    says(0, "off: how fast the store is is not known yet");
    says(1, "zstd:1: the store takes ");
    assert!(seen[1].0.contains("not known yet"), "{}", seen[1].0);
    assert_eq!((&seen[0].1, &seen[1].1), (&vec![Codec::Raw], &vec![Codec::Raw]));
    // The second copy is taken by the save after that.
    for later in 2..5 {
        says(later, "delta: the store takes ");
    }
    assert_eq!((&seen[2].1, &seen[4].1), (&vec![Codec::Delta], &vec![Codec::Delta]));
    run.close().unwrap();
}

#[test]
fn noise_gets_none() {
    let (_, tap, repository) = tapped();
    slow(&tap);
    let mut run = open(&repository);
    let mut last = None;
    for step in 1..=4 {
        last = Some(save(&mut run, step, &bytes(step, BYTES)));
    }
    let (why, codecs) = found(&repository, &last.unwrap());
    assert!(why.starts_with("zstd:1: ") && why.contains("not worth a second copy"), "{why}");
    assert_eq!(codecs, [Codec::Raw]);
    run.close().unwrap();
}

#[test]
fn what_was_asked_for_is_not_explained() {
    let (_, repository) = in_memory();
    let save_options = SaveOptions { compression: Compression::Zstd(1), ..quick() };
    let options = RunOptions { save: save_options, ..options(lastgood::state::World::ALONE, "a") };
    let mut run = Run::open(&repository, &run_name(), options).unwrap();
    let id = save(&mut run, 1, &bytes(1, 1 << 20));
    assert_eq!(found(&repository, &id).0, "");
}
