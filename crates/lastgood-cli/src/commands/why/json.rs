//! What led to a tensor, as one object.

use lastgood::RunName;
use lastgood::journal::Value;
use lastgood::ledger::Checkpoint;
use lastgood::lineage::Lineage;
use lastgood::lineage::attempts::Attempt;
use lastgood::lineage::bytes::Part;
use lastgood::lineage::steps::{Input, Steps};
use serde_json::{Value as Json, json};

use crate::events::plain::Plain;

/// One object; null is what is not recorded.
pub(super) fn of(run: &RunName, lineage: &Lineage) -> Json {
    let steps = &lineage.steps;
    let digest = lineage.digests.as_ref().map(|digests| {
        json!({"sum": digests.sum.to_string(), "step": digests.last, "states": digests.states,
            "first": digests.first, "since": digests.since,
            "before": digests.before.map(|(step, sum)|
                json!({"step": step, "sum": sum.to_string()}))})
    });
    let attempt = |part: &Part| {
        let saved = lineage.saved.as_ref()?;
        lineage.attempts.get(&saved.attempt)?.processes.get(&part.rank)?.host()
    };
    json!({
        "run": run,
        "step": steps.steps.end(),
        "component": lineage.component,
        "tensor": lineage.name,
        "dtype": lineage.dtype.name(),
        "shape": lineage.shape,
        "tied_to": lineage.tied_to,
        "checkpoint": lineage.saved.as_ref().map(checkpoint),
        "parts": lineage.parts.iter().map(|p| part(p, attempt(p))).collect::<Vec<_>>(),
        "since": lineage.since.as_ref().map(checkpoint),
        "first_step": steps.steps.start(),
        "executed": steps.executed.iter().map(|executed| json!({"attempt": executed.attempt,
            "fate": executed.fate.name(),
            "steps": executed.steps.iter().map(|s| [s.start(), s.end()]).collect::<Vec<_>>()}))
            .collect::<Vec<_>>(),
        "inputs": steps.inputs.iter().map(|(rank, i)| input(*rank, i)).collect::<Vec<_>>(),
        "lr": rates(steps),
        "generators": steps.generators.iter().map(|(rank, g)| json!({"rank": rank,
            "from": plain(&g.from), "to": plain(&g.to)})).collect::<Vec<_>>(),
        "events": steps.events.iter().map(|event| json!({"step": event.step,
            "rank": event.lane.rank(), "kind": event.kind.to_string(),
            "event": Plain::new(&event.value)})).collect::<Vec<_>>(),
        "more_events": steps.more_events,
        "more_lr": steps.more_rates,
        "digest": digest,
        "attempts": lineage.attempts.values().map(attempt_json).collect::<Vec<_>>(),
    })
}

fn plain(value: &Option<Value>) -> Json {
    value.as_ref().map_or(Json::Null, |value| json!(Plain::new(value)))
}

fn checkpoint(checkpoint: &Checkpoint) -> Json {
    json!({"id": checkpoint.id, "step": checkpoint.step, "attempt": checkpoint.attempt,
        "generation": checkpoint.generation, "world_size": checkpoint.world_size,
        "parent": checkpoint.parent, "standing": checkpoint.standing, "at": checkpoint.at})
}

fn part(part: &Part, host: Option<&str>) -> Json {
    let packs = part.packs.iter().map(|pack| {
        let written = pack.written_by.map(|(save, rank)| {
            json!({"attempt": save.attempt, "step": save.step, "generation": save.generation,
                "rank": rank, "checkpoint": pack.checkpoint})
        });
        json!({"object": pack.object, "chunks": pack.chunks, "stored_bytes": pack.stored_bytes,
            "reused": !pack.is_new, "written_by": written})
    });
    json!({"rank": part.rank, "host": host, "offsets": part.extent.offsets,
        "sizes": part.extent.sizes, "bytes": part.bytes, "index": part.index,
        "packs": packs.collect::<Vec<_>>()})
}

fn input(rank: u32, input: &Input) -> Json {
    let samples = input.samples.as_ref().map(|samples| {
        let ranges = samples.ranges.as_ref();
        json!({"count": samples.count, "least": samples.least, "greatest": samples.greatest,
            "ranges": ranges.map(|ranges| ranges.iter().collect::<Vec<_>>())})
    });
    json!({"rank": rank, "from": plain(&input.from), "to": plain(&input.to), "samples": samples})
}

fn rates(steps: &Steps) -> Vec<Json> {
    let of_rank = |(rank, held): (&u32, &Vec<_>)| {
        let held = held.iter().map(|held: &lastgood::lineage::steps::Held| {
            json!({"steps": [held.steps.start(), held.steps.end()],
                "lr": Plain::new(&held.value)})
        });
        json!({"rank": rank, "values": held.collect::<Vec<_>>()})
    };
    steps.rates.iter().map(of_rank).collect()
}

fn attempt_json(attempt: &Attempt) -> Json {
    let processes = attempt.processes.values().map(|process| {
        json!({"rank": process.rank, "logical": [process.logical.start, process.logical.end],
            "host": process.host(), "environment": process.environment})
    });
    json!({"attempt": attempt.number, "at": attempt.at_text, "incarnation": attempt.incarnation,
        "world_size": attempt.world_size, "from": attempt.from,
        "processes": processes.collect::<Vec<_>>()})
}
