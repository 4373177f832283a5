//! The journal: a run's high-rate events, for replay (`FORMAT.md`, "Journal").
//!
//! | module | bytes |
//! |---|---|
//! | [`value`] | what an event says: deterministic CBOR |
//! | [`frame`] | one event in its lane: numbered, chained by hash, with a checksum |
//! | [`segment`] | sealed frames of one lane, an object of the repository |
//! | [`tail`] | the open segment: a local file of one process, which a crash may tear |
//!
//! The ledger holds decisions and is the truth about what exists; the journal holds what a re-execution
//! needs and is compared with. Each lane is a chain of its own that begins with the name of its repository,
//! run and attempt, so that a frame of another journal never fits.

pub mod frame;
pub mod segment;
pub mod tail;
pub mod value;

use std::fmt;
use std::str::FromStr;

pub use frame::Frame;
pub use segment::Segment;
use serde::{Deserialize, Serialize};
pub use value::Value;

use crate::{Error, Hash, Result, RunName};

/// One ordered sequence of events: of the run as a whole, or of one logical rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(u32);

impl Lane {
    /// What concerns the attempt as a whole. Rank 0's process writes it.
    pub const CONTROL: Self = Self(0);

    /// The lane of a logical rank; `None` if there is no such number.
    #[must_use]
    pub fn of_rank(rank: u32) -> Option<Self> {
        rank.checked_add(1).map(Self)
    }

    /// The logical rank; `None` for the control lane.
    #[must_use]
    pub fn rank(self) -> Option<u32> {
        self.0.checked_sub(1)
    }

    /// The number in a frame: 0 for the control lane, one more than the logical rank for the others.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// The lane with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// `control`, or the logical rank.
impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank() {
            Some(rank) => rank.fmt(f),
            None => f.pad("control"),
        }
    }
}

impl FromStr for Lane {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rank = || text.parse().ok().filter(|rank: &u32| rank.to_string() == text);
        match text {
            "control" => Ok(Self::CONTROL),
            _ => rank().and_then(Self::of_rank).ok_or_else(|| {
                Error::invalid(format!("{text:?} is no lane"))
                    .with_remedy("use `control` or the number of a logical rank")
            }),
        }
    }
}

/// What kind of event a frame holds. New kinds are additive: a reader keeps and shows what it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(u16);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        impl Kind {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// Every kind that this version knows, by code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name, or `None` for a kind that this version does not know.
            #[must_use]
            pub fn known_name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// The lane begins: with which ranks, from which checkpoint.
    ATTEMPT_BEGUN = 1, "attempt.begun";
    /// The environment and numerics fingerprint of a process.
    ENVIRONMENT = 2, "environment";
    /// The state was restored from a checkpoint, before any step.
    RESTORED = 3, "restored";
    /// A step is done: what went in, and digests of what came out.
    STEP = 4, "step";
    /// Fingerprints of this rank's part of the state after a step.
    STATE_DIGEST = 5, "state.digest";
    /// A save was captured here: the cut that its checkpoint includes ends before this frame.
    SAVE_CAPTURED = 6, "save.captured";
    /// A save became a checkpoint, as far as this rank has seen.
    CHECKPOINT_SEEN = 7, "checkpoint.seen";
    /// Something was read from outside of the run.
    EXTERNAL_READ = 8, "external.read";
    /// An event of the user's own kind.
    EVENT = 9, "event";
    // 10 to 12 are reserved: no version has written them (`FORMAT.md`, "Events").
    /// A save of this rank failed, or its journal could not be sealed or recovered.
    FAULT = 13, "fault";
    /// What a preflight found.
    PREFLIGHT = 14, "preflight";
    /// The end of an earlier attempt's open segment was torn or damaged, and was cut off when it was recovered.
    TAIL_CUT = 15, "tail.cut";
    /// A re-execution differs from what was recorded.
    DIVERGED = 16, "diverged";
    /// The attempt went back to a checkpoint: its events between that one's cut and this frame are overtaken.
    REWOUND = 17, "rewound";
    /// The tensors that digests of the state are of, in their order.
    STATE_LAYOUT = 18, "state.layout";
    /// What an earlier attempt recorded after the checkpoint has been done again, and came to the same.
    RESUMED = 19, "resumed";
}

impl Kind {
    /// The code in a frame.
    #[must_use]
    pub fn code(self) -> u16 {
        self.0
    }

    /// The kind with this code, known or not.
    #[must_use]
    pub fn from_code(code: u16) -> Self {
        Self(code)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known_name() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("kind.{}", self.0)),
        }
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.iter().copied().find(|kind| kind.known_name() == Some(text));
        let unknown = || text.strip_prefix("kind.")?.parse().ok().map(Self);
        known.or_else(unknown).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().filter_map(|kind| kind.known_name()).collect();
            Error::invalid(format!("{text:?} is no kind of event"))
                .with_remedy(format!("there are: {}", names.join(", ")))
        })
    }
}

/// How far a lane is: the number of its next frame, and the hash of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The sequence number of the next frame; so many frames are before.
    pub next: u64,
    /// The hash of the frame before; that of [`genesis`] if there is none.
    pub head: Hash,
}

/// What the `prev` of a lane's first frame is: no chain continues another journal's.
#[must_use]
pub fn genesis(repository: &str, run: &RunName, attempt: u64, lane: Lane) -> Hash {
    Hash::of_parts([
        &b"lastgood journal 1\0"[..],
        repository.as_bytes(),
        b"\0",
        run.as_str().as_bytes(),
        b"\0",
        &attempt.to_le_bytes(),
        &lane.number().to_le_bytes(),
    ])
}

/// The positions of lanes that belong together, by the lanes' names: what a checkpoint includes.
///
/// Stored as JSON under [`CUT`] in the metadata of each shard index, for the lanes of its rank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The attempt whose lanes these are.
    pub attempt: u64,
    /// The position of each lane.
    pub lanes: std::collections::BTreeMap<LaneName, Position>,
}

/// A [`Lane`] as a member's name in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneName(pub Lane);

impl Serialize for LaneName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LaneName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// The key of the metadata of a shard index that holds its [`Cut`].
pub const CUT: &str = "lastgood.journal";

/// The key of the metadata of a shard index that holds the hash of its process's environment: of the payload of its
/// `environment` event.
pub const ENVIRONMENT: &str = "lastgood.environment";

impl Cut {
    /// As it stands in the metadata.
    ///
    /// # Errors
    /// `Internal` if it cannot be written as JSON.
    pub fn encode(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|e| Error::internal(format!("cannot write a cut of the journal: {e}")))
    }

    /// Reads the metadata.
    ///
    /// # Errors
    /// `Corrupt` if it is no cut.
    pub fn decode(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|e| Error::corrupt(format!("a cut of the journal is not understood: {e}")))
    }
}
