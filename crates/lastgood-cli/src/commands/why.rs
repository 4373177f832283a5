//! `lastgood why`: what led to a tensor.

mod json;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use lastgood::journal::{Kind, Value};
use lastgood::ledger::Checkpoint;
use lastgood::lineage::Lineage;
use lastgood::lineage::attempts::Attempt;
use lastgood::lineage::bytes::{PackPart, Part};
use lastgood::lineage::steps::{Executed, Fate, Held, Input};

use crate::args::Why;
use crate::exit::Exit;
use crate::{output, session};

/// So many lines of a kind are printed; `--json` has more.
const SHOWN: usize = 20;

const NOT_RECORDED: &str = "not recorded";

pub(super) fn run(args: &Why, as_json: bool) -> anyhow::Result<Exit> {
    let (repository, ledger) = session::ledger(&args.run)?;
    let bar = output::spinner("reading", as_json);
    let lineage = Lineage::read(&repository, &ledger, &args.tensor, args.step, args.rank);
    bar.finish_and_clear();
    let lineage = lineage?;
    if as_json {
        output::json(&json::of(&args.run.run, &lineage))?;
        return Ok(Exit::Done);
    }
    show_state(&lineage, args.step);
    show_bytes(&lineage);
    show_steps(&lineage);
    show_input(&lineage);
    show_digests(&lineage);
    show_attempts(&lineage);
    Ok(Exit::Done)
}

/// A line with its subject; the lines below it that have the same begin with blanks.
fn fact(subject: &str, what: impl std::fmt::Display) {
    output::line(format!("{subject:<10}  {what}"));
}

fn facts(subject: &str, lines: Vec<String>) {
    if lines.is_empty() {
        return fact(subject, NOT_RECORDED);
    }
    let more = lines.len().saturating_sub(SHOWN);
    for (i, line) in lines.into_iter().take(SHOWN).enumerate() {
        fact(if i == 0 { subject } else { "" }, line);
    }
    if more > 0 {
        fact("", format!("and {more} more, which --json prints"));
    }
}

fn show_state(lineage: &Lineage, step: u64) {
    let tie = lineage.tied_to.as_ref().map(|to| format!(", tied to {to}")).unwrap_or_default();
    fact(
        "tensor",
        format!(
            "{}/{}: {} of {:?}{tie}",
            lineage.component, lineage.name, lineage.dtype, lineage.shape
        ),
    );
    let state = match &lineage.saved {
        Some(saved) if saved.step == step => format!("after step {step}: {}", checkpoint(saved)),
        Some(saved) => format!(
            "after step {step}: {}, and what steps {} to {step} made of it",
            checkpoint(saved),
            saved.step + 1
        ),
        None => format!("after step {step}: no checkpoint at or before it holds the tensor"),
    };
    fact("state", state);
    if let Some(saved) = &lineage.saved {
        fact(
            "save",
            format!(
                "by {} of attempt {}, committed {}, {}",
                output::count(saved.world_size as usize, "rank"),
                saved.attempt,
                saved.at,
                saved.standing
            ),
        );
    }
}

fn checkpoint(checkpoint: &Checkpoint) -> String {
    format!("checkpoint {} of step {}", checkpoint.id.short(), checkpoint.step)
}

fn show_bytes(lineage: &Lineage) {
    let Some(saved) = &lineage.saved else { return };
    let attempt = lineage.attempts.get(&saved.attempt);
    let describe = |part: &Part| {
        let host = attempt.and_then(|a| a.processes.get(&part.rank)).and_then(|p| p.host());
        let packs: Vec<String> = part.packs.iter().map(pack).collect();
        format!(
            "rank {} ({}): {}, {} in {}; {}",
            part.rank,
            host.map_or_else(|| "host not recorded".into(), |host| format!("host {host}")),
            part.extent,
            output::size(part.bytes),
            part.index,
            packs.join("; ")
        )
    };
    match lineage.parts.is_empty() {
        true => fact("bytes", "this rank's process stored none"),
        false => facts("bytes", lineage.parts.iter().map(describe).collect()),
    }
}

fn pack(pack: &PackPart) -> String {
    let chunks = output::count(pack.chunks as usize, "chunk");
    let size = output::size(pack.stored_bytes);
    let written = match (&pack.written_by, pack.is_new) {
        (_, true) => "written by this save".to_owned(),
        (Some((save, rank)), false) => {
            format!("reused, as rank {rank} wrote it at {save}")
        }
        (None, false) => "reused from an earlier save".to_owned(),
    };
    format!("{chunks} of {size} in {}, {written}", pack.object)
}

fn show_steps(lineage: &Lineage) {
    let steps = &lineage.steps;
    let since = match &lineage.since {
        Some(since) => format!("since {}", checkpoint(since)),
        None => "since the beginning".to_owned(),
    };
    fact("steps", format!("{}, {since}", range(&steps.steps)));
    let describe = |executed: &Executed| {
        let ranges: Vec<String> = executed.steps.iter().map(range).collect();
        let fate = match executed.fate {
            Fate::Led => "led here",
            Fate::Rewound => "rewound: the attempt itself went back to a checkpoint before them",
            Fate::Overtaken => "overtaken: a later attempt went on from a checkpoint before them",
            Fate::Fenced => "fenced: written when a later attempt had begun already",
            Fate::Later => "done again later, on another way",
        };
        format!("attempt {} did {}: {fate}", executed.attempt, ranges.join(", "))
    };
    facts("executed", steps.executed.iter().map(describe).collect());
}

fn range(steps: &RangeInclusive<u64>) -> String {
    match steps.start() == steps.end() {
        true => format!("step {}", steps.start()),
        false => format!("steps {} to {}", steps.start(), steps.end()),
    }
}

