//! safetensors: one file, shards with an index, and the shards that DCP's Hugging Face writer leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ::safetensors::tensor::Metadata;
use lastgood_format::layout::NdBox;
use serde_json::Value;

use super::{Format, dcp, files, hf};
use crate::doctor::Audit;
use crate::doctor::discover::Folder;
use crate::doctor::disk::Span;
use crate::doctor::flaw::Flaw;
use crate::doctor::report::{Checkpoint, Coverage, Finding, Findings};

/// The largest header that readers of safetensors take.
const HEADER_BYTES_MAX: u64 = 100_000_000;
const INDEX: &str = ".safetensors.index.json";
const INDEX_OF_TENSORS: &str = ".safetensors.index.";
const INDEX_OF_PICKLES: &str = ".bin.index.";
const SINGLE: &str = "model.safetensors";
/// What a model of Hugging Face's needs beside its weights.
const CONFIGS: [&str; 3] = ["config.json", "generation_config.json", "adapter_config.json"];
/// What Accelerate calls the state of its first optimizer.
const OPTIMIZER_OF_ACCELERATE: &str = "optimizer.bin";
/// Where DCP's writer says which part of a tensor a file has.
const SHARDING: &str = "DCP_SHARDING_INFO";

/// The header of a file, checked: its tensors fill the file without a gap or an overlap.
pub(crate) fn header(span: &Span) -> Result<Metadata, Flaw> {
    let mut length = [0; 8];
    if span.len() < 8 {
        return Err(Flaw::content(format!("{} bytes", span.len())));
    }
    span.read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    let room = span.len() - 8;
    if length > room {
        return Err(Flaw::content(format!(
            "its first 8 bytes tell of a header of {length} bytes, there is room for {room}"
        )));
    }
    let header = span.bytes(8, length, HEADER_BYTES_MAX)?;
    let header: Metadata =
        serde_json::from_slice(&header).map_err(|e| Flaw::content(format!("its header: {e}")))?;
    let expected = (header.data_len() as u64).saturating_add(8 + length);
    match expected == span.len() {
        true => Ok(header),
        false => Err(Flaw::content(format!(
            "its header tells of {expected} bytes, it has {}",
            span.len()
        ))),
    }
}

/// Checks one file.
pub(super) fn audit_file(
    name: &str,
    span: &Span,
    findings: &mut Findings,
    coverage: &mut Coverage,
) -> Option<Metadata> {
    coverage.uncheckable += span.len();
    match header(span) {
        Ok(header) => Some(header),
        Err(flaw) => {
            findings.add(Finding::flaw(name, "a whole safetensors file", &flaw));
            None
        }
    }
}

/// Says once what no safetensors file can show.
pub(super) fn note_no_sums(findings: &mut Findings, name: &str) {
    findings.add(
        Finding::note("no-checksum", name)
            .expected("a checksum of the tensors")
            .found("safetensors has none")
            .remedy("its bytes cannot be checked; sizes and structure were"),
    );
}

/// A folder of safetensors files that is a checkpoint of its own.
pub(crate) fn audit(audit: &Audit<'_>, folder: &Folder, checkpoint: &mut Checkpoint) {
    checkpoint.step = checkpoint
        .path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.rsplit(['-', '_']).next()?.parse().ok());
    let weights = weights(audit, folder, checkpoint);
    if weights.is_empty() {
        checkpoint.findings.add(
            Finding::damage("missing", "model.safetensors")
                .expected("weights")
                .found("none, or an index that names none")
                .remedy("take an older checkpoint"),
        );
    }
    let random_states = |name: &str| name.starts_with(hf::RANDOM_STATES);
    if folder.has(OPTIMIZER_OF_ACCELERATE) && !folder.any(random_states) {
        checkpoint.findings.add(
            Finding::doubt("missing", format!("{}0.pkl", hf::RANDOM_STATES))
                .expected("what Accelerate's save_state writes last, beside its optimizer.bin")
                .found("it is not there: the save was cut off, or it was removed")
                .remedy("take an older checkpoint, unless you know that the rest is whole"),
        );
    }
    // What Accelerate and others keep beside the weights: optimizers, schedules, random numbers.
    for name in folder.files.iter().filter(|name| !weights.contains(*name)) {
        if Format::of_loose_file(&checkpoint.path.join(name)) == Some(Format::Torch) {
            files::torch(audit, checkpoint, name);
        }
    }
}

