//! Pages that can be read: one title each, links that lead somewhere, a README of one screen.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Findings;
use crate::{markdown, repo};

const README: &str = "README.md";
const README_WORDS_MAX: usize = 350;
/// The part of README.md that only links to other pages; its words do not count.
const README_LINKS: &str = "Read on";

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    for path in repo::files("md")? {
        let page = repo::read(&path)?;
        let titles = markdown::prose(&page)
            .filter(|(_, line)| matches!(markdown::heading(line), Some((1, _))))
            .count();
        if titles != 1 {
            findings.error(&path, 0, format!("a page has one `# Title`, this one {titles}"));
        }
        for (line, text) in markdown::prose(&page) {
            for target in markdown::links(text) {
                if let Err(reason) = follow(&path, &page, target) {
                    findings.error(&path, line, format!("the link {target:?}: {reason}"));
                }
            }
        }
    }
    let words = readme_words(&repo::read(README)?);
    if words > README_WORDS_MAX {
        let message =
            format!("{words} words before `## {README_LINKS}`, at most {README_WORDS_MAX}");
        findings.error(README, 0, message);
    }
    Ok(())
}

fn readme_words(page: &str) -> usize {
    markdown::prose(page)
        .map(|(_, line)| line)
        .take_while(|line| markdown::heading(line) != Some((2, README_LINKS)))
        .flat_map(str::split_whitespace)
        .filter(|word| word.contains(char::is_alphanumeric))
        .count()
}

/// Checks that a link from `page` at `path` leads to a file and a heading that exist.
fn follow(path: &Path, page: &str, target: &str) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (file, anchor) = match target.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor)),
        None => (target, None),
    };
    let linked = if file.is_empty() {
        page.to_owned()
    } else {
        let file: PathBuf = path.parent().unwrap_or(Path::new("")).join(file);
        let full = repo::root().join(&file);
        if !full.exists() {
            return Err("there is no such file".into());
        }
        let Some(anchor) = anchor.filter(|_| full.is_file()) else { return Ok(()) };
        repo::read(&file).map_err(|error| format!("#{anchor}: {error:#}"))?
    };
    let Some(anchor) = anchor else { return Ok(()) };
    let found = markdown::prose(&linked)
        .filter_map(|(_, line)| markdown::heading(line))
        .any(|(_, text)| markdown::anchor(text) == anchor);
    if found { Ok(()) } else { Err("there is no such heading".into()) }
}

#[cfg(test)]
mod tests;
