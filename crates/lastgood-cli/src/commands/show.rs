//! `lastgood show`: what one checkpoint holds.

use std::collections::BTreeMap;

use lastgood::branch;
use lastgood::restore::{Contents, Cost, Costs, Selector, Way, choose, costs, resolve};
use lastgood_format::chunk::Codec;
use serde_json::json;

use crate::args::RunArgs;
use crate::commands::ls;
use crate::exit::Exit;
use crate::{output, session};

pub(super) fn run(
    args: &RunArgs,
    at: &Selector,
    tensors: bool,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let (repository, ledger) = session::ledger(args)?;
    let checkpoint = resolve(ledger.history(), at)?;
    let contents = repository.contents(&ledger, &checkpoint.id)?;
    let is_last_good = choose(ledger.history()).is_some_and(|c| c.id == checkpoint.id);
    let created = repository.block_on(branch::created(&ledger))?;
    if as_json {
        let mut value = ls::as_value(checkpoint, is_last_good);
        value["run"] = json!(args.run);
        value["origin"] = json!(created);
        value["reuses"] = json!(contents.manifest().reuses);
        value["components"] = components_json(&contents, tensors);
        value["metadata"] = json!(contents.metadata());
        output::json(&value)?;
        return Ok(Exit::Done);
    }
    let manifest = contents.manifest();
    output::line(format!("checkpoint  {}", checkpoint.id));
    output::line(format!("run         {}, attempt {}", args.run, checkpoint.attempt));
    if let Some(created) = created {
        let (origin, actor, at) = (output::origin(&created.origin), created.actor, created.at);
        output::line(format!("origin      {origin}, by {actor} at {at}"));
    }
    output::line(format!(
        "step        {}, saved by {}",
        checkpoint.step,
        output::count(manifest.world_size as usize, "rank")
    ));
    output::line(format!("committed   {}", checkpoint.at));
    let reason = checkpoint.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
    output::line(format!("standing    {}{reason}", checkpoint.standing));
    let parent = manifest.parent.map_or_else(|| "none".into(), |id| id.to_string());
    output::line(format!("parent      {parent}"));
    output::line(format!(
        "size        {} in {} tensors, {} written for it",
        output::size(manifest.bytes),
        manifest.tensors,
        output::size(manifest.new_bytes)
    ));
    for (key, value) in contents.metadata() {
        output::line(format!("metadata    {key} = {value}"));
    }
    output::line("");
    show_components(&contents);
    output::line("");
    show_costs(&costs(&contents));
    if tensors {
        output::line("");
        show_tensors(&contents);
    }
    Ok(Exit::Done)
}

/// Tensors and bytes of each component.
fn totals(contents: &Contents) -> BTreeMap<&str, (u64, u64)> {
    let mut totals: BTreeMap<&str, (u64, u64)> =
        contents.components().keys().map(|name| (*name, (0, 0))).collect();
    for ((component, _), info) in contents.tensors() {
        let entry = totals.entry(component).or_default();
        entry.0 += 1;
        if info.tied_to.is_none() {
            let elements: u64 = info.shape.iter().product();
            entry.1 += info.dtype.bytes_of(elements).unwrap_or(0);
        }
    }
    totals
}

fn show_components(contents: &Contents) {
    let totals = totals(contents);
    let rows: Vec<Vec<String>> = contents
        .components()
        .values()
        .map(|component| {
            let (tensors, bytes) = totals.get(component.name.as_str()).copied().unwrap_or((0, 0));
            vec![
                component.name.clone(),
                component.owner.clone(),
                format!("{:?}", component.durability).to_lowercase(),
                tensors.to_string(),
                output::size(bytes),
            ]
        })
        .collect();
    output::table(&["COMPONENT", "OWNER", "DURABILITY", "TENSORS", "SIZE"], &rows);
}

