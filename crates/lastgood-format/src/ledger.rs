//! One decision of a run (`FORMAT.md`, "Ledger entry").

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::descriptor::{check_size, id_of};
use crate::{Error, FORMAT_VERSION, Hash, Result, RunName, sealed};

/// Entry `n` of a run's ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The run.
    pub run: RunName,
    /// The number of the entry; the first is 1.
    pub n: u64,
    /// The hash of the stored bytes of entry `n - 1`; `None` for entry 1.
    pub prev: Option<Hash>,
    /// A random number that tells a writer whether an entry that it finds is its own.
    pub write_id: u128,
    /// The attempt of the writer; 0 if the writer is no attempt (an operator, a tool).
    pub attempt: u64,
    /// The writer's wall clock. Information only: nothing is decided by it.
    pub at: SystemTime,
    /// Who wrote it: a rank, the supervisor, a person.
    pub actor: String,
    /// What was decided.
    pub kind: Kind,
}

/// What an entry decides. New kinds are additive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
#[non_exhaustive]
pub enum Kind {
    /// The first entry: the run exists.
    #[serde(rename = "run.created")]
    RunCreated {},
    /// The run is a branch: it begins with a state of another run, which was re-executed. Entry 2, or not at all.
    #[serde(rename = "branch.created")]
    BranchCreated {
        /// The id of the repository of the other run.
        repository: String,
        /// The other run.
        source: RunName,
        /// Its checkpoint that the re-execution began with; `None` for a fresh start.
        from: Option<Hash>,
        /// The step of that checkpoint; 0 without one.
        from_step: u64,
        /// The step whose state the branch begins with.
        step: u64,
    },
    /// Attempt `attempt` begins and fences every lower one.
    #[serde(rename = "attempt.started")]
    AttemptStarted {
        /// The number of the new attempt: one more than the newest.
        number: u64,
        /// The ranks that it runs.
        world_size: u32,
        /// The checkpoint that every rank of it restores from; `None` to start fresh.
        from: Option<Hash>,
        /// Names the incarnation, so that its ranks join one attempt.
        incarnation: String,
    },
    /// A manifest became a checkpoint.
    #[serde(rename = "checkpoint.committed")]
    CheckpointCommitted {
        /// The checkpoint id.
        checkpoint: Hash,
        /// The step.
        step: u64,
        /// How often the attempt had saved the step before.
        generation: u32,
        /// The ranks that saved it.
        world_size: u32,
        /// Its parent.
        parent: Option<Hash>,
        /// The checkpoints whose packs it reuses.
        reuses: Vec<Hash>,
        /// The bytes of all shards.
        bytes: u64,
        /// The bytes newly written.
        new_bytes: u64,
    },
    /// Every byte of a checkpoint was read back and is right.
    #[serde(rename = "checkpoint.verified")]
    CheckpointVerified {
        /// The checkpoint id.
        checkpoint: Hash,
        /// Who or what checked it, and how.
        reason: String,
    },
    /// A checkpoint is one to return to.
    #[serde(rename = "checkpoint.good")]
    CheckpointGood {
        /// The checkpoint id.
        checkpoint: Hash,
        /// Why.
        reason: String,
    },
    /// A checkpoint must not be restored.
    #[serde(rename = "checkpoint.bad")]
    CheckpointBad {
        /// The checkpoint id.
        checkpoint: Hash,
        /// Why.
        reason: String,
    },
    /// A checkpoint will be collected; nothing may reuse its chunks from here on.
    #[serde(rename = "checkpoint.expired")]
    CheckpointExpired {
        /// The checkpoint id.
        checkpoint: Hash,
        /// Why.
        reason: String,
    },
    /// A save will never be committed.
    #[serde(rename = "save.abandoned")]
    SaveAbandoned {
        /// The attempt of the save.
        saved_by: u64,
        /// The step.
        step: u64,
        /// How often the attempt had saved the step before.
        generation: u32,
        /// Why.
        reason: String,
    },
    /// An attempt ended, or something happened to it that an operator should read.
    #[serde(rename = "incident.opened")]
    IncidentOpened {
        /// What happened, to whom, at which step.
        reason: String,
        /// What kind of failure it was, such as `process` or `stall`, if it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        class: Option<String>,
    },
    /// A person lets restores go on despite what a preflight refuses.
    #[serde(rename = "preflight.accepted")]
    PreflightAccepted {
        /// What is let go, in order.
        differences: Vec<Accepted>,
        /// Why.
        reason: String,
    },
    /// The attempt of this entry has ended, and says so itself.
    #[serde(rename = "attempt.ended")]
    AttemptEnded {
        /// How: `closed`, or the kind of failure that it gave way to, such as `preemption`.
        how: String,
        /// At which step, and what became of its state.
        reason: String,
    },
    /// A save of one step, beside those of the policy.
    #[serde(rename = "save.requested")]
    SaveRequested {
        /// The step that every rank saves; `None` if whoever asks does not know the steps, so that the attempt
        /// answers with a request of its own.
        step: Option<u64>,
        /// What the ranks do at the step.
        order: SaveOrder,
        /// Who asks, and why.
        reason: String,
    },
    /// From `from_step` on every rank saves every `every` steps.
    #[serde(rename = "policy.chosen")]
    PolicyChosen {
        /// The first step that is saved by it.
        from_step: u64,
        /// The steps from one save to the next.
        every: u64,
        /// What the choice was made of, for a person.
        why: Value,
    },
    /// A kind that this version does not know, kept as it was read.
    #[serde(skip)]
    Unknown {
        /// The name of the kind.
        name: String,
        /// The whole body.
        body: Value,
    },
}

