//! What must go the same on every kind of store. Here on a local one; `s3` runs it on a gateway.

use std::collections::BTreeMap;
use std::fs;

use lastgood::save::Mode;
use lastgood::state::{Durability, World};
use lastgood::{Dtype, Run, RunOptions};
use lastgood_format::layout::NdBox;
use safetensors::SafeTensors;

use crate::tensors::{content, sample};
use crate::tool::Place;

#[test]
fn every_dtype_goes_in_and_out() {
    round_trip(&Place::local());
}

#[test]
fn what_four_ranks_saved_is_exported_whole() {
    export_of_ranks(&Place::local());
}

#[test]
fn a_supervised_job_leaves_a_readable_ledger() {
    supervised(&Place::local());
}

pub(crate) fn round_trip(place: &Place) {
    let file = place.folder().join("in.safetensors");
    fs::write(&file, sample(1)).unwrap();
    let file = file.to_str().unwrap();
    place.on(&["import", file, "--step", "10"]).exits(0);
    assert!(place.on(&["ls"]).exits(0).out.contains("committed <- last good"));
    place.on(&["verify", "--mark"]).exits(0);
    assert!(place.on(&["show", "--at", "10"]).exits(0).out.contains("made by = a test"));
    let to = place.folder().join("out");
    place.on(&["export", "--at", "10", "--to", to.to_str().unwrap()]).exits(0);
    let out = to.join("model.safetensors");
    let first = fs::read(&out).unwrap();
    assert_eq!(content(&first), content(&sample(1)));
    // What was exported is imported, and exported again: the same bytes of the file.
    place.on(&["import", out.to_str().unwrap(), "--step", "20"]).exits(0);
    place.on(&["export", "--at", "latest", "--to", to.to_str().unwrap()]).exits(0);
    assert_eq!(fs::read(&out).unwrap(), first);
    place.on(&["show", "--at", "30"]).exits(4);
    place.on(&["show", "--run", "other"]).exits(4);
}

/// The whole tensor that the ranks share: a row for each of 10, of 6 columns.
fn rows() -> Vec<u8> {
    (0..60).flat_map(|i: u32| i.to_le_bytes()).collect()
}

fn save_by_ranks(place: &Place, size: u32) {
    std::thread::scope(|scope| {
        for rank in 0..size {
            scope.spawn(move || {
                let world = World { rank, size };
                let incarnation = Some("one".to_owned());
                let options = RunOptions { world, incarnation, ..RunOptions::default() };
                let run = "r".parse().unwrap();
                let mut run = Run::open(&place.repository(), &run, options).unwrap();
                let (begin, end) = (10 * rank / size, 10 * (rank + 1) / size);
                let all = rows();
                run.save(7, Mode::Sync, |capture| {
                    capture.metadata("licence", "none");
                    let mut model = capture.component("model", "test", Durability::Durable)?;
                    let extent = NdBox {
                        offsets: vec![u64::from(begin), 0],
                        sizes: vec![u64::from(end - begin), 6],
                    };
                    let part = &all[begin as usize * 24..end as usize * 24];
                    model.shard("rows", Dtype::U32, &[10, 6], extent, part)?;
                    model.tied("also rows", "rows")?;
                    model.replicated("same", Dtype::U8, &[3], b"abc")?;
                    let mut other = capture.component("a/b größe", "test", Durability::Durable)?;
                    other.value("step", &7)?;
                    other.rank_value("rng", &rank)?;
                    other.blob("opaque", b"\x00\xff".as_slice())?;
                    let name = "long".repeat(100);
                    let mut long = capture.component(&name, "test", Durability::Durable)?;
                    long.value("x", "y")?;
                    capture.component("cache", "test", Durability::Volatile).map(drop)
                })
                .unwrap();
                run.close().unwrap();
            });
        }
    });
}

pub(crate) fn export_of_ranks(place: &Place) {
    save_by_ranks(place, 4);
    let to = place.folder().join("out");
    place.on(&["export", "--to", to.to_str().unwrap()]).exits(0);
    let mut names: Vec<String> = fs::read_dir(&to)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let blobs = "a%2fb%20gr%c3%b6%c3%9fe.blobs.safetensors";
    let long = names.iter().find(|name| name.starts_with("longlong")).unwrap();
    assert!(long.len() < 255 && long.ends_with(".blobs.safetensors"), "{long}");
    assert_eq!(names.len(), 4, "{names:?}");
    let model = fs::read(to.join("model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&model).unwrap();
    assert_eq!(read.tensor("rows").unwrap().shape(), [10, 6]);
    assert_eq!(read.tensor("rows").unwrap().data(), rows());
    assert_eq!(read.tensor("also rows").unwrap().data(), rows());
    assert_eq!(read.tensor("same").unwrap().data(), b"abc");
    assert_eq!(content_metadata(&model)["licence"], "none");
    let other = fs::read(to.join(blobs)).unwrap();
    let read = SafeTensors::deserialize(&other).unwrap();
    let value = |name: &str| read.tensor(name).unwrap().data().to_vec();
    assert_eq!(value("step"), b"7");
    assert_eq!(value("opaque"), b"\x00\xff");
    for rank in 0..4 {
        assert_eq!(value(&format!("rng@rank{rank}")), rank.to_string().into_bytes());
    }
    // Only what is asked for, and twice asked for is once.
    let part = place.folder().join("part");
    let args = ["export", "--to", part.to_str().unwrap(), "--component", "model"];
    place.on(&[&args[..], &["--component", "model"]].concat()).exits(0);
    assert_eq!(fs::read_dir(&part).unwrap().count(), 2);
    let absent = place.on(&["export", "--to", "x", "--component", "optimizer"]).exits(4);
    assert!(absent.err.contains("model"), "{}", absent.err);
    let show = place.on(&["show", "--tensors"]).exits(0).out;
    assert!(show.contains("nothing makes it smaller"), "{show}");
    assert!(show.contains("saved by 4 ranks") && show.contains("tied to also rows"), "{show}");
    assert!(show.contains("volatile"), "{show}");
}

fn content_metadata(file: &[u8]) -> BTreeMap<String, String> {
    let (_, header) = SafeTensors::read_metadata(file).unwrap();
    header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
}

pub(crate) fn supervised(place: &Place) {
    let file = place.folder().join("in.safetensors");
    fs::write(&file, sample(1)).unwrap();
    place.on(&["import", file.to_str().unwrap(), "--step", "10"]).exits(0);
    // Each rank reads the store that it was told of.
    let script = format!(
        "[ \"$TORCHELASTIC_RESTART_COUNT\" = 1 ] || exit 9; {} ls",
        env!("CARGO_BIN_EXE_lastgood")
    );
    let ran = place.on(&["run", "--ranks", "2", "--", "sh", "-c", &script]).exits(0);
    for rank in 0..2 {
        assert!(ran.out.contains(&format!("[rank {rank}] 10  ")), "{}", ran.out);
    }
    assert!(ran.err.contains("from step 10"), "{}", ran.err);
    place.on(&["mark", "bad", "--reason", "it overflowed"]).exits(0);
    let log = place.on(&["log"]).exits(0).out;
    for part in ["the run exists", "attempt 3 of 2 ranks, from ", "at step 10", "it overflowed"] {
        assert!(log.contains(part), "{log}");
    }
    place.on(&["export", "--to", "x"]).exits(4);
}
