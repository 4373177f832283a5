//! `FORMAT.md`, "Ledger entry".

use std::collections::BTreeMap;

use super::{Objects, hex, unseal};

/// The run that `run` is a branch of, the step that it begins with, and the checkpoint and its step from which that was
/// re-executed.
pub(super) fn origin(objects: &Objects, run: &str) -> Option<(String, u64, String, u64)> {
    let entry = unseal(objects.get(&format!("runs/{run}/ledger/{:020}.json", 2))?);
    if entry["kind"] != "branch.created" {
        return None;
    }
    assert_eq!(entry["repository"].as_str().map(str::len), Some(32));
    let text = |name: &str| entry[name].as_str().unwrap().to_owned();
    let number = |name: &str| entry[name].as_u64().unwrap();
    Some((text("source"), number("step"), text("from"), number("from_step")))
}

/// The id of the newest checkpoint that is good.
pub(super) fn newest_good(objects: &Objects, run: &str) -> Option<String> {
    let mut standing: BTreeMap<String, &str> = BTreeMap::new();
    let mut order = Vec::new();
    let mut prev = None;
    for n in 1u64.. {
        let Some(stored) = objects.get(&format!("runs/{run}/ledger/{n:020}.json")) else { break };
        let entry = unseal(stored);
        assert_eq!((&entry["run"], &entry["n"]), (&run.into(), &n.into()));
        assert_eq!(entry["prev"].as_str().map(str::to_owned), prev);
        prev = Some(hex(stored));
        let id = entry["checkpoint"].as_str().unwrap_or_default().to_owned();
        match entry["kind"].as_str().unwrap() {
            "checkpoint.committed" => {
                standing.insert(id.clone(), "committed");
                order.push(id);
            }
            "checkpoint.verified" if standing[&id] == "committed" => {
                standing.insert(id, "verified");
            }
            "checkpoint.good" => {
                standing.insert(id, "good");
            }
            "checkpoint.bad" => {
                standing.insert(id, "bad");
            }
            "checkpoint.expired" => order.retain(|other| *other != id),
            "run.created"
            | "branch.created"
            | "attempt.started"
            | "checkpoint.verified"
            | "save.abandoned"
            | "incident.opened"
            | "preflight.accepted"
            | "attempt.ended"
            | "save.requested"
            | "policy.chosen" => {}
            unknown => assert_ne!(entry["must_understand"], true, "{unknown}"),
        }
    }
    order.into_iter().rev().find(|id| standing[id] == "good")
}
