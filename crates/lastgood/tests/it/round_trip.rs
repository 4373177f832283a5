//! Every kind of state that can be declared comes back byte for byte.

use std::cell::Cell;
use std::collections::BTreeMap;

use lastgood::restore::Restored;
use lastgood::save::Mode;
use lastgood::state::{Capture, Durability, Targets, World};
use lastgood::{Dtype, ErrorKind, Repository, Result};
use lastgood_format::layout::NdBox;

use crate::fixture::{
    bytes, capture_bytes, in_folder, in_memory, open, open_all, open_alone, save_all, tapped,
    target_bytes,
};

/// One whole tensor.
struct Whole {
    component: String,
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    data: Vec<u8>,
}

impl Whole {
    fn new(component: &str, name: &str, dtype: Dtype, shape: &[u64], seed: u64) -> Option<Self> {
        let length = dtype.bytes_of(NdBox::whole(shape).elements()?)?;
        Some(Self {
            component: component.into(),
            name: name.into(),
            dtype,
            shape: shape.into(),
            data: bytes(seed, length as usize),
        })
    }
}

fn by_component(all: &[Whole]) -> BTreeMap<&str, Vec<&Whole>> {
    let mut components: BTreeMap<&str, Vec<&Whole>> = BTreeMap::new();
    for tensor in all {
        components.entry(&tensor.component).or_default().push(tensor);
    }
    components
}

fn capture_all<'a>(capture: &mut Capture<'a>, all: &'a [Whole]) -> Result<()> {
    for (component, tensors) in by_component(all) {
        let mut part = capture.component(component, "t", Durability::Durable)?;
        for tensor in tensors {
            part.tensor(&tensor.name, tensor.dtype, &tensor.shape, tensor.data.as_slice())?;
        }
    }
    Ok(())
}

/// Saves `all` and compares what a fresh handle restores into memory that held something else.
fn check(repository: &Repository, step: u64, all: &[Whole]) {
    let mut run = open_alone(repository, &format!("save {step}"));
    let handle = run.save(step, Mode::Sync, |capture| capture_all(capture, all)).unwrap();
    let id = handle.wait().unwrap();
    run.close().unwrap();
    let mut found: Vec<Vec<u8>> = all.iter().map(|t| vec![0xa5; t.data.len()]).collect();
    let mut run = open_alone(repository, &format!("restore {step}"));
    let restored = run
        .restore(&mut found, |found, targets| {
            let mut memory: BTreeMap<(&str, &str), &mut Vec<u8>> = all
                .iter()
                .zip(found.iter_mut())
                .map(|(t, memory)| ((t.component.as_str(), t.name.as_str()), memory))
                .collect();
            for (component, tensors) in by_component(all) {
                let mut slots = targets.component(component, "t", Durability::Durable)?;
                for t in tensors {
                    let memory = memory.remove(&(component, t.name.as_str())).unwrap();
                    slots.tensor(&t.name, t.dtype, &t.shape, memory)?;
                }
            }
            Ok(())
        })
        .unwrap()
        .unwrap();
    let total = all.iter().map(|t| t.data.len() as u64).sum::<u64>();
    assert_eq!((restored.checkpoint, restored.step, restored.bytes), (id, step, total));
    for (t, found) in all.iter().zip(&found) {
        assert!(t.data == *found, "{}/{:.40} of {} {:?}", t.component, t.name, t.dtype, t.shape);
    }
}

#[test]
fn every_dtype_in_every_kind_of_shape() {
    let shapes: [&[u64]; 10] = [
        &[],
        &[0],
        &[0, 7],
        &[3, 0, 5],
        &[1],
        &[8],
        &[2, 4],
        &[1, 1, 2, 1, 8],
        &[40_000, 2],
        &[u64::MAX, 0],
    ];
    let mut all = Vec::new();
    for dtype in Dtype::ALL {
        for (i, shape) in shapes.iter().enumerate() {
            if *dtype == Dtype::Blob && shape.len() != 1 {
                continue;
            }
            let seed = all.len() as u64;
            all.extend(Whole::new("model", &format!("{dtype}.{i}"), *dtype, shape, seed));
        }
    }
    assert!(all.len() > 200, "{}", all.len());
    let (_store, memory) = in_memory();
    let (_folder, folder) = in_folder();
    for repository in [memory, folder] {
        check(&repository, 1, &all);
    }
}