fn show_input(lineage: &Lineage) {
    let steps = &lineage.steps;
    let inputs = steps.inputs.iter();
    facts("input", inputs.map(|(rank, input)| format!("rank {rank}: {}", read(input))).collect());
    let mut rates: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (rank, held) in &steps.rates {
        rates.entry(rate(held)).or_default().push(*rank);
    }
    let rates = rates.into_iter();
    facts("lr", rates.map(|(rate, ranks)| format!("ranks {ranks:?}: {rate}")).collect());
    let generators = steps.generators.iter().map(|(rank, generators)| {
        let [from, to] = [&generators.from, &generators.to].map(|value| text(value.as_ref()));
        format!("rank {rank}: digest {from} before, {to} after")
    });
    facts("generators", generators.collect());
    let events = steps.events.iter().filter(|event| event.kind == Kind::EXTERNAL_READ);
    let reads = events.map(|event| {
        let [key, value] = ["key", "value"].map(|name| text(event.value.get(name)));
        format!("step {}, rank {}: {key} = {value}", event.step, event.lane)
    });
    match reads.collect::<Vec<_>>() {
        reads if reads.is_empty() => fact("outside", "no reads from outside are recorded"),
        reads => facts("outside", reads),
    }
    let others = steps.events.iter().filter(|event| event.kind != Kind::EXTERNAL_READ);
    let mut others: Vec<String> = others
        .map(|event| {
            let value = text(Some(&event.value));
            format!("step {}, rank {}: {} {value}", event.step, event.lane, event.kind)
        })
        .collect();
    if steps.more_events > 0 {
        others.push(format!("and {} events that are not listed", steps.more_events));
    }
    if !others.is_empty() {
        facts("events", others);
    }
}

fn read(input: &Input) -> String {
    if let Some(samples) = &input.samples {
        let ranges = match &samples.ranges {
            Some(ranges) if ranges.len() <= SHOWN => {
                let ranges = ranges.iter().map(|(first, last)| match first == last {
                    true => first.to_string(),
                    false => format!("{first} to {last}"),
                });
                ranges.collect::<Vec<_>>().join(", ")
            }
            _ => format!("from {} to {}, with gaps", samples.least, samples.greatest),
        };
        return format!("{}: {ranges}", output::count(samples.count as usize, "sample"));
    }
    format!("from {} to {}", text(input.from.as_ref()), text(input.to.as_ref()))
}

fn rate(held: &[Held]) -> String {
    let (Some(first), Some(last)) = (held.first(), held.last()) else {
        return NOT_RECORDED.to_owned();
    };
    let mut said = format!("{} at step {}", text(Some(&first.value)), first.steps.start());
    if held.len() > 1 {
        let (value, step) = (text(Some(&last.value)), last.steps.end());
        said.push_str(&format!(", {value} at step {step} ({} values)", held.len()));
    } else if first.steps.start() < first.steps.end() {
        said.push_str(&format!(" to {}", first.steps.end()));
    }
    said
}

/// A value in few words.
fn text(value: Option<&Value>) -> String {
    const LETTERS: usize = 100;
    let Some(value) = value else { return NOT_RECORDED.to_owned() };
    let all = value.to_string();
    match all.char_indices().nth(LETTERS) {
        Some((at, _)) => format!("{}…", &all[..at]),
        None => all,
    }
}

fn show_digests(lineage: &Lineage) {
    let Some(digests) = &lineage.digests else { return fact("digest", NOT_RECORDED) };
    let told = format!("{} after step {}", digests.sum, digests.last);
    let states = output::count(digests.states as usize, "state");
    let changed = match digests.before {
        Some((step, sum)) => format!(
            "it changed after step {step}, when it was {sum}, and by step {} at the latest",
            digests.since
        ),
        None => format!("the same in all, since step {}", digests.first),
    };
    fact("digest", format!("{told}; {states} recorded; {changed}"));
}

fn show_attempts(lineage: &Lineage) {
    let numbers = lineage.attempts.values();
    facts("attempts", numbers.map(attempt).collect());
    let newest = lineage.saved.as_ref().and_then(|saved| lineage.attempts.get(&saved.attempt));
    let Some(attempt) = newest.or_else(|| lineage.attempts.values().next_back()) else { return };
    let Some(process) = attempt.processes.values().find(|p| !p.environment.is_empty()) else {
        return fact("where", "no environment is recorded");
    };
    let all = process.environment.iter().map(|(name, value)| format!("{name} = {value}"));
    let (number, rank) = (attempt.number, process.rank);
    fact("where", format!("rank {rank} of attempt {number}:"));
    all.for_each(|line| fact("", line));
    for other in attempt.processes.values().filter(|p| p.rank != rank) {
        let differs = |(name, value): &(&String, &String)| {
            process.environment.get(*name) != Some(*value) && *name != "host.name"
        };
        for (name, value) in other.environment.iter().filter(differs) {
            fact("", format!("rank {} has {name} = {value}", other.rank));
        }
    }
}

fn attempt(attempt: &Attempt) -> String {
    let from = match attempt.from {
        Some(id) => format!("from checkpoint {}", id.short()),
        None => "afresh".to_owned(),
    };
    let hosts: Vec<&str> = attempt.hosts().into_iter().collect();
    let hosts = match hosts.is_empty() {
        true => "hosts not recorded".to_owned(),
        false => format!("on {}", hosts.join(", ")),
    };
    format!(
        "{} began {} {from}, {}, {hosts}, as {:?}",
        attempt.number,
        attempt.at_text,
        output::count(attempt.world_size as usize, "rank"),
        attempt.incarnation
    )
}
