//! Orbax: a folder for each step, items in it, arrays of zarr in OCDBT trees or in files.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value as Json;

use super::files;
use super::ocdbt::{self, Tree, Value};
use super::zarr::Grid;
use crate::doctor::Audit;
use crate::doctor::discover::Folder;
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::report::{Checkpoint, Coverage, Finding, Findings};

const STEP_METADATA: &str = "_CHECKPOINT_METADATA";
const TREE_METADATA: &str = "_METADATA";
const SHARDING: &str = "_sharding";
const TEXTS: &str = "_strings.json";
const OF_ARRAYS: &str = "array_metadatas";
const COMMIT_MARK: &str = "commit_success.txt";
const OF_PROCESS: &str = "ocdbt.process_";
const MANIFEST: &str = "manifest.ocdbt";
/// What the name of a folder has until it is renamed to its own.
pub(super) const TEMPORARY: &str = ".orbax-checkpoint-tmp";
/// How many bytes are decompressed for each byte of a checkpoint, and at least.
const WORK_PER_BYTE: u64 = 64;
const WORK_MIN: u64 = 1 << 30;
/// The largest value that is decoded.
const VALUE_BYTES_MAX: u64 = 4 << 30;

pub(super) fn is(name: &str, folder: &Folder) -> bool {
    name.contains(TEMPORARY)
        || folder.has(STEP_METADATA)
        || folder.has(MANIFEST)
        || (folder.has(TREE_METADATA) && (folder.has(SHARDING) || folder.has_folder("d")))
}

/// The step that a folder's name tells of, with or without a prefix.
fn step(name: &str) -> Option<u64> {
    let name = name.split(TEMPORARY).next()?;
    name.rsplit(['_', '-']).next()?.parse().ok()
}

pub(super) fn audit(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    let name = checkpoint.path.file_name().and_then(|name| name.to_str()).unwrap_or("").to_owned();
    checkpoint.step = step(&name);
    if name.contains(TEMPORARY) {
        return checkpoint.findings.add(
            Finding::damage("uncommitted", name)
                .expected("a folder that was renamed when it was whole")
                .found("its temporary name: the save was cut off, or is under way")
                .remedy("Orbax passes over it; take an older checkpoint"),
        );
    }
    let Checkpoint { path, findings, coverage, bytes, .. } = checkpoint;
    if folder.has(STEP_METADATA)
        && let Some(value) = files::json(path, STEP_METADATA, findings)
        && value.get("commit_timestamp_nsecs").is_none_or(Json::is_null)
    {
        findings.add(
            Finding::damage("uncommitted", STEP_METADATA)
                .expected("the time of the commit")
                .found("none: the save was not finished")
                .remedy("take an older checkpoint"),
        );
    }
    let mut items: Vec<String> = Vec::new();
    if is_tree(folder) {
        items.push(String::new());
    }
    // What each process wrote is a tree of its own, which the item's own names.
    for inner in folder.folders.iter().filter(|inner| !inner.starts_with(OF_PROCESS)) {
        let below = Folder::read(&path.join(inner)).unwrap_or_default();
        match is_tree(&below) {
            true => items.push(format!("{inner}/")),
            false => items.extend(trees_in(path, inner, &below)),
        }
    }
    let expected = handlers(path, findings);
    check_items(path, folder, &expected, &items, findings);
    if items.is_empty() && expected.is_empty() {
        findings.add(
            Finding::damage("missing", ".")
                .expected("items with arrays")
                .found("none")
                .remedy("take an older checkpoint"),
        );
    }
    let work = Cell::new(bytes.saturating_mul(WORK_PER_BYTE).saturating_add(WORK_MIN));
    for prefix in items {
        let (root, path) = (path.as_path(), path.join(&prefix));
        Item { audit, root, path: &path, prefix: &prefix, work: &work }.check(findings, coverage);
    }
    findings.add(
        Finding::note("no-checksum", "arrays")
            .expected("a checksum of every chunk")
            .found("only tables have one (CRC-32C); arrays are compressed without")
            .remedy("what cannot be decompressed was found; other flips cannot be"),
    );
}

