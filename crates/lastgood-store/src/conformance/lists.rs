//! Listing objects.

use super::site::{Broken, Site, ensure};
use crate::Put;

/// Sorted, in an order in which walking through folders does not find them.
const NAMES: [&str; 12] = [
    "a-b/x", "a.b/x", "a.c", "a/b", "a/b-c/d", "a/b.c", "a/ba/x", "a/c/d/e", "a/c/e", "aa", "b/a",
    "b0",
];

async fn fill(site: &Site<'_>) -> Result<(), Broken> {
    // Not in their order.
    for (i, name) in NAMES.iter().enumerate().rev() {
        site.create(name, vec![7; i]).await?;
    }
    Ok(())
}

/// The names that a listing must have.
fn expected(prefix: &str, after: Option<&str>) -> Vec<&'static str> {
    let begins = NAMES.into_iter().filter(|name| name.starts_with(prefix));
    begins.filter(|name| after.is_none_or(|after| *name > after)).collect()
}

pub(super) async fn by_prefix(site: &Site<'_>) -> Result<(), Broken> {
    fill(site).await?;
    for prefix in [
        "", "a", "a/", "a/b", "a/b-", "a/b-c/", "a/b-c/d", "a/c", "a/c/", "a.", "b", "b/", "x",
        "a/x/",
    ] {
        site.expect_listed(prefix, None, &expected(prefix, None)).await?;
    }
    let folder = site.key("");
    let found = site.listed(&folder, None, NAMES.len()).await?;
    let sizes: Vec<u64> = found.iter().map(|object| object.bytes).collect();
    let expected: Vec<u64> = (0..NAMES.len() as u64).collect();
    ensure!(sizes == expected, "the sizes in a listing are {sizes:?}, not {expected:?}");
    // The prefix of everything, and the beginning of a top folder's name.
    for prefix in ["", &folder[..3]] {
        let found = site.listed(prefix, None, NAMES.len()).await?;
        let ours = found.iter().filter(|object| object.key.starts_with(&folder)).count();
        ensure!(ours == NAMES.len(), "list({prefix:?}) has {ours} of {} objects", NAMES.len());
    }
    Ok(())
}

pub(super) async fn after(site: &Site<'_>) -> Result<(), Broken> {
    fill(site).await?;
    let afters =
        ["A", "a", "a-b/x", "a/", "a/b", "a/b-c", "a/b-c/c", "a/c/d", "a/c/zz", "b0", "b1"];
    for prefix in ["", "a", "a/", "a/b", "b"] {
        for after in afters.into_iter().chain(NAMES) {
            site.expect_listed(prefix, Some(after), &expected(prefix, Some(after))).await?;
        }
    }
    let prefix = site.key("");
    for (after, count) in [("", NAMES.len()), ("zzz", 0), ("0", NAMES.len())] {
        let found = site.listed(&prefix, Some(after), count).await?.len();
        ensure!(found == count, "list after {after:?} has {found} objects, not {count}");
    }
    Ok(())
}

pub(super) async fn sorted(site: &Site<'_>) -> Result<(), Broken> {
    fill(site).await?;
    for i in [9, 10, 99, 100, 1] {
        site.create(&format!("n/{i}"), "").await?;
        site.create(&format!("n/{i:020}.json"), "").await?;
    }
    let found = site.listed(&site.key(""), None, NAMES.len() + 10).await?;
    ensure!(
        found.len() == NAMES.len() + 10,
        "{} of {} objects are listed",
        found.len(),
        NAMES.len() + 10
    );
    let wrong = found.windows(2).find(|pair| pair[0].key >= pair[1].key);
    ensure!(wrong.is_none(), "this is no order: {wrong:?}");
    Ok(())
}

pub(super) async fn many(site: &Site<'_>) -> Result<(), Broken> {
    const WRITERS: usize = 8;
    let count = site.options.objects_listed;
    let name = |i: usize| format!("{:03}/{i:06}", i % 5);
    let written = site.in_threads(WRITERS, |number, store, runtime| {
        for i in (number..count).step_by(WRITERS) {
            let put = runtime.block_on(store.put_if_absent(&site.key(&name(i)), "x".into()))?;
            ensure!(put == Put::Created, "a put of a new key answered {put:?}");
        }
        Ok(())
    })?;
    written.into_iter().collect::<Result<(), Broken>>()?;
    let mut expected: Vec<String> = (0..count).map(|i| site.key(&name(i))).collect();
    expected.sort();
    let prefix = site.key("");
    // The second begins behind the first page of a thousand.
    for from in [0, count - count / 20] {
        let after = from.checked_sub(1).map(|before| expected[before].as_str());
        let found = site.listed(&prefix, after, count - from).await?;
        let found: Vec<&str> = found.iter().map(|object| object.key.as_str()).collect();
        ensure!(
            found == expected[from..],
            "of {} objects after {after:?}, {} are listed",
            count - from,
            found.len()
        );
    }
    Ok(())
}
