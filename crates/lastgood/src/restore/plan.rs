//! From what is asked for to which range of which chunk goes where.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_format::index::ShardIndex;
use lastgood_format::layout::{NdBox, Run, check_cover};
use lastgood_format::{Dtype, Error, ErrorKind, Result};

use super::contents::{Contents, TensorInfo};
use crate::state::{Durability, Request, Sink, Targets, Want, show, show_name};

/// A function that takes bytes once everything is verified, with the bytes.
pub(crate) type Apply<'a> = Box<dyn FnOnce(Vec<u8>) -> Result<()> + 'a>;

/// What is to be fetched and where it goes.
pub(crate) struct Plan<'a> {
    /// The memory of each request: the caller's, or our own for functions.
    pub(crate) targets: Vec<Memory<'a>>,
    /// For each chunk that is needed, by (index, row): the ranges that go out of it.
    pub(crate) chunks: BTreeMap<(usize, u32), Vec<Piece>>,
    pub(crate) resets: Vec<Box<dyn FnOnce() + 'a>>,
    pub(crate) bytes: u64,
}

pub(crate) enum Memory<'a> {
    Borrowed(&'a mut [u8]),
    Owned(Vec<u8>, Apply<'a>),
}

/// A range of a decoded chunk that goes into a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// From the start of the decoded chunk.
    pub(crate) from: usize,
    pub(crate) bytes: usize,
    /// Number of the target, and where in it.
    pub(crate) target: usize,
    pub(crate) to: usize,
}

impl<'a> Plan<'a> {
    /// Matches `targets` with `contents`.
    pub(crate) fn new(contents: &Contents, targets: Targets<'a>) -> Result<Self> {
        let order = order(&targets.requests);
        check_names(contents, &targets, &order)?;
        let mut plan = Self {
            targets: Vec::with_capacity(targets.requests.len()),
            chunks: BTreeMap::new(),
            resets: targets.resets,
            bytes: 0,
        };
        let infos = infos(contents, &targets.requests, &order);
        for (request, info) in targets.requests.into_iter().zip(infos) {
            plan.add(contents, request, info)?;
        }
        Ok(plan)
    }

    fn add(
        &mut self,
        contents: &Contents,
        request: Request<'a>,
        info: Option<&TensorInfo>,
    ) -> Result<()> {
        let Request { component, name, want, sink } = request;
        // Told only if something is wrong.
        let here = || show(&component, &name);
        let info =
            info.ok_or_else(|| Error::not_found(format!("{} is not in the checkpoint", here())))?;
        let extent = check_request(&here, &want, info)?;
        let bytes = extent
            .elements()
            .and_then(|elements| info.dtype.bytes_of(elements))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| Error::corrupt(format!("{} is larger than memory", here())))?;
        let target = self.targets.len();
        self.add_pieces(contents, info, &extent, target, &here)?;
        self.bytes += bytes as u64;
        self.targets.push(match sink {
            Sink::Slice(slice) => Memory::Borrowed(slice),
            Sink::Apply(apply) => Memory::Owned(zeroed(bytes, &here)?, apply),
        });
        Ok(())
    }

    fn add_pieces(
        &mut self,
        contents: &Contents,
        info: &TensorInfo,
        extent: &NdBox,
        target: usize,
        here: &dyn Fn() -> String,
    ) -> Result<()> {
        // Of a million small tensors each is one shard, and is asked for whole.
        if let [at] = info.shards.as_slice()
            && contents.shard(*at).1.extent == *extent
        {
            let elements = extent.elements().and_then(|count| info.dtype.bytes_of(count));
            let run = Run { source: 0, target: 0, bytes: elements.unwrap_or(0) };
            return self.add_run(contents, *at, run, target, here);
        }
        let mut covered = Vec::new();
        for at in &info.shards {
            let shard = contents.shard(*at).1;
            let Some(shared) = shard.extent.intersection(extent) else { continue };
            covered.push(shared);
            let runs = shard.extent.runs_into(extent, info.dtype);
            for run in runs.map_err(|error| error.context(here()))? {
                self.add_run(contents, *at, run, target, here)?;
            }
        }
        // The proof that every byte of the target is written exactly once. The shard indexes are
        // whole, so that what is missing here was never saved: the checkpoint is not to blame.
        check_cover(extent, &covered).map_err(|error| {
            let what = match first_gap(extent, &covered) {
                Some(gap) => format!("no rank saved {gap} of it"),
                None => error.message().to_owned(),
            };
            Error::incompatible(format!("{}: asked for {extent}: {what}", here()))
                .with_remedy("ask only for what was saved, or save every part of the tensor")
        })
    }

    /// Cuts one run of a shard's bytes where its chunks end.
    fn add_run(
        &mut self,
        contents: &Contents,
        at: (usize, usize),
        run: Run,
        target: usize,
        here: &dyn Fn() -> String,
    ) -> Result<()> {
        let (index, shard) = contents.shard(at);
        let mut from = u64::from(shard.chunk_offset) + run.source;
        let mut to = run.target;
        let mut left = run.bytes;
        while left > 0 {
            let (row, offset) = locate(index, shard.first_chunk, from);
            let decoded = u64::from(index.chunks[row as usize].decoded_bytes);
            let bytes = left.min(decoded.saturating_sub(offset));
            if bytes == 0 {
                return Err(Error::corrupt(format!("{}: a shard outgrows its chunks", here())));
            }
            self.chunks.entry((at.0, row)).or_default().push(Piece {
                from: offset as usize,
                bytes: bytes as usize,
                target,
                to: to as usize,
            });
            from += bytes;
            to += bytes;
            left -= bytes;
        }
        Ok(())
    }
}