/// True for an index of shards: `model.safetensors.index.json`, `pytorch_model.bin.index.json`, and
/// `model.safetensors.index.fp16.json` of a variant. Other frameworks and programs have indexes too.
pub(super) fn is_index(file: &str) -> bool {
    let of = |kind: &str| file.ends_with(".json") && file.contains(kind);
    of(INDEX_OF_TENSORS) || of(INDEX_OF_PICKLES)
}

/// Checks all files of weights in a folder; gives the names of those that are or should be there.
pub(super) fn weights(
    audit: &Audit<'_>,
    folder: &Folder,
    checkpoint: &mut Checkpoint,
) -> BTreeSet<String> {
    let indexes: Vec<&String> = folder.files.iter().filter(|file| is_index(file)).collect();
    let mut seen = BTreeSet::new();
    for index in &indexes {
        sharded(audit, folder, checkpoint, index, &mut seen);
    }
    let named = seen.clone();
    let mut parts = Parts::default();
    for file in folder.files.iter().filter(|file| file.ends_with(".safetensors")) {
        if !seen.insert(file.clone()) {
            continue;
        }
        let is_part = shard_name(file).is_some() || is_dcp_shard(file);
        if !indexes.is_empty() && is_part {
            checkpoint.findings.add(
                Finding::doubt("leftover", file)
                    .expected("shards that the index names")
                    .found("a shard that it does not name: of another save, or the index is")
                    .remedy("if both are of one size and age, do not trust either"),
            );
        }
        let Checkpoint { path, findings, coverage, .. } = &mut *checkpoint;
        let Some(span) = files::open(path, file, findings) else { continue };
        if let Some(header) = audit_file(file, &span, findings, coverage) {
            parts.add(file, &header);
        }
    }
    parts.finish(&mut checkpoint.findings);
    lone_shards(folder, &named, &mut checkpoint.findings);
    for name in CONFIGS.iter().filter(|name| folder.has(name)) {
        files::json(&checkpoint.path, name, &mut checkpoint.findings);
    }
    if seen.iter().any(|file| file.ends_with(".safetensors")) {
        note_no_sums(&mut checkpoint.findings, "*.safetensors");
    }
    let pickled = hf::pickled_weights(audit, folder, checkpoint);
    seen.extend(pickled.into_iter().map(str::to_owned));
    seen
}

/// Shards `STEM-NNNNN-of-MMMMM` without the index that says what is in which, and a single file beside an
/// index; `named` are those that some index names.
fn lone_shards(folder: &Folder, named: &BTreeSet<String>, findings: &mut Findings) {
    let mut sets: BTreeMap<(&str, u64), BTreeSet<u64>> = BTreeMap::new();
    for file in &folder.files {
        let Some((stem, number, count)) = shard_name(file) else { continue };
        if !named.contains(file) && !folder.has(&format!("{stem}{INDEX}")) {
            sets.entry((stem, count)).or_default().insert(number);
        }
    }
    for ((stem, count), numbers) in sets {
        findings.add(
            Finding::damage("missing", format!("{stem}{INDEX}"))
                .expected("the index that says which tensor is in which shard; it is written last")
                .found(format!("it is not there: {} of {count} shards are", numbers.len()))
                .remedy("from_pretrained finds no weights without it; take an older checkpoint"),
        );
    }
    if folder.has(SINGLE) && folder.has(&format!("model{INDEX}")) {
        findings.add(
            Finding::doubt("leftover", SINGLE)
                .expected("weights in one file, or shards and an index")
                .found("both: one of them is of another save")
                .remedy("from_pretrained takes the single file; delete the ones that are not of this save"),
        );
    }
}

/// The stem, the number and the count of a shard's name. DCP's Hugging Face writer has other names, and no
/// index.
fn shard_name(file: &str) -> Option<(&str, u64, u64)> {
    let (head, count) = file.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = head.rsplit_once('-')?;
    (!is_dcp_shard(file)).then_some((stem, number.parse().ok()?, count.parse().ok()?))
}

fn is_dcp_shard(file: &str) -> bool {
    file.starts_with("shard-") && file.contains("-of-")
}

