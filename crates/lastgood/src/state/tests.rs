use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood_store::{MemoryStore, SystemEnv};
use serde::{Deserialize, Serialize};

use super::*;
use crate::save::Mode;
use crate::{Repository, Run, RunOptions};

fn run() -> (Repository, Run) {
    let store = Arc::new(MemoryStore::default());
    let repository = Repository::create(store, Arc::new(SystemEnv::default())).unwrap();
    let run = Run::open(&repository, &"r".parse().unwrap(), RunOptions::default()).unwrap();
    (repository, run)
}

fn floats() -> impl Iterator<Item = u64> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    })
}

#[test]
fn every_float_of_a_value_comes_back_with_its_bits() {
    let doubles: Vec<f64> =
        floats().map(f64::from_bits).filter(|x| x.is_finite()).take(50_000).collect();
    let singles: Vec<f32> = floats()
        .map(|bits| f32::from_bits(bits as u32))
        .filter(|x| x.is_finite())
        .take(50_000)
        .collect();
    let (_repository, mut run) = run();
    run.save(1, Mode::Sync, |capture| {
        let mut part = capture.component("c", "test", Durability::Durable)?;
        part.value("doubles", &doubles)?;
        part.value("singles", &singles)
    })
    .unwrap();
    let mut back: (Vec<f64>, Vec<f32>) = Default::default();
    let mut targets = Targets::new(World::ALONE);
    let mut slots = targets.component("c", "test", Durability::Durable).unwrap();
    slots.value("doubles", &mut back.0).unwrap();
    slots.value("singles", &mut back.1).unwrap();
    run.restore_at(&crate::restore::Selector::Latest, targets).unwrap();
    assert!(doubles.iter().map(|x| x.to_bits()).eq(back.0.iter().map(|x| x.to_bits())));
    assert!(singles.iter().map(|x| x.to_bits()).eq(back.1.iter().map(|x| x.to_bits())));
}

#[derive(Default, Serialize, Deserialize)]
struct Metrics {
    best_loss: f64,
    last: Option<f32>,
    pairs: Vec<(String, f64)>,
    by_name: BTreeMap<String, Kind>,
}

#[derive(Serialize, Deserialize)]
enum Kind {
    Nothing,
    One(f64),
    Two(f64, f64),
    Named { x: f64 },
}

#[test]
fn a_number_that_cannot_be_read_back_is_refused_at_the_save() {
    let infinite: &[Metrics] = &[
        Metrics { best_loss: f64::INFINITY, ..Metrics::default() },
        Metrics { last: Some(f32::NAN), ..Metrics::default() },
        Metrics { pairs: vec![("a".into(), 1.0), ("b".into(), f64::NAN)], ..Metrics::default() },
        Metrics { by_name: [("a".into(), Kind::One(f64::NAN))].into(), ..Metrics::default() },
        Metrics {
            by_name: [("a".into(), Kind::Two(0.0, -1.0 / 0.0))].into(),
            ..Metrics::default()
        },
        Metrics {
            by_name: [("a".into(), Kind::Named { x: f64::INFINITY })].into(),
            ..Metrics::default()
        },
    ];
    for metrics in infinite {
        let mut capture = Capture::new(World::ALONE);
        let mut part = capture.component("c", "test", Durability::Durable).unwrap();
        let error = part.value("metrics", metrics).unwrap_err();
        assert_eq!(error.kind(), lastgood_format::ErrorKind::Invalid);
        assert!(error.to_string().contains("\"metrics\""), "{error}");
        assert!(part.rank_value("metrics", metrics).is_err());
        let finite =
            Metrics { by_name: [("a".into(), Kind::Nothing)].into(), ..Metrics::default() };
        part.value("metrics", &finite).unwrap();
    }
}
