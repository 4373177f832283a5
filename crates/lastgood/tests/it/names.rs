//! What is missing, too much, or of another shape is named; functions run only once all is verified.

use std::cell::Cell;

use lastgood::save::Mode;
use lastgood::state::{Durability, Slots, Targets};
use lastgood::{Dtype, Error, ErrorKind, Repository, Result};
use lastgood_format::layout::NdBox;

use crate::fixture::{bytes, in_memory, open_alone};

fn save(repository: &Repository) {
    let mut run = open_alone(repository, "save");
    run.save(1, Mode::Sync, |capture| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        part.tensor("a", Dtype::F32, &[2], vec![1; 8])?;
        part.tensor("b", Dtype::F32, &[3], vec![2; 12])?;
        part.tensor("x@rank7", Dtype::U8, &[1], vec![3])?;
        part.value("v", &5)
    })
    .unwrap();
}

fn restore(
    repository: &Repository,
    declare: impl for<'a> Fn(&mut Targets<'a>, &'a mut [Vec<u8>]) -> Result<()>,
) -> Result<()> {
    let mut run = open_alone(repository, "restore");
    let mut memory = vec![vec![0xc5; 8], vec![0xc5; 12], vec![0xc5; 1]];
    let restored = run.restore(memory.as_mut_slice(), |m, targets| declare(targets, m));
    if restored.is_err() {
        assert!(memory.iter().flatten().all(|byte| *byte == 0xc5), "a refused restore wrote");
    }
    restored.map(|_| ())
}

/// Everything that is there.
fn all<'a>(slots: &mut Slots<'_, 'a>, memory: &'a mut [Vec<u8>]) -> Result<()> {
    let [a, b, x] = memory else { unreachable!() };
    slots.tensor("a", Dtype::F32, &[2], a)?;
    slots.tensor("b", Dtype::F32, &[3], b)?;
    slots.tensor("x@rank7", Dtype::U8, &[1], x)?;
    slots.blob("v", |_| Ok(()))
}

fn expect(error: Error, kind: ErrorKind, texts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    let message = error.to_string();
    for text in texts {
        assert!(message.contains(text), "expected {text:?} in: {message}");
    }
}

#[test]
fn differences_of_names_are_told_all_at_once() {
    let (_store, repository) = in_memory();
    save(&repository);
    restore(&repository, |targets, m| {
        all(&mut targets.component("m", "t", Durability::Durable)?, m)
    })
    .unwrap();
    let missing = |targets: &mut Targets<'_>, partial: bool| {
        if partial {
            targets.partial();
        }
        let mut slots = targets.component("m", "t", Durability::Durable)?;
        slots.blob("v", |_| Ok(()))?;
        slots.blob("gone", |_| Ok(()))?;
        slots.blob("gone\ntoo", |_| Ok(()))
    };
    let error = restore(&repository, |targets, _| missing(targets, false)).unwrap_err();
    let extra = ["m/a", "m/b", "m/x@rank7"];
    expect(error, ErrorKind::NotFound, &["lacks m/gone, m/gone\\ntoo; it holds"]);
    let error = restore(&repository, |targets, _| missing(targets, false)).unwrap_err();
    expect(error, ErrorKind::NotFound, &extra);
    // `partial` is about what is there beside, and not about what is not there.
    let error = restore(&repository, |targets, _| missing(targets, true)).unwrap_err();
    let text = error.to_string();
    expect(error, ErrorKind::NotFound, &["m/gone"]);
    assert!(!text.contains("m/a"), "{text}");

    let some = |targets: &mut Targets<'_>, partial: bool| {
        if partial {
            targets.partial();
        }
        let mut slots = targets.component("m", "t", Durability::Durable)?;
        slots.blob("v", |_| Ok(()))
    };
    let error = restore(&repository, |targets, _| some(targets, false)).unwrap_err();
    expect(error, ErrorKind::Incompatible, &extra);
    restore(&repository, |targets, _| some(targets, true)).unwrap();
}

#[test]
fn a_tensor_that_is_called_like_another_ranks_value_is_still_missed() {
    let (_store, repository) = in_memory();
    save(&repository);
    let error = restore(&repository, |targets, memory| {
        let [a, b, _] = memory else { unreachable!() };
        let mut slots = targets.component("m", "t", Durability::Durable)?;
        slots.tensor("a", Dtype::F32, &[2], a)?;
        slots.tensor("b", Dtype::F32, &[3], b)?;
        slots.blob("v", |_| Ok(()))?;
        slots.blob("x@rank0", |_| Ok(()))
    })
    .unwrap_err();
    expect(error, ErrorKind::NotFound, &["lacks m/x@rank0", "holds m/x@rank7"]);
}