/// The files that an index names, all of which are beside it.
pub(crate) fn named_by_index(folder: &Path, index: &str) -> Result<BTreeSet<String>, Flaw> {
    let bytes = Span::open(&folder.join(index))?.all(files::JSON_BYTES_MAX)?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|e| Flaw::content(format!("it is no JSON: {e}")))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Flaw::content("it has no weight_map"))?;
    let name =
        |file: &Value| file.as_str().filter(|file| files::is_beside(file)).map(str::to_owned);
    let names: Option<BTreeSet<String>> = map.values().map(name).collect();
    names.ok_or_else(|| Flaw::content("it names files that are not beside it"))
}

/// The shards that an index names.
fn sharded(
    audit: &Audit<'_>,
    folder: &Folder,
    checkpoint: &mut Checkpoint,
    index: &str,
    seen: &mut BTreeSet<String>,
) {
    let path = checkpoint.path.clone();
    let Some(value) = files::json(&path, index, &mut checkpoint.findings) else { return };
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        checkpoint.findings.add(Finding::flaw(
            index,
            "a weight_map",
            &Flaw::content("there is none"),
        ));
        return;
    };
    if map.is_empty() {
        checkpoint.findings.add(Finding::flaw(
            index,
            "a weight_map with tensors",
            &Flaw::content("one without any"),
        ));
    }
    if !index.contains(INDEX_OF_TENSORS) {
        return bins(audit, folder, checkpoint, index, map, seen);
    }
    let mut by_file: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, file) in map {
        by_file.entry(file.as_str().unwrap_or("")).or_default().insert(tensor);
    }
    let newest = Span::open(&path.join(index)).ok().and_then(|span| span.modified());
    let mut bytes = Some(0u64);
    let Checkpoint { findings, coverage, .. } = &mut *checkpoint;
    for (file, tensors) in by_file {
        if !files::is_beside(file) {
            findings.add(files::not_beside(index, file));
            continue;
        }
        seen.insert(file.to_owned());
        if !folder.has(file) {
            bytes = None;
            findings.add(
                Finding::damage("missing-shard", file)
                    .expected(format!("a shard with {} tensors", tensors.len()))
                    .found("it is not there")
                    .remedy("the checkpoint is not whole; take an older one"),
            );
            continue;
        }
        let Some(span) = files::open(&path, file, findings) else { continue };
        let Some(header) = audit_file(file, &span, findings, coverage) else { continue };
        bytes = bytes.map(|sum| sum.saturating_add(header.data_len() as u64));
        compare(file, &tensors, &header, findings);
        if let (Some(shard), Some(newest)) = (span.modified(), newest)
            && shard.duration_since(newest).is_ok_and(|by| by.as_secs() > 60)
        {
            findings.add(
                Finding::note("newer-than-index", file)
                    .expected("shards that are older than their index, which is written last")
                    .found("a newer one (only by the time of change: a copy does that too)")
                    .remedy("if nobody copied it, it is of another save"),
            );
        }
    }
    if let Some(bytes) = bytes {
        check_total(&value, bytes, index, findings);
    }
}

/// The size that an index tells of is that of its shards.
fn check_total(index: &Value, bytes: u64, name: &str, findings: &mut Findings) {
    let total = index.pointer("/metadata/total_size").and_then(Value::as_u64);
    if let Some(total) = total.filter(|total| *total != bytes) {
        findings.add(
            Finding::note("total-size", name)
                .expected(format!("total_size {total}"))
                .found(format!("{bytes} bytes in its shards"))
                .remedy(
                    "some writers count tied tensors twice; otherwise a shard is of another save",
                ),
        );
    }
}

/// Shards of `torch.save`, which an index names as well.
fn bins(
    audit: &Audit<'_>,
    folder: &Folder,
    checkpoint: &mut Checkpoint,
    index: &str,
    map: &serde_json::Map<String, Value>,
    seen: &mut BTreeSet<String>,
) {
    let names: BTreeSet<&str> = map.values().map(|name| name.as_str().unwrap_or("")).collect();
    let is_loaded_instead = folder.any(|file| file.ends_with(".safetensors"));
    if is_loaded_instead && !names.iter().any(|name| folder.has(name)) {
        return checkpoint.findings.add(
            Finding::note("leftover", index)
                .expected("the shards that it names")
                .found("none of them: they were not copied with it")
                .remedy("from_pretrained takes safetensors, which are there"),
        );
    }
    for name in names {
        if !files::is_beside(name) {
            checkpoint.findings.add(files::not_beside(index, name));
        } else if seen.insert(name.to_owned()) {
            files::torch(audit, checkpoint, name);
        }
    }
}

