//! Judges of the ledger that leave something out, and a source of randomness that is none.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use lastgood::ledger::{Checkpoint, History, Rules, Writer, admit_attempt, admit_commit};
use lastgood::{Hash, Result, RunName};
use lastgood_format::ledger::{Entry, Kind};
use lastgood_store::Env;

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blind {
    /// Fenced writers are let in.
    Fence,
    /// What was read is not checked against its seal.
    Seal,
    /// Abandoned saves are let in.
    Abandoned,
    /// Saves that reuse what expired are let in.
    Expired,
    /// Saves that reuse what is bad are let in.
    Bad,
}

/// A judge that is blind to something.
#[derive(Debug)]
pub(super) struct BlindJudge(pub(super) Blind);

impl Rules for BlindJudge {
    fn admit(&self, history: &History, writer: &Writer, kind: &Kind) -> Result<()> {
        let mut seen = kind.clone();
        if let Kind::CheckpointCommitted { generation, reuses, .. } = &mut seen {
            let is =
                |id: &Hash, what: fn(&Checkpoint) -> bool| history.checkpoint(id).is_some_and(what);
            match self.0 {
                // Nobody abandons this one.
                Blind::Abandoned => *generation = u32::MAX,
                Blind::Expired => reuses.retain(|id| !is(id, |found| found.expired)),
                Blind::Bad => reuses.retain(|id| !is(id, |found| found.was_bad)),
                Blind::Fence | Blind::Seal => {}
            }
        }
        if self.0 != Blind::Fence {
            admit_attempt(history, writer, &seen)?;
        }
        admit_commit(history, &seen)
    }

    fn decode(&self, stored: &[u8], run: &RunName, n: u64) -> Result<Entry> {
        match self.0 {
            Blind::Seal => Entry::decode(&sealed_again(stored), run, n),
            _ => Entry::decode(stored, run, n),
        }
    }
}

/// The first line, whatever it says, with the seal that it should have.
pub(super) fn sealed_again(stored: &[u8]) -> Vec<u8> {
    let end = stored.iter().position(|byte| *byte == b'\n').map_or(stored.len(), |at| at + 1);
    let mut again = stored[..end].to_vec();
    let seal = Hash::of(&again);
    again.extend_from_slice(format!("{{\"seal\":\"{seal}\"}}\n").as_bytes());
    again
}

/// An environment whose every random number is the same.
#[derive(Debug)]
pub(super) struct NoRandomness(pub(super) Arc<dyn Env>);

#[async_trait]
impl Env for NoRandomness {
    fn now(&self) -> SystemTime {
        self.0.now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn random(&self) -> u64 {
        7
    }

    async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }
}