/// The requests in the order of their names.
pub(super) fn order(requests: &[Request<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|i| name_of(&requests[*i]));
    order
}

/// What the checkpoint says of the data of each request, found in one walk: names rise in it.
fn infos<'c>(
    contents: &'c Contents,
    requests: &[Request<'_>],
    order: &[usize],
) -> Vec<Option<&'c TensorInfo>> {
    let mut infos = vec![None; requests.len()];
    let mut there = contents.tensors().iter().peekable();
    for i in order {
        let name = name_of(&requests[*i]);
        while there.next_if(|(there, _)| (there.0.as_str(), there.1.as_str()) < name).is_some() {}
        let found = there.peek().filter(|(there, _)| (there.0.as_str(), there.1.as_str()) == name);
        infos[*i] = found.and_then(|(_, info)| match info.tied_to {
            Some(_) => contents.data_of(name.0, name.1),
            None => Some(*info),
        });
    }
    infos
}

fn name_of<'r>(request: &'r Request<'_>) -> Name<'r> {
    (request.component.as_str(), request.name.as_str())
}

/// A box of `target` that none of `boxes` has.
fn first_gap(target: &NdBox, boxes: &[NdBox]) -> Option<NdBox> {
    let mut left = vec![target.clone()];
    for taken in boxes {
        left = left.iter().flat_map(|part| without(part, taken)).collect();
    }
    left.into_iter().next()
}

/// What of `part` is outside of `taken`, in boxes.
fn without(part: &NdBox, taken: &NdBox) -> Vec<NdBox> {
    let Some(shared) = part.intersection(taken) else { return vec![part.clone()] };
    let mut outside = Vec::new();
    let mut rest = part.clone();
    for d in 0..rest.sizes.len() {
        let (begin, end) = (rest.offsets[d], rest.offsets[d] + rest.sizes[d]);
        let (from, to) = (shared.offsets[d], shared.offsets[d] + shared.sizes[d]);
        for (begin, end) in [(begin, from), (to, end)] {
            if begin < end {
                let mut slab = rest.clone();
                (slab.offsets[d], slab.sizes[d]) = (begin, end - begin);
                outside.push(slab);
            }
        }
        (rest.offsets[d], rest.sizes[d]) = (from, to - from);
    }
    outside
}

/// The chunk row and the offset in it of byte `from` after the start of `first_chunk`. Every chunk of a
/// large shard but its last is full.
fn locate(index: &ShardIndex, first_chunk: u32, from: u64) -> (u32, u64) {
    let full = u64::from(index.chunk_bytes);
    let last = index.chunks.len().saturating_sub(1) as u64;
    let row = (u64::from(first_chunk) + from / full).min(last);
    (row as u32, from - (row - u64::from(first_chunk)) * full)
}

/// Zeroed memory, or an error where allocation fails.
fn zeroed(bytes: usize, here: &dyn Fn() -> String) -> Result<Vec<u8>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(bytes).map_err(|_| {
        let here = here();
        Error::new(ErrorKind::Overloaded, format!("{here}: no memory for {bytes} bytes"))
    })?;
    memory.resize(bytes, 0);
    Ok(memory)
}

pub(super) fn check_request(
    here: &dyn Fn() -> String,
    want: &Want,
    info: &TensorInfo,
) -> Result<NdBox> {
    let has = || format!("the checkpoint has {} of {:?}", info.dtype, info.shape);
    match want {
        Want::Blob if info.dtype == Dtype::Blob => Ok(NdBox::whole(&info.shape)),
        Want::Tensor { dtype, shape, extent } if (info.dtype, &info.shape) == (*dtype, shape) => {
            Ok(extent.clone())
        }
        Want::Blob => Err(Error::incompatible(format!("{}: asked for a value, {}", here(), has()))),
        Want::Tensor { dtype, shape, .. } => Err(Error::incompatible(format!(
            "{}: asked for {dtype} of {shape:?}, {}",
            here(),
            has()
        ))),
    }
}