/// What writes an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    /// A tree of arrays.
    Tree,
    /// A file of JSON.
    Json,
    /// A state of random numbers: a tree in a folder, and what it is of, as JSON, in another.
    Key,
    Other,
}

fn is_tree(folder: &Folder) -> bool {
    folder.has(TREE_METADATA) || folder.has(MANIFEST)
}

/// Trees in the folders of an item that is none itself.
fn trees_in(path: &Path, item: &str, folder: &Folder) -> Vec<String> {
    let names = folder.folders.iter().map(|inner| format!("{item}/{inner}/"));
    names.filter(|name| Folder::read(&path.join(name)).is_ok_and(|below| is_tree(&below))).collect()
}

/// Every item that the metadata of a step names is there; `trees` are those that are trees of arrays.
fn check_items(
    path: &Path,
    folder: &Folder,
    expected: &BTreeMap<String, Handler>,
    trees: &[String],
    findings: &mut Findings,
) {
    for (item, handler) in expected {
        let is_there = match handler {
            Handler::Tree => trees.contains(&format!("{item}/")),
            Handler::Key => trees.iter().any(|tree| tree.starts_with(&format!("{item}/"))),
            Handler::Json | Handler::Other => folder.has_folder(item),
        };
        match handler {
            Handler::Json if is_there => json_item(path, item, findings),
            Handler::Key if is_there => key_item(path, item, trees, findings),
            _ => {}
        }
        if is_there {
            continue;
        }
        findings.add(
            Finding::damage("missing", item)
                .expected("an item that the metadata of the step names")
                .found("it is not there")
                .remedy("take an older checkpoint"),
        );
    }
}

fn key_item(path: &Path, item: &str, trees: &[String], findings: &mut Findings) {
    let own = trees.iter().filter(|tree| tree.starts_with(&format!("{item}/")));
    for tree in own {
        json_item(path, &format!("{}_metadata", tree.trim_end_matches('/')), findings);
    }
}

/// What is in an item of JSON: a file that is called as the user likes, and Orbax's own marks.
fn json_item(path: &Path, item: &str, findings: &mut Findings) {
    let below = Folder::read(&path.join(item)).unwrap_or_default();
    let mut some = false;
    for file in below.files.iter().filter(|file| *file != COMMIT_MARK && !file.starts_with('_')) {
        some = true;
        files::json(path, &format!("{item}/{file}"), findings);
    }
    if !some {
        findings.add(
            Finding::damage("missing", item)
                .expected("a file of JSON, as the metadata of the step says")
                .found("there is none")
                .remedy("take an older checkpoint"),
        );
    }
}

/// The items that the metadata of a step names, and what wrote each.
fn handlers(path: &Path, findings: &mut Findings) -> BTreeMap<String, Handler> {
    if !path.join(STEP_METADATA).exists() {
        return BTreeMap::new();
    }
    let value = files::json(path, STEP_METADATA, &mut Findings::default());
    let items = value.as_ref().and_then(|value| value.get("item_handlers"));
    let Some(items) = items.and_then(Json::as_object) else { return BTreeMap::new() };
    let inside = |name: &&String| !name.is_empty() && !name.contains('/') && *name != "..";
    if let Some(odd) = items.keys().find(|name| !inside(name)) {
        findings.add(
            Finding::damage("unreadable", STEP_METADATA)
                .expected("names of items that are beside it")
                .found(format!("{odd:?}"))
                .remedy("do not load it"),
        );
    }
    let kind = |handler: &Json| match handler.as_str() {
        Some(name) if name.ends_with("StandardCheckpointHandler") => Handler::Tree,
        Some(name) if name.ends_with("PyTreeCheckpointHandler") => Handler::Tree,
        Some(name) if name.ends_with("JsonCheckpointHandler") => Handler::Json,
        Some(name) if name.ends_with("RandomKeyCheckpointHandler") => Handler::Key,
        _ => Handler::Other,
    };
    let named = items.iter().filter(|(name, _)| inside(name));
    named.map(|(name, handler)| (name.clone(), kind(handler))).collect()
}