#[test]
fn names_in_any_utf8_up_to_their_limits() {
    let long = "n".repeat(64 << 10);
    let emoji = "🦀".repeat(16 << 10);
    let names = [
        "",
        " ",
        "\n",
        "a\nb\r\0",
        "🦀🔥",
        "שלום.משקל",
        "\u{202e}abc",
        "é",
        "e\u{301}",
        "a/b",
        "../..",
        "\"quoted\" \\ {}",
        "x@rank0",
        &long,
        &emoji,
    ];
    let wide = "c".repeat(1024);
    let mut all = Vec::new();
    for component in ["model", "модель\n🦀", "..", " ", &wide] {
        for name in names {
            let seed = all.len() as u64 + 1;
            all.extend(Whole::new(component, name, Dtype::F32, &[3], seed));
        }
    }
    let (_store, repository) = in_memory();
    check(&repository, 1, &all);
}

#[test]
fn what_the_format_cannot_hold_is_refused_by_the_call() {
    let (store, repository) = in_memory();
    let mut run = open_alone(&repository, "a");
    let before = store.keys();
    let dims = vec![1; 33];
    let long = "n".repeat((64 << 10) + 1);
    type Declare<'d> = &'d dyn Fn(&mut Capture<'_>) -> Result<()>;
    let cases: [(&str, Declare<'_>); 9] = [
        ("65537", &|c| durable(c)?.tensor(&long, Dtype::U8, &[1], vec![0])),
        ("33 dimensions", &|c| durable(c)?.tensor("t", Dtype::U8, &dims, vec![0])),
        ("BLOB", &|c| durable(c)?.tensor("t", Dtype::Blob, &[1, 1], vec![0])),
        ("has 8 bytes, given 7", &|c| durable(c)?.tensor("t", Dtype::F32, &[2], vec![0; 7])),
        ("no whole number", &|c| durable(c)?.tensor("t", Dtype::F4, &[3], vec![0; 1])),
        ("no whole number", &|c| {
            durable(c)?.tensor("t", Dtype::F64, &[u64::MAX, u64::MAX], vec![0; 1])
        }),
        ("sticks out", &|c| {
            let extent = NdBox { offsets: vec![3], sizes: vec![2] };
            durable(c)?.shard("t", Dtype::U8, &[4], extent, vec![0; 2])
        }),
        ("twice", &|c| {
            let mut part = durable(c)?;
            part.tensor("t", Dtype::U8, &[1], vec![0])?;
            part.tensor("t", Dtype::U8, &[1], vec![0])
        }),
        ("component \"\"", &|c| c.component("", "t", Durability::Durable).map(|_| ())),
    ];
    for (text, declare) in cases {
        let error = run.save(1, Mode::Async, declare).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(text), "expected {text:?} in: {error:.300}");
        assert!(error.to_string().len() < 1000, "a message of {} bytes", error.to_string().len());
    }
    assert_eq!(store.keys(), before);
    run.close().unwrap();
}

fn durable<'c, 'a>(capture: &'c mut Capture<'a>) -> Result<lastgood::state::Part<'c, 'a>> {
    capture.component("m", "t", Durability::Durable)
}

#[test]
fn tied_tensors_are_stored_once_and_come_back_under_each_name() {
    let data = bytes(3, 300_000);
    let written = |ties: &[(&str, &str)]| {
        let (_store, tap, repository) = tapped();
        let mut run = open_alone(&repository, "a");
        let before = tap.bytes_put();
        run.save(1, Mode::Sync, |capture| {
            let mut part = durable(capture)?;
            part.tensor("w", Dtype::U8, &[3, 100_000], data.as_slice())?;
            for (name, of) in ties {
                part.tied(name, of)?;
            }
            Ok(())
        })
        .unwrap();
        let written = tap.bytes_put() - before;
        drop(run);
        let mut found: Vec<Vec<u8>> = vec![vec![0xee; data.len()]; ties.len() + 1];
        let mut run = open_alone(&repository, "b");
        run.restore(&mut found, |found, targets| {
            let mut slots = targets.component("m", "t", Durability::Durable)?;
            let names = ["w"].into_iter().chain(ties.iter().map(|(name, _)| *name));
            for (name, memory) in names.zip(found) {
                slots.tensor(name, Dtype::U8, &[3, 100_000], memory)?;
            }
            Ok(())
        })
        .unwrap();
        assert!(found.iter().all(|found| *found == data), "{ties:?}");
        written
    };
    let alone = written(&[]);
    assert!(alone > 300_000, "{alone}");
    // Names before and after the one with the data, a tie of a tie, and a tie of that.
    for ties in [
        &[("a", "w")][..],
        &[("z", "w")],
        &[("z", "w"), ("y", "z")],
        &[("z", "w"), ("a", "z"), ("b", "a")],
    ] {
        let tied = written(ties);
        assert!(tied < alone + 1000, "{ties:?}: {tied} bytes, {alone} without");
    }
}

#[test]
fn ties_reach_across_the_shards_of_all_ranks() {
    let data = bytes(5, 4 * 70_000);
    let (store, repository) = in_memory();
    let mut runs = open_all(&repository, 2, "a");
    let half = |rank: u32| {
        let extent = NdBox { offsets: vec![2 * u64::from(rank), 0], sizes: vec![2, 70_000] };
        (extent, &data[140_000 * rank as usize..][..140_000])
    };
    save_all(&mut runs, 1, |capture| {
        let rank = capture.world().rank;
        let mut part = capture.component("m", "t", Durability::Durable)?;
        let (extent, mine) = half(rank);
        part.shard("head", Dtype::U8, &[4, 70_000], extent, mine.to_vec())?;
        part.tied("embed", "head")
    })
    .unwrap();
    let stored: usize =
        store.keys().iter().filter_map(|key| store.peek(key)).map(|b| b.len()).sum();
    assert!(stored < data.len() + 20_000, "{stored}");
    drop(runs);
    for name in ["head", "embed"] {
        let mut found = vec![0xee; 70_000];
        let mut run = open_alone(&repository, name);
        run.restore(&mut found, |found, targets| {
            targets.partial();
            let mut slots = targets.component("m", "t", Durability::Durable)?;
            let row = NdBox { offsets: vec![2, 0], sizes: vec![1, 70_000] };
            slots.shard(name, Dtype::U8, &[4, 70_000], row, found)
        })
        .unwrap();
        assert_eq!(found, data[140_000..210_000], "{name}");
    }
}

#[test]
fn a_tie_to_nothing_or_of_a_taken_name_is_refused() {
    let (_store, repository) = in_memory();
    let mut run = open_alone(&repository, "a");
    for (name, of, text) in [("x", "gone", "\"gone\""), ("w", "w", "m/w"), ("x", "x", "\"x\"")] {
        let saved = run.save(1, Mode::Async, |capture| {
            let mut part = durable(capture)?;
            part.tensor("w", Dtype::U8, &[1], vec![1])?;
            part.tied(name, of)
        });
        let error = saved.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn values_metadata_and_blobs_of_every_rank() {
    let (_store, repository) = in_memory();
    let mut runs = open_all(&repository, 3, "a");
    let blob = bytes(1, 200_000);
    save_all(&mut runs, 9, |capture| {
        let rank = capture.world().rank;
        capture.metadata("who", format!("rank {rank}"));
        capture.metadata(format!("only {rank}"), "🦀\n");
        let mut part = capture.component("loader", "t", Durability::Durable)?;
        part.value("epoch", &Some(vec![1.5, f64::MIN_POSITIVE]))?;
        part.value("text", "\u{0}\u{202e}🦀")?;
        part.rank_value("cursor", &(u64::from(rank) << 60, "x"))?;
        part.blob("blob", blob.clone())?;
        part.blob("none", Vec::new())
    })
    .unwrap();
    drop(runs);
    for rank in 0..3 {
        type Values = (Option<Vec<f64>>, String, (u64, String), Vec<Vec<u8>>);
        let mut values: Values = Default::default();
        let world = World { rank, size: 3 };
        let mut run = open(&repository, world, "b");
        let restored = run
            .restore(&mut values, |(epoch, text, cursor, blobs), targets| {
                let mut slots = targets.component("loader", "t", Durability::Durable)?;
                slots.value("epoch", epoch)?;
                slots.value("text", text)?;
                slots.rank_value("cursor", cursor)?;
                blobs.resize(2, vec![0xee]);
                let [first, second] = blobs.as_mut_slice() else { unreachable!() };
                for (name, to) in [("blob", first), ("none", second)] {
                    slots.blob(name, |found| {
                        *to = found;
                        Ok(())
                    })?;
                }
                Ok(())
            })
            .unwrap()
            .unwrap();
        assert_eq!(restored.world_size, 3);
        let (epoch, text, cursor, blobs) = values;
        assert_eq!(epoch, Some(vec![1.5, f64::MIN_POSITIVE]));
        assert_eq!(text, "\u{0}\u{202e}🦀");
        assert_eq!(cursor, (u64::from(rank) << 60, "x".into()));
        assert!(blobs[0] == blob && blobs[1].is_empty());
    }
    let ledger = repository.existing(&crate::fixture::run_name()).unwrap();
    let id = ledger.history().checkpoints()[0].id;
    let contents = repository.contents(&ledger, &id).unwrap();
    let metadata = contents.metadata();
    let expected = [("only 0", "🦀\n"), ("only 1", "🦀\n"), ("only 2", "🦀\n"), ("who", "rank 0")];
    assert_eq!(metadata.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_value_of_another_type_is_named() {
    let (_store, repository) = in_memory();
    let mut run = open_alone(&repository, "a");
    run.save(1, Mode::Sync, |capture| durable(capture)?.value("v", "text")).unwrap();
    let mut number = 7u64;
    let error = run
        .restore_at(&"latest".parse().unwrap(), {
            let mut targets = Targets::new(World::ALONE);
            let mut slots = targets.component("m", "t", Durability::Durable).unwrap();
            slots.value("v", &mut number).unwrap();
            targets
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("m/v"), "{error}");
    assert_eq!(number, 7);
}

#[test]
fn components_that_are_not_durable_take_nothing_and_are_reset() {
    let (store, repository) = in_memory();
    let data = bytes(1, 100_000);
    let mut run = open_alone(&repository, "a");
    for durability in [Durability::Volatile, Durability::Derived] {
        let saved = run.save(1, Mode::Async, |capture| {
            capture.component("cache", "t", durability)?.value("v", &1)
        });
        let error = saved.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("cache/v"), "{error}");
    }
    run.save(1, Mode::Sync, |capture| {
        capture.component("cache", "t", Durability::Volatile)?;
        capture.component("index", "t", Durability::Derived)?;
        capture_bytes(capture, &data)
    })
    .unwrap();
    drop(run);
    let restore = |incarnation: &str| -> (Result<Option<Restored>>, u32) {
        let mut state = (vec![0; data.len()], Cell::new(0));
        let mut run = open_alone(&repository, incarnation);
        let restored = run.restore(&mut state, |(found, resets), targets| {
            let resets = &*resets;
            for (name, durability) in
                [("cache", Durability::Volatile), ("index", Durability::Derived)]
            {
                let mut slots = targets.component(name, "t", durability)?;
                let refused = slots.blob("v", |_| Ok(())).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Invalid);
                slots.reset(|| resets.set(resets.get() + 1));
            }
            target_bytes(targets, found)
        });
        (restored, state.1.get())
    };
    let (restored, resets) = restore("b");
    assert_eq!((restored.unwrap().unwrap().step, resets), (1, 2));
    // Nothing is reset for a checkpoint that could not be restored.
    let pack = store.keys().into_iter().find(|key| key.ends_with(".pack")).unwrap();
    store.tamper(&pack, |bytes| bytes[50_000] ^= 1);
    let (restored, resets) = restore("c");
    assert_eq!((restored.unwrap_err().kind(), resets), (ErrorKind::Corrupt, 0));
}

#[test]
fn components_are_declared_once_and_on_both_sides() {
    let (_store, repository) = in_memory();
    let mut run = open_alone(&repository, "a");
    let error = run
        .save(1, Mode::Async, |capture| {
            durable(capture)?.value("v", &1)?;
            durable(capture).map(|_| ())
        })
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("\"m\" is declared twice"), "{error}");

    run.save(1, Mode::Sync, |capture| durable(capture)?.value("v", &1)).unwrap();
    drop(run);
    let mut run = open_alone(&repository, "b");
    let error = run
        .restore(&mut (0, 0), |(v, w), targets| {
            targets.component("m", "t", Durability::Durable)?.value("v", v)?;
            targets.component("gone", "t", Durability::Durable)?.value("v", w)
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("gone/v"), "{error}");
    let error = run
        .restore(&mut (), |(), targets| {
            targets.component("m", "t", Durability::Durable)?;
            targets.component("m", "t", Durability::Durable).map(|_| ())
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // A component without a tensor is there, or it is not.
    let error = run
        .restore(&mut 0, |v, targets| {
            targets.component("m", "t", Durability::Durable)?.value("v", v)?;
            targets.component("empty", "t", Durability::Durable).map(|_| ())
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("\"empty\""), "{error}");
}

#[test]
fn a_state_of_nothing_and_of_a_hundred_components() {
    let (_store, repository) = in_memory();
    check(&repository, 1, &[]);
    let many: Vec<Whole> = (0..100)
        .filter_map(|i| Whole::new(&format!("part {i}"), "w", Dtype::U8, &[i * 37], i))
        .collect();
    check(&repository, 2, &many);
}

#[test]
fn equal_bytes_are_stored_once_and_zeros_not_at_all() {
    let data = bytes(8, 64 << 10);
    let (_store, tap, repository) = tapped();
    let mut run = open_alone(&repository, "a");
    let before = tap.bytes_put();
    run.save(1, Mode::Sync, |capture| {
        let mut part = durable(capture)?;
        for i in 0..50 {
            part.tensor(&format!("{i}"), Dtype::U8, &[64 << 10], data.as_slice())?;
            part.tensor(&format!("zero {i}"), Dtype::U8, &[64 << 10], vec![0; 64 << 10])?;
        }
        Ok(())
    })
    .unwrap();
    let written = tap.bytes_put() - before;
    assert!((64 << 10..80 << 10).contains(&written), "{written}");
    drop(run);
    let mut found = vec![vec![0xee; 64 << 10]; 100];
    let mut run = open_alone(&repository, "b");
    run.restore(&mut found, |found, targets| {
        let mut slots = targets.component("m", "t", Durability::Durable)?;
        for (i, memory) in found.iter_mut().enumerate() {
            let name = if i < 50 { format!("{i}") } else { format!("zero {}", i - 50) };
            slots.tensor(&name, Dtype::U8, &[64 << 10], memory)?;
        }
        Ok(())
    })
    .unwrap();
    let right = |(i, found): (usize, &Vec<u8>)| match i < 50 {
        true => *found == data,
        false => found.iter().all(|byte| *byte == 0),
    };
    assert!(found.iter().enumerate().all(right));
}