fn show_costs(costs: &Costs) {
    let share = |cost: &Cost| match cost.bytes {
        0 => String::new(),
        bytes => format!("{:.3}", cost.stored_bytes as f64 / bytes as f64),
    };
    let rows: Vec<Vec<String>> = costs
        .iter()
        .flat_map(|(component, ways)| ways.iter().map(move |(way, cost)| (component, *way, cost)))
        .map(|(component, way, cost)| {
            vec![
                component.clone(),
                name_of(way).to_owned(),
                cost.chunks.to_string(),
                output::size(cost.bytes),
                output::size(cost.stored_bytes),
                share(cost),
                why(way, cost),
            ]
        })
        .collect();
    output::table(&["COMPONENT", "STORED", "CHUNKS", "SIZE", "TAKES", "SHARE", "WHY"], &rows);
}

fn name_of(way: Way) -> &'static str {
    match way {
        Way::Written(codec) => codec.name(),
        Way::Again => "again",
        Way::Before(_) => "before",
    }
}

fn why(way: Way, cost: &Cost) -> String {
    match way {
        Way::Written(Codec::Raw) => "nothing makes it smaller, or nothing was asked to".into(),
        Way::Written(Codec::Zstd) => "its bytes repeat".into(),
        Way::Written(Codec::Zero) => "every byte is zero".into(),
        Way::Written(Codec::Planes) => "its numbers are of like size".into(),
        Way::Written(Codec::Delta) => {
            format!("it is near what was stored before; made of chunks at most {} deep", cost.depth)
        }
        Way::Written(_) => String::new(),
        Way::Again => "this save has stored the same bytes".into(),
        Way::Before(_) => match cost.depth {
            0 => "an earlier save has stored the same bytes".into(),
            depth => {
                format!(
                    "an earlier save has stored the same bytes, made of chunks at most {depth} deep"
                )
            }
        },
    }
}

/// What is stored in which way, of one component.
fn costs_json(ways: Option<&BTreeMap<Way, Cost>>) -> serde_json::Value {
    let each = ways.into_iter().flatten().map(|(way, cost)| {
        let codec = match way {
            Way::Written(codec) | Way::Before(codec) => Some(codec.name()),
            Way::Again => None,
        };
        let stored = match way {
            Way::Written(_) => "written",
            Way::Again => "again",
            Way::Before(_) => "before",
        };
        json!({"stored": stored, "codec": codec, "chunks": cost.chunks, "bytes": cost.bytes,
            "stored_bytes": cost.stored_bytes, "depth": cost.depth})
    });
    each.collect()
}

fn show_tensors(contents: &Contents) {
    let rows: Vec<Vec<String>> = contents
        .tensors()
        .iter()
        .map(|((component, name), info)| {
            let tie = info.tied_to.as_ref().map(|t| format!("tied to {t}")).unwrap_or_default();
            vec![
                component.clone(),
                name.clone(),
                info.dtype.to_string(),
                format!("{:?}", info.shape),
                tie,
            ]
        })
        .collect();
    output::table(&["COMPONENT", "TENSOR", "DTYPE", "SHAPE", ""], &rows);
}

fn components_json(contents: &Contents, tensors: bool) -> serde_json::Value {
    let (totals, costs) = (totals(contents), costs(contents));
    let all = contents.components().into_values().map(|component| {
        let (count, bytes) = totals.get(component.name.as_str()).copied().unwrap_or((0, 0));
        let mut value = json!({"name": component.name, "owner": component.owner,
            "durability": component.durability, "tensors": count, "bytes": bytes,
            "costs": costs_json(costs.get(&component.name))});
        if tensors {
            let list: Vec<_> = contents
                .tensors()
                .iter()
                .filter(|((of, _), _)| *of == component.name)
                .map(|((_, name), info)| {
                    json!({"name": name, "dtype": info.dtype.name(), "shape": info.shape,
                        "tied_to": info.tied_to})
                })
                .collect();
            value["tensor_list"] = json!(list);
        }
        value
    });
    all.collect()
}
