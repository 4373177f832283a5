//! Names that say nothing, and work that nobody owns.

use std::path::Path;

use anyhow::Result;

use super::Findings;
use crate::repo;

/// Modules of these names collect what has nothing in common.
const MODULES: &[&str] =
    &["common", "helper", "helpers", "manager", "misc", "types", "util", "utils"];

/// Types whose names contain one of these words.
const TYPE_WORDS: &[&str] = &["Helper", "Helpers", "Manager", "Util", "Utils"];

/// Marks of unfinished work, put together so that they are not found here.
const MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    for path in repo::files("rs")? {
        check_path(&path, findings);
        for (line, text) in (1..).zip(repo::read(&path)?.lines()) {
            if let Some(name) = module(text).filter(|name| MODULES.contains(name)) {
                findings.error(&path, line, format!("`{name}` says nothing: name what is in it"));
            }
            if let Some((name, word)) = type_name(text) {
                findings.error(&path, line, format!("{name}: {word} says nothing of what it does"));
            }
        }
    }
    for extension in ["rs", "md", "toml", "sh", "py"] {
        for path in repo::files(extension)? {
            for (line, text) in (1..).zip(repo::read(&path)?.lines()) {
                if let Some(mark) = unowned(text) {
                    findings.error(&path, line, format!("write {mark}(who) or do it"));
                }
            }
        }
    }
    Ok(())
}

fn check_path(path: &Path, findings: &mut Findings) {
    let stem = path.with_extension("");
    for part in &stem {
        if MODULES.iter().any(|name| part == *name) {
            findings.error(path, 0, format!("{part:?} says nothing: name what is in it"));
        }
    }
}

/// The module that a line declares.
fn module(line: &str) -> Option<&str> {
    let declared = declaration(line, &["mod "])?;
    declared.split([';', ' ', '{']).next()
}

/// The type that a line declares, and the word in its name that says nothing.
fn type_name(line: &str) -> Option<(&str, &'static str)> {
    let declared = declaration(line, &["struct ", "enum ", "trait ", "type "])?;
    let name = declared.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    let word = TYPE_WORDS.iter().find(|word| words(name).contains(word))?;
    Some((name, word))
}

fn declaration<'l>(line: &'l str, keywords: &[&str]) -> Option<&'l str> {
    let line = line.trim_start();
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.strip_prefix(' ')?,
        None => line,
    };
    keywords.iter().find_map(|keyword| line.strip_prefix(keyword))
}

/// The words of a name in camel case.
fn words(name: &str) -> Vec<&str> {
    let mut starts: Vec<usize> =
        name.char_indices().filter(|(_, c)| c.is_uppercase()).map(|(at, _)| at).collect();
    starts.push(name.len());
    starts.windows(2).map(|pair| &name[pair[0]..pair[1]]).collect()
}

/// A mark of unfinished work in a line that does not say whose it is.
fn unowned(line: &str) -> Option<&'static str> {
    MARKS.into_iter().find(|mark| {
        line.match_indices(mark).any(|(at, _)| {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let (before, after) = (&line[..at], &line[at + mark.len()..]);
            !before.ends_with(word) && !after.starts_with(word) && !after.starts_with('(')
        })
    })
}

#[cfg(test)]
mod tests;