impl Kind {
    /// The name of the kind in the ledger.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::RunCreated {} => "run.created",
            Self::BranchCreated { .. } => "branch.created",
            Self::AttemptStarted { .. } => "attempt.started",
            Self::CheckpointCommitted { .. } => "checkpoint.committed",
            Self::CheckpointVerified { .. } => "checkpoint.verified",
            Self::CheckpointGood { .. } => "checkpoint.good",
            Self::CheckpointBad { .. } => "checkpoint.bad",
            Self::CheckpointExpired { .. } => "checkpoint.expired",
            Self::SaveAbandoned { .. } => "save.abandoned",
            Self::IncidentOpened { .. } => "incident.opened",
            Self::PreflightAccepted { .. } => "preflight.accepted",
            Self::AttemptEnded { .. } => "attempt.ended",
            Self::SaveRequested { .. } => "save.requested",
            Self::PolicyChosen { .. } => "policy.chosen",
            Self::Unknown { name, .. } => name,
        }
    }
}

/// What ranks do at the step of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SaveOrder {
    /// They save it and go on.
    Save,
    /// They save it, and end once it is a checkpoint.
    SaveAndEnd,
    /// They end without a save, for which there is no time.
    End,
}

/// What a restore may differ in from the process that saved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Accepted {
    /// The key of what differs; with a dot at its end, all keys that begin so.
    pub key: String,
    /// The value of the process that saved, `None` if it had none.
    pub recorded: Option<String>,
    /// The value of the process that restores, `None` if it has none.
    pub found: Option<String>,
    /// Any two values.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub always: bool,
}

/// The last second of the year 9999.
const AT_SECONDS_MAX: u64 = 253_402_300_799;

/// The fields of an entry in their stored order.
#[derive(Serialize, Deserialize)]
struct Body {
    format: u32,
    run: RunName,
    n: u64,
    prev: Option<Hash>,
    write_id: String,
    attempt: u64,
    at: String,
    actor: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    must_understand: bool,
    #[serde(flatten)]
    kind: Value,
}

impl Entry {
    /// The largest stored entry.
    pub const BYTES_MAX: u64 = 1 << 20;

