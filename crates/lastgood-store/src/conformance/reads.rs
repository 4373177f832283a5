//! Reading objects.

use std::ops::Range;

use super::site::{Broken, Site, ensure, expect_error, pattern};
use crate::ErrorKind::{Corrupt, Invalid, NotFound};

const BYTES: u64 = 1000;

pub(super) async fn bytes_max(site: &Site<'_>) -> Result<(), Broken> {
    let bytes = pattern(1, BYTES as usize);
    site.create("object", bytes.clone()).await?;
    site.create("empty", "").await?;
    let (object, empty) = (site.key("object"), site.key("empty"));
    for bytes_max in [BYTES, BYTES + 1, u64::MAX] {
        let found = site.store.get(&object, bytes_max).await?;
        ensure!(found == bytes, "get with at most {bytes_max} bytes gave {} bytes", found.len());
    }
    for bytes_max in [0, 1, BYTES - 1] {
        let what = || format!("get of {BYTES} bytes with at most {bytes_max}");
        expect_error(Corrupt, what, site.store.get(&object, bytes_max).await)?;
    }
    let found = site.store.get(&empty, 0).await?;
    ensure!(found.is_empty(), "an empty object gave {} bytes", found.len());
    Ok(())
}

/// Ranges that the object has, and ranges that end behind it.
fn edges(bytes: u64) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
    let within = vec![
        0..0,
        0..1,
        1..2,
        0..bytes,
        1..bytes,
        0..bytes - 1,
        bytes / 2..bytes / 2,
        bytes / 2..bytes / 2 + 7,
        bytes - 1..bytes,
        bytes..bytes,
    ];
    let beyond = vec![
        0..bytes + 1,
        bytes - 1..bytes + 1,
        bytes..bytes + 1,
        bytes + 1..bytes + 1,
        bytes + 1..bytes + 2,
        0..1 << 50,
        0..i64::MAX as u64,
        1 << 63..(1 << 63) + 1,
        0..u64::MAX,
        u64::MAX - 1..u64::MAX,
        u64::MAX..u64::MAX,
    ];
    (within, beyond)
}

pub(super) async fn ranges(site: &Site<'_>) -> Result<(), Broken> {
    let bytes = pattern(2, BYTES as usize);
    site.create("object", bytes.clone()).await?;
    site.create("empty", "").await?;
    let key = site.key("object");
    let (within, beyond) = edges(BYTES);
    for range in within {
        let found = site.store.get_range(&key, range.clone()).await?;
        let expected = &bytes[range.start as usize..range.end as usize];
        ensure!(found == expected, "bytes {range:?} of {BYTES} gave {} bytes", found.len());
    }
    for range in beyond {
        let what = || format!("bytes {range:?} of {BYTES}");
        expect_error(Corrupt, what, site.store.get_range(&key, range.clone()).await)?;
    }
    for (start, end) in [(1, 0), (BYTES, 1), (u64::MAX, 0)] {
        let range = Range { start, end };
        let what = || format!("bytes {range:?} of {BYTES}");
        expect_error(Invalid, what, site.store.get_range(&key, range.clone()).await)?;
    }
    let empty = site.key("empty");
    let found = site.store.get_range(&empty, 0..0).await?;
    ensure!(found.is_empty(), "an empty object gave {} bytes", found.len());
    let what = || "a byte of an empty object".into();
    expect_error(Corrupt, what, site.store.get_range(&empty, 0..1).await)
}

pub(super) async fn into_memory(site: &Site<'_>) -> Result<(), Broken> {
    let bytes = pattern(3, BYTES as usize);
    site.create("object", bytes.clone()).await?;
    let key = site.key("object");
    let (within, beyond) = edges(BYTES);
    for range in within {
        // Nothing beside the target may be written, and nothing in it may stay.
        let mut target = vec![!bytes[0]; (range.end - range.start) as usize];
        site.store.read_into(&key, range.start, &mut target).await?;
        let expected = &bytes[range.start as usize..range.end as usize];
        ensure!(target == expected, "bytes {range:?} of {BYTES} into memory are wrong");
    }
    // Nobody has memory for the largest ranges.
    for range in beyond.into_iter().filter(|range| range.end - range.start <= BYTES + 1) {
        let mut target = vec![0; (range.end - range.start) as usize];
        let what = || format!("bytes {range:?} of {BYTES} into memory");
        expect_error(Corrupt, what, site.store.read_into(&key, range.start, &mut target).await)?;
    }
    let what = || "bytes that end beyond 2^64".into();
    expect_error(Corrupt, what, site.store.read_into(&key, u64::MAX - 1, &mut [0; 9]).await)
}

pub(super) async fn absent_objects(site: &Site<'_>) -> Result<(), Broken> {
    site.create("here", "bytes").await?;
    for name in ["gone", "her", "here-too", "no/folder/here"] {
        let key = site.key(name);
        let store = &site.store;
        for bytes_max in [0, u64::MAX] {
            let what = || format!("get of an absent object with at most {bytes_max} bytes");
            expect_error(NotFound, what, store.get(&key, bytes_max).await)?;
        }
        for range in [0..0, 0..1, 5..9] {
            let what = || format!("bytes {range:?} of an absent object");
            expect_error(NotFound, what, store.get_range(&key, range.clone()).await)?;
            let mut target = vec![0; (range.end - range.start) as usize];
            let what = || format!("bytes {range:?} of an absent object into memory");
            expect_error(NotFound, what, store.read_into(&key, range.start, &mut target).await)?;
        }
        let size = store.size(&key).await?;
        ensure!(size.is_none(), "an absent object has the size {size:?}");
        for _ in 0..2 {
            store.delete(&key).await?;
        }
        let size = store.size(&key).await?;
        ensure!(size.is_none(), "an absent object has the size {size:?} after it was deleted");
    }
    // Nor is a folder an object.
    site.create("folder/object", "bytes").await?;
    let folder = site.key("folder");
    let size = site.store.size(&folder).await?;
    ensure!(size.is_none(), "a folder has the size {size:?}");
    expect_error(NotFound, || "get of a folder".into(), site.store.get(&folder, 10).await)?;
    let mut target = [0; 1];
    let read = site.store.read_into(&folder, 0, &mut target).await;
    expect_error(NotFound, || "a byte of a folder".into(), read)?;
    site.store.delete(&folder).await?;
    site.expect("folder/object", b"bytes").await
}

pub(super) async fn settled(site: &Site<'_>) -> Result<(), Broken> {
    site.create("object", "bytes").await?;
    for store in [&site.store, &site.other] {
        for name in ["object", "gone", "no/folder/here"] {
            store.settle(&site.key(name)).await?;
        }
    }
    site.expect("object", b"bytes").await
}
