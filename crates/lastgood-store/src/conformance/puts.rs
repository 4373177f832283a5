//! Creating objects.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::site::{Broken, Site, ensure, pattern};
use crate::{ErrorKind, Payload, Put};

pub(super) async fn created_once(site: &Site<'_>) -> Result<(), Broken> {
    let key = site.key("object");
    site.create("object", "first").await?;
    site.expect("object", b"first").await?;
    for (store, bytes) in [
        (&site.store, "other"),
        (&site.other, "another"),
        (&site.store, ""),
        (&site.store, "first"),
    ] {
        let put = store.put_if_absent(&key, bytes.into()).await?;
        let may_be_its_own = site.options.repeats_puts && bytes == "first";
        ensure!(
            put == Put::Exists || may_be_its_own,
            "a put of {bytes:?} over \"first\" answered {put:?}"
        );
        site.expect("object", b"first").await?;
    }
    Ok(())
}

pub(super) async fn parts_in_order(site: &Site<'_>) -> Result<(), Broken> {
    let small: &[&[usize]] = &[&[], &[0], &[0, 0], &[3], &[1, 2, 3], &[0, 5, 0, 0, 7, 0]];
    for (i, sizes) in small.iter().enumerate() {
        parts(site, &format!("small-{i}"), sizes).await?;
    }
    // More parts than one call of an operating system takes, and parts of unlike sizes.
    let many: Vec<usize> = (0..2500).map(|i| i % 7).collect();
    parts(site, "many", &many).await?;
    parts(site, "unlike", &[1, 1 << 20, 0, 4097, 3, 1 << 18]).await
}

async fn parts(site: &Site<'_>, name: &str, sizes: &[usize]) -> Result<(), Broken> {
    let bytes = pattern(1, sizes.iter().sum());
    let mut rest = Bytes::from(bytes.clone());
    let parts = sizes.iter().map(|size| rest.split_to(*size)).collect();
    site.create_of(name, Payload::from_parts(parts)).await?;
    site.expect(name, &bytes).await
}

pub(super) async fn empty_objects(site: &Site<'_>) -> Result<(), Broken> {
    site.create("empty", "").await?;
    site.expect("empty", b"").await?;
    let put = site.store.put_if_absent(&site.key("empty"), "bytes".into()).await?;
    ensure!(put == Put::Exists, "a put over an empty object answered {put:?}");
    site.expect("empty", b"").await?;
    site.expect_listed("", None, &["empty"]).await
}

pub(super) async fn large_objects(site: &Site<'_>) -> Result<(), Broken> {
    const PART_BYTES: usize = 1 << 20;
    let bytes = Bytes::from(pattern(2, site.options.large_bytes));
    let parts = (0..bytes.len()).step_by(PART_BYTES);
    let parts =
        parts.map(|at| bytes.slice(at..bytes.len().min(at + PART_BYTES))).collect::<Vec<_>>();
    site.create_of("large", Payload::from_parts(parts)).await?;
    site.expect("large", &bytes).await?;
    let key = site.key("large");
    let end = bytes.len();
    for range in [0..1, end / 2 - 3..end / 2 + 5, end - 1..end, end / 3..end] {
        let found = site.other.get_range(&key, range.start as u64..range.end as u64).await?;
        ensure!(found == bytes[range.clone()], "bytes {range:?} of a large object are wrong");
    }
    Ok(())
}

pub(super) async fn never_seen_in_part(site: &Site<'_>) -> Result<(), Broken> {
    const BYTES: usize = 24 << 20;
    let bytes = Bytes::from(pattern(3, BYTES));
    let key = site.key("object");
    let written = AtomicBool::new(false);
    let ended = site.in_threads(2, |number, store, runtime| {
        if number == 0 {
            let put = runtime.block_on(store.put_if_absent(&key, bytes.clone().into()));
            written.store(true, Ordering::Release);
            return put.map(|_| ()).map_err(Broken::from);
        }
        loop {
            let last = written.load(Ordering::Acquire);
            let seen = runtime.block_on(async {
                let size = store.size(&key).await?;
                let found = store.get(&key, BYTES as u64).await;
                Ok::<_, Broken>((size, found))
            });
            let (size, found) = seen?;
            ensure!(
                size.is_none_or(|size| size == BYTES as u64),
                "an object of {BYTES} bytes had the size {size:?} while it was created"
            );
            match found {
                Ok(found) => ensure!(
                    found == bytes,
                    "{} bytes were read of an object of {BYTES} while it was created",
                    found.len()
                ),
                Err(error) if error.kind() == ErrorKind::NotFound && size.is_none() => {}
                Err(error) => return Err(error.into()),
            }
            if last {
                return Ok(());
            }
        }
    })?;
    ended.into_iter().collect()
}

pub(super) async fn cancelled_puts(site: &Site<'_>) -> Result<(), Broken> {
    const BYTES: usize = 4 << 20;
    for millis in [0, 1, 3, 10, 30] {
        let name = format!("after-{millis}");
        let key = site.key(&name);
        let bytes = Bytes::from(pattern(4 + millis, BYTES));
        tokio::select! {
            put = site.store.put_if_absent(&key, bytes.clone().into()) => {
                ensure!(matches!(put, Ok(Put::Created)), "a put of a new key gave {put:?}");
            }
            () = site.env.sleep(Duration::from_millis(millis)) => {}
        }
        // A store of bytes on the way may be there now, or still to come: both put it again.
        let put = site.store.put_if_absent(&key, bytes.clone().into()).await;
        match put {
            Ok(_) => site.expect(&name, &bytes).await?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
