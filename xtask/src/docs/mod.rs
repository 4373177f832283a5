//! `cargo xtask docs`: the pages that are made from what the code says.

mod cli;
mod dependencies;

use std::fs;

use anyhow::{Context, Result, bail};

use crate::repo;

/// A page that is made: its path from the root and its text.
struct Page {
    path: &'static str,
    text: String,
}

/// Writes the generated pages, or with `--check` says which ones are out of date.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    let check = match args {
        [] => false,
        [option] if option == "--check" => true,
        _ => bail!("cargo xtask docs takes no option but --check"),
    };
    let mut pages = vec![dependencies::page()?];
    match cli::page()? {
        Some(page) => pages.push(page),
        None => println!("{}: left out, since `lastgood` shows no help yet", cli::PATH),
    }
    let mut stale = 0;
    for page in &pages {
        let is_current = repo::read(page.path).is_ok_and(|text| text == page.text);
        if is_current {
            println!("{}: up to date", page.path);
        } else if check {
            stale += 1;
            println!("{}: out of date; run `cargo xtask docs`", page.path);
        } else {
            write(page)?;
            println!("{}: written", page.path);
        }
    }
    Ok(stale == 0)
}

fn write(page: &Page) -> Result<()> {
    let path = repo::root().join(page.path);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(&path, &page.text).with_context(|| format!("cannot write {}", page.path))
}
