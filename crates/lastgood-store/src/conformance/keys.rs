//! The names of objects, and who sees them.

use super::site::{Broken, Site, ensure, expect_error};
use crate::ErrorKind::Invalid;
use crate::Put;

pub(super) async fn of_every_kind(site: &Site<'_>) -> Result<(), Broken> {
    let mut names = vec![
        "A".to_owned(),
        "a".to_owned(),
        "Case/x".to_owned(),
        "case/x".to_owned(),
        "x.".to_owned(),
        "x..y".to_owned(),
        "x-_.-".to_owned(),
        "-".to_owned(),
        "_".to_owned(),
        "0123456789".to_owned(),
        "CON".to_owned(),
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".to_owned(),
        "deep/".repeat(40) + "x",
        "n".repeat(255),
    ];
    let longest = 900 - site.key("").len();
    names.push("folder/".repeat(longest).chars().take(longest - 1).collect::<String>() + "x");
    for name in &names {
        site.create(name, name.clone()).await?;
    }
    for name in &names {
        site.expect(name, name.as_bytes()).await?;
    }
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    site.expect_listed("", None, &sorted).await
}

pub(super) async fn hostile(site: &Site<'_>) -> Result<(), Broken> {
    let (long, longer) = ("n".repeat(256), "folder/".repeat(150) + "x");
    let keys = [
        "",
        "/",
        ".",
        "..",
        "../x",
        "x/..",
        "x/../y",
        "x/../../y",
        "./x",
        "x/./y",
        "/x",
        "x/",
        "//x",
        "x//y",
        ".x",
        "x/.y",
        ".staging/x",
        "x y",
        " x",
        "x\n",
        "x\0y",
        "x\\y",
        "C:\\x",
        "C:x",
        "x%2fy",
        "%2e%2e/x",
        "x?y",
        "x#y",
        "x*",
        "x:y",
        "~/x",
        "$HOME",
        "x+y",
        "é",
        "x/é",
        "\u{202e}x",
        &long,
        &longer,
    ];
    let store = &site.store;
    for key in keys {
        let what = |verb: &'static str| move || format!("{verb} {key:.80?}");
        expect_error(Invalid, what("put"), store.put_if_absent(key, "bytes".into()).await)?;
        expect_error(Invalid, what("get"), store.get(key, 10).await)?;
        expect_error(Invalid, what("get_range"), store.get_range(key, 0..1).await)?;
        expect_error(Invalid, what("get_range"), store.get_range(key, 0..0).await)?;
        expect_error(Invalid, what("read_into"), store.read_into(key, 0, &mut [0]).await)?;
        expect_error(Invalid, what("size"), store.size(key).await)?;
        expect_error(Invalid, what("settle"), store.settle(key).await)?;
        expect_error(Invalid, what("delete"), store.delete(key).await)?;
    }
    for prefix in ["/", "..", "../", "x/../", "x//", ".staging/", "x\0", "é", &longer] {
        let what = || format!("list {prefix:.80?}");
        expect_error(Invalid, what, store.list(prefix, None).await)?;
    }
    Ok(())
}

pub(super) async fn deleted(site: &Site<'_>) -> Result<(), Broken> {
    for name in ["f/a", "f/b", "f/bc"] {
        site.create(name, name.to_owned()).await?;
    }
    let key = site.key("f/b");
    for _ in 0..2 {
        site.other.delete(&key).await?;
        for store in [&site.store, &site.other] {
            let size = store.size(&key).await?;
            ensure!(size.is_none(), "a deleted object has the size {size:?}");
            let found = store.get(&key, 10).await;
            ensure!(found.is_err(), "a deleted object gave {found:?}");
        }
        site.expect("f/a", b"f/a").await?;
        site.expect("f/bc", b"f/bc").await?;
        site.create("f/b", "again").await?;
        site.expect("f/b", b"again").await?;
    }
    for name in ["f/a", "f/b", "f/bc"] {
        site.store.delete(&site.key(name)).await?;
    }
    site.create("f/b", "at last").await?;
    site.expect("f/b", b"at last").await
}

pub(super) async fn shared(site: &Site<'_>) -> Result<(), Broken> {
    let (a, b) = (site.store.location(), site.other.location());
    ensure!(!a.is_empty() && a == b, "the same store is at {a:?} and at {b:?}");
    for (i, writer) in [&site.store, &site.other].into_iter().enumerate() {
        let name = format!("object-{i}");
        let key = site.key(&name);
        let put = writer.put_if_absent(&key, name.clone().into()).await?;
        ensure!(put == Put::Created, "a put of a new key answered {put:?}");
        site.expect(&name, name.as_bytes()).await?;
        for store in [&site.store, &site.other] {
            let put = store.put_if_absent(&key, "other".into()).await?;
            ensure!(put == Put::Exists, "a put of another's key answered {put:?}");
        }
    }
    site.expect_listed("", None, &["object-0", "object-1"]).await
}