/// One item: a tree of arrays.
struct Item<'a> {
    audit: &'a Audit<'a>,
    /// The checkpoint that it is in.
    root: &'a Path,
    path: &'a Path,
    prefix: &'a str,
    /// How much work may still be done: hostile tables name one chunk a million times, or a chunk that
    /// decompresses without end.
    work: &'a Cell<u64>,
}

impl Item<'_> {
    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn check(&self, findings: &mut Findings, coverage: &mut Coverage) {
        let metadata = files::json(self.root, &self.named(TREE_METADATA), findings);
        self.check_descriptions(metadata.as_ref(), findings);
        let flag = |name: &str| metadata.as_ref().and_then(|m| m.get(name)?.as_bool());
        let in_tree = flag("use_ocdbt").unwrap_or_else(|| self.path.join(MANIFEST).exists());
        let entries = match in_tree {
            true => match ocdbt::read(self.path) {
                Ok(tree) => {
                    coverage.checked += tree.checked;
                    Entries::Tree(tree)
                }
                Err(flaw) => {
                    return findings.add(Finding::flaw(
                        self.named(MANIFEST),
                        "a tree whose nodes are all there",
                        &flaw,
                    ));
                }
            },
            false => Entries::Files,
        };
        let arrays = self.arrays(metadata.as_ref(), &entries);
        let fill = flag("store_array_data_equal_to_fill_value").unwrap_or(false);
        for array in arrays {
            self.check_array(&array, &entries, fill, findings, coverage);
        }
        if let Entries::Tree(tree) = &entries {
            self.check_places(tree, findings);
        }
    }

    /// What Orbax reads beside the arrays, if it is there: how they are sharded, and what each process wrote.
    fn check_descriptions(&self, metadata: Option<&Json>, findings: &mut Findings) {
        let tree = metadata.and_then(|m| m.get("tree_metadata")).and_then(Json::as_object);
        let kind =
            |entry: &Json| entry.pointer("/value_metadata/value_type") == Some(&"string".into());
        let has_texts = tree.is_some_and(|tree| tree.values().any(kind));
        for (name, is_needed) in [(SHARDING, false), (TEXTS, has_texts)] {
            if is_needed || self.path.join(name).exists() {
                files::json(self.root, &self.named(name), findings);
            }
        }
        let of_processes = Folder::read(&self.path.join(OF_ARRAYS)).unwrap_or_default();
        for file in of_processes.files.iter().filter(|file| file.starts_with("process_")) {
            files::json(self.root, &self.named(&format!("{OF_ARRAYS}/{file}")), findings);
        }
    }

    /// Takes so much from the work that may still be done.
    fn spend(&self, cost: u64) -> Option<()> {
        self.work.set(self.work.get().checked_sub(cost)?);
        Some(())
    }

    /// The arrays that the metadata names, or that are there.
    fn arrays(&self, metadata: Option<&Json>, entries: &Entries) -> BTreeSet<String> {
        let mut arrays = BTreeSet::new();
        let tree = metadata.and_then(|m| m.get("tree_metadata")).and_then(Json::as_object);
        for entry in tree.into_iter().flat_map(serde_json::Map::values) {
            let kind = entry.pointer("/value_metadata/value_type").and_then(Json::as_str);
            let is_array = matches!(kind, Some("jax.Array" | "np.ndarray" | "scalar"));
            let keys = entry.get("key_metadata").and_then(Json::as_array);
            let parts: Option<Vec<String>> = keys.and_then(|keys| {
                let text = |key: &Json| match key.get("key")? {
                    Json::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                };
                keys.iter().map(text).collect()
            });
            if let Some(parts) = parts.filter(|_| is_array) {
                arrays.insert(parts.join("."));
            }
        }
        if let Entries::Tree(tree) = entries {
            let there = tree.values.keys().filter_map(|key| {
                key.strip_suffix("/.zarray").or_else(|| key.strip_suffix("/zarr.json"))
            });
            arrays.extend(there.map(str::to_owned));
        }
        arrays
    }

    fn get(&self, entries: &Entries, key: &str) -> Option<Result<Stored, Flaw>> {
        match entries {
            Entries::Tree(tree) => Some(match tree.values.get(key)? {
                Value::Inline(bytes) => Ok(Stored::Bytes(bytes.clone())),
                Value::At(location) => ocdbt::inside(self.path, location).map(Stored::Span),
            }),
            Entries::Files => {
                let escapes = key.split('/').any(|part| part == ".." || part.is_empty());
                let path = self.path.join(key);
                if escapes || !path.exists() {
                    return None;
                }
                Some(Span::open(&path).map(Stored::Span))
            }
        }
    }

    fn check_array(
        &self,
        array: &str,
        entries: &Entries,
        fill: bool,
        findings: &mut Findings,
        coverage: &mut Coverage,
    ) {
        let object = self.named(array);
        let description = self
            .get(entries, &format!("{array}/.zarray"))
            .or_else(|| self.get(entries, &format!("{array}/zarr.json")));
        let Some(description) = description else {
            return findings.add(
                Finding::damage("missing-tensor", object)
                    .expected("the description of an array that the metadata names")
                    .found("it is not there")
                    .remedy("take an older checkpoint"),
            );
        };
        let description = description.and_then(|stored| stored.json());
        let grid = match description.as_ref().map_err(Flaw::clone).and_then(Grid::read) {
            Ok(grid) => grid,
            Err(flaw) => return findings.add(Finding::flaw(object, "an array of zarr", &flaw)),
        };
        for key in grid.keys(array) {
            let stored = self.get(entries, &key);
            let stored_bytes = stored.iter().flatten().map(Stored::len).sum();
            let cost = [grid.unpacked_bytes(), stored_bytes, key.len() as u64, 64];
            if cost.into_iter().try_for_each(|cost| self.spend(cost)).is_none() {
                let flaw = Flaw::limit("more chunks than its size explains");
                return findings.add(Finding::flaw(object, "an array of zarr", &flaw));
            }
            match stored {
                Some(Ok(stored)) => {
                    coverage.uncheckable = coverage.uncheckable.saturating_add(stored.len());
                    let bytes = || stored.bytes(VALUE_BYTES_MAX);
                    if !self.audit.quick
                        && let Err(flaw) = bytes().and_then(|bytes| grid.check(&bytes))
                    {
                        findings.add(Finding::flaw(self.named(&key), "a chunk of an array", &flaw));
                    }
                    self.audit.read(stored.len());
                }
                Some(Err(flaw)) => {
                    findings.add(Finding::flaw(self.named(&key), "a chunk of an array", &flaw));
                }
                // Without that setting, a chunk that is all fill value is not stored.
                None if !fill => {}
                None => findings.add(
                    Finding::damage("missing-chunk", self.named(&key))
                        .expected("a chunk of an array")
                        .found("it is not there")
                        .remedy("a restore fills it with the fill value, and says nothing"),
                ),
            }
        }
    }

    /// Every value lies in a file that is there and long enough.
    fn check_places(&self, tree: &Tree, findings: &mut Findings) {
        let mut lens: BTreeMap<&str, Result<u64, Flaw>> = BTreeMap::new();
        for (key, value) in &tree.values {
            let Value::At(location) = value else { continue };
            let len = lens
                .entry(&location.file)
                .or_insert_with(|| ocdbt::data_file(self.path, location).map(|span| span.len()));
            let flaw = match len {
                Ok(len) if location.offset.saturating_add(location.len) <= *len => continue,
                Ok(len) => Flaw::content(format!(
                    "data file {} has {len} bytes, it should end at {}",
                    location.file,
                    location.offset.saturating_add(location.len)
                )),
                Err(flaw) => flaw.clone(),
            };
            findings.add(
                Finding::flaw(self.named(key), "bytes that are in a data file", &flaw)
                    .of_kind("truncated"),
            );
        }
    }
}

enum Entries {
    Tree(Tree),
    Files,
}

enum Stored {
    Bytes(Vec<u8>),
    Span(Span),
}

impl Stored {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Span(span) => span.len(),
        }
    }

    fn bytes(&self, most: u64) -> Result<Vec<u8>, Flaw> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::Span(span) => span.all(most),
        }
    }

    fn json(&self) -> Result<Json, Flaw> {
        let bytes = self.bytes(files::JSON_BYTES_MAX)?;
        serde_json::from_slice(&bytes).map_err(|e| Flaw::content(format!("it is no JSON: {e}")))
    }
}