    /// The writer's wall clock in RFC 3339 with microseconds, as it is stored: the nearest instant of
    /// the years 1970 to 9999.
    #[must_use]
    pub fn at_text(&self) -> String {
        // A clock outside of what RFC 3339 can say must not stop a decision.
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(AT_SECONDS_MAX);
        let at = self.at.clamp(SystemTime::UNIX_EPOCH, last);
        humantime::format_rfc3339_micros(at).to_string()
    }

    /// The stored bytes.
    ///
    /// # Errors
    /// `Internal` if it cannot be written as JSON; `Invalid` if it is larger than [`Self::BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let kind = match &self.kind {
            Kind::Unknown { body, .. } => body.clone(),
            kind => serde_json::to_value(kind)
                .map_err(|e| Error::internal(format!("cannot write a ledger entry: {e}")))?,
        };
        let bytes = sealed::seal(&Body {
            format: FORMAT_VERSION,
            run: self.run.clone(),
            n: self.n,
            prev: self.prev,
            write_id: format!("{:032x}", self.write_id),
            attempt: self.attempt,
            at: self.at_text(),
            actor: self.actor.clone(),
            must_understand: false,
            kind,
        })?;
        if bytes.len() as u64 > Self::BYTES_MAX {
            return Err(Error::invalid(format!(
                "a ledger entry has at most {} bytes, this one {}",
                Self::BYTES_MAX,
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// Reads the stored bytes of entry `n` of `run`.
    ///
    /// # Errors
    /// `Corrupt` if the seal does not match or the entry belongs elsewhere; `Incompatible` if its
    /// version is newer, or its kind is unknown and must be understood.
    pub fn decode(stored: &[u8], run: &RunName, n: u64) -> Result<Self> {
        check_size("ledger entry", stored, Self::BYTES_MAX)?;
        let body: Body = sealed::unseal(stored)?;
        if body.run != *run || body.n != n {
            return Err(Error::corrupt(format!(
                "expected entry {n} of run {run}, found entry {} of run {}",
                body.n, body.run
            )));
        }
        let malformed = |what: &str| Error::corrupt(format!("entry {n} of run {run}: {what}"));
        let write_id = id_of(&body.write_id)
            .ok_or_else(|| malformed("write_id is not 32 lower-case hexadecimal digits"))?;
        let at = humantime::parse_rfc3339(&body.at)
            .map_err(|_| malformed("the time is not in RFC 3339"))?;
        if n == 0 || body.prev.is_some() == (n == 1) {
            return Err(malformed("entry 1 is the first, and it alone has no predecessor"));
        }
        let kind = decode_kind(body.kind, body.must_understand, n)?;
        Ok(Self {
            run: body.run,
            n,
            prev: body.prev,
            write_id,
            attempt: body.attempt,
            at,
            actor: body.actor,
            kind,
        })
    }
}

fn decode_kind(body: Value, must_understand: bool, n: u64) -> Result<Kind> {
    let name = body
        .get("kind")
        .and_then(Value::as_str)
        .ok_or_else(|| Error::corrupt(format!("ledger entry {n} names no kind")))?
        .to_owned();
    let error = match Kind::deserialize(&body) {
        Ok(kind) => return Ok(kind),
        Err(error) => error,
    };
    if KNOWN.contains(&name.as_str()) {
        return Err(Error::corrupt(format!("ledger entry {n} of kind {name}: {error}")));
    }
    if must_understand {
        return Err(Error::incompatible(format!(
            "ledger entry {n} is of kind {name:?}, which this lastgood must understand but does not"
        ))
        .with_remedy("use a newer lastgood"));
    }
    Ok(Kind::Unknown { name, body })
}

const KNOWN: &[&str] = &[
    "run.created",
    "branch.created",
    "attempt.started",
    "checkpoint.committed",
    "checkpoint.verified",
    "checkpoint.good",
    "checkpoint.bad",
    "checkpoint.expired",
    "save.abandoned",
    "incident.opened",
    "preflight.accepted",
    "attempt.ended",
    "save.requested",
    "policy.chosen",
];