/// The names that are asked for and not there, and those that are there and nothing asks for.
pub(super) fn names_apart(
    contents: &Contents,
    targets: &Targets<'_>,
    order: &[usize],
) -> (Vec<String>, Vec<String>) {
    let mut asked: Vec<Name<'_>> = order.iter().map(|i| name_of(&targets.requests[*i])).collect();
    asked.dedup();
    let there: Vec<Name<'_>> =
        contents.tensors().keys().map(|(c, n)| (c.as_str(), n.as_str())).collect();
    let mut missing: Vec<String> =
        without_those(&asked, &there).map(|(component, name)| show(component, name)).collect();
    missing.extend(missing_components(contents, targets, &asked));
    let mut extra: Vec<String> = Vec::new();
    if !targets.partial {
        let others = rank_values(contents, &asked);
        let own =
            without_those(&there, &asked).filter(|name| !of_other_rank(contents, name, &others));
        extra.extend(own.map(|(component, name)| show(component, name)));
        extra.extend(extra_components(contents, targets, &there));
    }
    (missing, extra)
}

/// Those of `names` that are not among `others`; both rise.
fn without_those<'n>(names: &[Name<'n>], others: &[Name<'n>]) -> impl Iterator<Item = Name<'n>> {
    let mut others = others.iter().peekable();
    names.iter().copied().filter(move |name| {
        while others.next_if(|other| *other < name).is_some() {}
        others.peek() != Some(&name)
    })
}

/// Compares the names that are asked for with those that are there, and tells all differences at once.
fn check_names(contents: &Contents, targets: &Targets<'_>, order: &[usize]) -> Result<()> {
    let (missing, extra) = names_apart(contents, targets, order);
    if missing.is_empty() && extra.is_empty() {
        return Ok(());
    }
    let mut message = format!("checkpoint {}", contents.id());
    if !missing.is_empty() {
        message += &format!(" lacks {}", list(&missing));
    }
    if !extra.is_empty() {
        let joint = if missing.is_empty() { " holds" } else { "; it holds" };
        message += &format!("{joint} {}, which nothing asks for", list(&extra));
    }
    let kind = if missing.is_empty() { ErrorKind::Incompatible } else { ErrorKind::NotFound };
    Err(Error::new(kind, message)
        .with_remedy("name the same components and tensors as at save time, or restore partially"))
}

/// A tensor by the names of its component and itself.
type Name<'n> = (&'n str, &'n str);

/// The durable components that are restored and were not saved. Those of which a tensor is asked for
/// are told by that.
fn missing_components<'t>(
    contents: &Contents,
    targets: &'t Targets<'_>,
    asked: &'t [Name<'_>],
) -> impl Iterator<Item = String> + 't {
    let there: BTreeSet<String> = contents.components().into_keys().map(str::to_owned).collect();
    targets
        .components
        .iter()
        .filter(move |(name, durability)| {
            **durability == Durability::Durable && !there.contains(*name) && !named(asked, name)
        })
        .map(|(name, _)| component_text(name))
}

/// The durable components that were saved and are not restored, of which no tensor tells it.
fn extra_components<'c>(
    contents: &'c Contents,
    targets: &'c Targets<'_>,
    there: &'c [Name<'_>],
) -> impl Iterator<Item = String> + 'c {
    contents
        .components()
        .into_iter()
        .filter(|(name, component)| {
            component.durability == Durability::Durable
                && !targets.components.contains_key(*name)
                && !named(there, name)
        })
        .map(|(name, _)| component_text(name))
}

/// True if a tensor of `component` is among `names`.
fn named(names: &[Name<'_>], component: &str) -> bool {
    let first = names.partition_point(|name| name.0 < component);
    names.get(first).is_some_and(|first| first.0 == component)
}

fn component_text(name: &str) -> String {
    format!("component \"{}\"", show_name(name))
}

/// The name of which `name` is one rank's own value, if it is one.
fn rank_value<'n>(contents: &Contents, name: &Name<'n>) -> Option<&'n str> {
    let (base, rank) = name.1.rsplit_once("@rank")?;
    let numbered = !rank.is_empty() && rank.bytes().all(|b| b.is_ascii_digit());
    // Only values are saved by each rank for itself; a tensor may be called anything.
    let blob = contents.data_of(name.0, name.1).is_some_and(|info| info.dtype == Dtype::Blob);
    (numbered && blob).then_some(base)
}

/// The values of its own that this rank asks for.
fn rank_values<'n>(contents: &Contents, asked: &[Name<'n>]) -> BTreeSet<Name<'n>> {
    asked.iter().filter_map(|name| Some((name.0, rank_value(contents, name)?))).collect()
}

/// True for a value that another rank saved for itself alone, if this rank asks for its own.
fn of_other_rank(contents: &Contents, name: &Name<'_>, own: &BTreeSet<Name<'_>>) -> bool {
    rank_value(contents, name).is_some_and(|base| own.contains(&(name.0, base)))
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().checked_sub(SHOWN + 1) {
        Some(more) => format!("{shown} and {} more", more + 1),
        None => shown,
    }
}