#[test]
fn another_shape_or_dtype_is_told_with_both() {
    let (_store, repository) = in_memory();
    save(&repository);
    let cases: [(&str, Dtype, &[u64], &str); 5] = [
        ("a", Dtype::F32, &[1, 2], "asked for F32 of [1, 2], the checkpoint has F32 of [2]"),
        ("a", Dtype::I32, &[2], "asked for I32 of [2], the checkpoint has F32 of [2]"),
        ("a", Dtype::U8, &[8], "asked for U8 of [8], the checkpoint has F32 of [2]"),
        ("v", Dtype::U8, &[1], "asked for U8 of [1], the checkpoint has BLOB of [1]"),
        ("a", Dtype::Blob, &[8], "asked for BLOB of [8], the checkpoint has F32 of [2]"),
    ];
    for (name, dtype, shape, text) in cases {
        for partial in [false, true] {
            let error = restore(&repository, |targets, _| {
                if partial {
                    targets.partial();
                }
                let mut slots = targets.component("m", "t", Durability::Durable)?;
                for other in ["a", "b", "x@rank7", "v"] {
                    if other == name {
                        slots.apply(name, dtype, shape, NdBox::whole(shape), |_| Ok(()))?;
                    } else if other == "v" {
                        slots.blob("v", |_| Ok(()))?;
                    } else {
                        let (dtype, shape): (_, &[u64]) = match other {
                            "a" => (Dtype::F32, &[2]),
                            "b" => (Dtype::F32, &[3]),
                            _ => (Dtype::U8, &[1]),
                        };
                        slots.apply(other, dtype, shape, NdBox::whole(shape), |_| Ok(()))?;
                    }
                }
                Ok(())
            })
            .unwrap_err();
            expect(error, ErrorKind::Incompatible, &[&format!("m/{name}"), text]);
        }
    }
    let error = restore(&repository, |targets, _| {
        targets.partial();
        targets.component("m", "t", Durability::Durable)?.blob("a", |_| Ok(()))
    })
    .unwrap_err();
    expect(error, ErrorKind::Incompatible, &["m/a: asked for a value"]);
}

#[test]
fn a_refused_restore_leaves_the_checkpoint_alone() {
    let (_store, repository) = in_memory();
    save(&repository);
    let entries = |repository: &Repository| {
        repository.existing(&crate::fixture::run_name()).unwrap().history().entries()
    };
    restore(&repository, |_, _| Ok(())).unwrap_err();
    let before = entries(&repository);
    restore(&repository, |_, _| Ok(())).unwrap_err();
    assert_eq!(entries(&repository), before);
}

#[test]
fn no_function_sees_a_byte_before_the_last_chunk_is_verified() {
    let (store, repository) = in_memory();
    let data = bytes(1, 1 << 20);
    let mut run = open_alone(&repository, "save");
    run.save(1, Mode::Sync, |capture| {
        let mut part = capture.component("m", "t", Durability::Durable)?;
        for i in 0..16 {
            part.tensor(&format!("{i:02}"), Dtype::U8, &[1 << 16], &data[i << 16..(i + 1) << 16])?;
        }
        Ok(())
    })
    .unwrap();
    drop(run);
    let called = |incarnation: &str| {
        let mut count = Cell::new(0);
        let mut run = open_alone(&repository, incarnation);
        let restored = run.restore(&mut count, |count, targets| {
            let count = &*count;
            let mut slots = targets.component("m", "t", Durability::Durable)?;
            for i in 0..16 {
                let whole = NdBox::whole(&[1 << 16]);
                slots.apply(&format!("{i:02}"), Dtype::U8, &[1 << 16], whole, |_| {
                    count.set(count.get() + 1);
                    Ok(())
                })?;
            }
            Ok(())
        });
        (restored.map(|_| ()).map_err(|e| e.kind()), count.get())
    };
    assert_eq!(called("whole"), (Ok(()), 16));
    let pack = store.keys().into_iter().find(|key| key.ends_with(".pack")).unwrap();
    store.tamper(&pack, |bytes| bytes[16 + (1 << 20) - 1] ^= 0x80);
    assert_eq!(called("damaged"), (Err(ErrorKind::Corrupt), 0));
}
