//! What a preflight found.

use std::fmt;

use lastgood_format::Hash;
use lastgood_format::journal::Value;
use lastgood_format::ledger::Accepted;

use super::Effect;

/// Something that stands against a restore, or that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What it is: a key of the environment, or `memory`.
    pub key: String,
    /// What it means.
    pub effect: Effect,
    /// As it was where the checkpoint was saved; of memory, what is needed.
    pub recorded: Option<String>,
    /// As it is here.
    pub found: Option<String>,
    /// The reason for which it was accepted.
    pub accepted: Option<String>,
}

impl Finding {
    /// True if it stands against the restore.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.effect != Effect::Information && self.accepted.is_none()
    }

    /// True if its values are of this moment, and not of the process.
    pub(crate) fn is_of_the_moment(&self) -> bool {
        !self.key.contains('.')
    }

    pub(crate) fn as_accepted(&self) -> Accepted {
        let Self { key, recorded, found, .. } = self.clone();
        Accepted { key, recorded, found, always: false }
    }

    fn to_value(&self) -> Value {
        let text = |text: &Option<String>| text.as_deref().map_or(Value::Null, Value::from);
        Value::map([
            ("key", self.key.as_str().into()),
            ("effect", self.effect.name().into()),
            ("recorded", text(&self.recorded)),
            ("found", text(&self.found)),
            ("accepted", text(&self.accepted)),
        ])
    }

    fn of_value(value: &Value) -> Option<Self> {
        let text = |name| value.get(name).and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            key: text("key")?,
            effect: Effect::named(&text("effect")?)?,
            recorded: text("recorded"),
            found: text("found"),
            accepted: text("accepted"),
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |text: &Option<String>| text.clone().unwrap_or_else(|| "nothing".into());
        let (recorded, found) = (show(&self.recorded), show(&self.found));
        write!(f, "{} was {recorded}, is {found} ({})", self.key, self.effect)
    }
}

/// What came of comparing environments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// They are alike.
    Alike,
    /// They differ, as the findings say.
    Differs,
    /// The checkpoint says nothing of it.
    NotRecorded,
    /// The environment of this process was not given.
    NotGiven,
}

impl Compared {
    const ALL: [Self; 4] = [Self::Alike, Self::Differs, Self::NotRecorded, Self::NotGiven];

    /// The words for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alike => "alike",
            Self::Differs => "differs",
            Self::NotRecorded => "not recorded",
            Self::NotGiven => "not given",
        }
    }
}

/// What a preflight comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing stands against the restore.
    Passed,
    /// What stood against it was accepted.
    Accepted,
    /// Something stands against it.
    Refused,
}

impl Verdict {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Accepted => "accepted",
            Self::Refused => "refused",
        }
    }
}

/// What was found before the restore of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The checkpoint.
    pub checkpoint: Hash,
    /// Its step.
    pub step: u64,
    /// The ranks that saved it.
    pub saved_by: u32,
    /// The ranks that restore it.
    pub restored_by: u32,
    /// Whether the environments are alike.
    pub environment: Compared,
    /// What differs, and what is short.
    pub findings: Vec<Finding>,
    /// What does not fit: components, tensors, shapes, dtypes.
    pub problems: Vec<String>,
    /// The bytes that this rank reads; 0 if nobody said.
    pub bytes: u64,
    /// The bytes of memory that this rank takes; 0 if nobody said.
    pub memory_needed: u64,
    /// The bytes of memory that are left, if the system says.
    pub memory_available: Option<u64>,
}

impl Report {
    /// What stands against the restore.
    pub fn refused(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.is_refused())
    }

    /// What it comes to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.refused().next().is_some() || !self.problems.is_empty() {
            Verdict::Refused
        } else if self.findings.iter().any(|finding| finding.accepted.is_some()) {
            Verdict::Accepted
        } else {
            Verdict::Passed
        }
    }

    /// The payload of its event in the journal.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let texts = self.problems.iter().map(|text| text.as_str().into()).collect();
        Value::map([
            ("checkpoint", Value::Bytes(self.checkpoint.as_bytes().to_vec())),
            ("step", self.step.into()),
            ("saved_by", self.saved_by.into()),
            ("restored_by", self.restored_by.into()),
            ("verdict", self.verdict().name().into()),
            ("environment", self.environment.name().into()),
            ("findings", Value::Array(self.findings.iter().map(Finding::to_value).collect())),
            ("problems", Value::Array(texts)),
            ("bytes", self.bytes.into()),
            ("memory_needed", self.memory_needed.into()),
            ("memory_available", self.memory_available.map_or(Value::Null, Value::from)),
        ])
    }

    /// Reads the payload of an event; `None` if it is none of a preflight.
    #[must_use]
    pub fn of_value(value: &Value) -> Option<Self> {
        let number = |name| value.get(name).and_then(Value::as_u64);
        let array = |name| value.get(name).and_then(Value::as_array);
        let checkpoint: [u8; 32] = value.get("checkpoint")?.as_bytes()?.try_into().ok()?;
        let compared = value.get("environment")?.as_str()?;
        let texts = array("problems")?.iter().filter_map(Value::as_str);
        Some(Self {
            checkpoint: Hash::from_bytes(checkpoint),
            step: number("step")?,
            saved_by: u32::try_from(number("saved_by")?).ok()?,
            restored_by: u32::try_from(number("restored_by")?).ok()?,
            environment: Compared::ALL.into_iter().find(|c| c.name() == compared)?,
            findings: array("findings")?.iter().filter_map(Finding::of_value).collect(),
            problems: texts.map(str::to_owned).collect(),
            bytes: number("bytes")?,
            memory_needed: number("memory_needed")?,
            memory_available: number("memory_available"),
        })
    }
}