/// The tensors of a shard are those that the index says.
fn compare(file: &str, tensors: &BTreeSet<&str>, header: &Metadata, findings: &mut Findings) {
    let has: BTreeSet<String> = header.offset_keys().into_iter().collect();
    for tensor in tensors.iter().filter(|tensor| !has.contains(**tensor)) {
        findings.add(
            Finding::damage("missing-tensor", file)
                .expected(format!("tensor {tensor}, as the index says"))
                .found("it is not in this shard")
                .remedy("index and shard are of different saves; take an older checkpoint"),
        );
    }
    for tensor in has.iter().filter(|tensor| !tensors.contains(tensor.as_str())) {
        findings.add(
            Finding::doubt("torn", file)
                .expected("the tensors that the index names")
                .found(format!("tensor {tensor}, which the index has elsewhere or not at all"))
                .remedy("index and shard may be of different saves"),
        );
    }
}

/// Parts of tensors in files that no index ties together.
#[derive(Debug, Default)]
struct Parts {
    boxes: BTreeMap<String, Vec<NdBox>>,
    numbers: BTreeSet<u64>,
    file: Option<String>,
}

impl Parts {
    fn add(&mut self, file: &str, header: &Metadata) {
        let metadata = header.metadata().as_ref();
        let Some(text) = metadata.and_then(|metadata| metadata.get(SHARDING)) else { return };
        self.file.get_or_insert_with(|| file.to_owned());
        let digits = file.strip_prefix("shard-").and_then(|rest| rest.split('-').next());
        self.numbers.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
        let Ok(sharding) = serde_json::from_str::<Value>(text) else { return };
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            let offsets = sharding.pointer(&format!("/{}/saved_offsets", escape(&name)));
            let offsets: Option<Vec<u64>> = offsets
                .and_then(Value::as_array)
                .and_then(|all| all.iter().map(Value::as_u64).collect());
            let sizes: Vec<u64> = info.shape.iter().map(|size| *size as u64).collect();
            let offsets = offsets.filter(|offsets| offsets.len() == sizes.len());
            if let Some(offsets) = offsets {
                self.boxes.entry(name).or_default().push(NdBox { offsets, sizes });
            }
        }
    }

    fn finish(self, findings: &mut Findings) {
        let Some(file) = &self.file else { return };
        findings.add(
            Finding::doubt("no-commit-mark", file)
                .expected("metadata that says which shards there are")
                .found("shards of DCP's Hugging Face writer, which leaves none")
                .remedy("consolidate them; whether the last shard is missing cannot be told"),
        );
        let most = self.numbers.last().copied().unwrap_or(0);
        let missing = (1..=most.min(100_000)).filter(|number| !self.numbers.contains(number));
        for number in missing {
            findings.add(
                Finding::damage("missing-shard", format!("shard-{number:05}-…"))
                    .expected(format!("shards 1 to {most}"))
                    .found("this one is not there")
                    .remedy("a load leaves what was in it as it is in memory, and says nothing"),
            );
        }
        let mut pairs = dcp::PAIRS_MAX;
        for (name, parts) in &self.boxes {
            if let Some(flaw) = gap(parts, &mut pairs) {
                findings.add(dcp::hole(name, "parts that cover the tensor", &flaw, "a load"));
            }
        }
    }
}

/// A hole in, or an overlap of, parts that should fill the box from zero to the furthest end.
fn gap(parts: &[NdBox], pairs: &mut u64) -> Option<Flaw> {
    let dims = parts.first()?.sizes.len();
    let end = |d: usize| {
        let mut ends = parts.iter().map(|part| part.offsets[d].checked_add(part.sizes[d]));
        ends.try_fold(0, |most, end| end.map(|end| most.max(end)))
    };
    if parts.iter().any(|part| part.sizes.len() != dims) {
        return Some(Flaw::content("parts of different numbers of dimensions"));
    }
    let shape: Option<Vec<u64>> = (0..dims).map(end).collect();
    let Some(shape) = shape else { return Some(Flaw::content("parts that end nowhere")) };
    dcp::gap(&shape, parts, pairs)
}

fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
