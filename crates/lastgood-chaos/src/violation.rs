//! Broken promises, by name.

use std::fmt;

/// What lastgood promises and an attack checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A checkpoint or attempt that somebody was told of is there ever after.
    AcknowledgedStays,
    /// Every committed checkpoint that has not expired is whole and has the right bytes.
    CommittedIsReadable,
    /// What was told as certainly not appended never is.
    UnknownIsNotRefused,
    /// Every reader decodes the same ledger, and nothing that a reader relied on changes.
    OneHistory,
    /// A commit is appended by the newest attempt only.
    FencedCommitsNothing,
    /// A save that was abandoned does not become a checkpoint.
    AbandonedStaysAbandoned,
    /// No commit stands on chunks of a checkpoint that expired before it.
    NoReuseOfExpired,
    /// No commit stands on chunks of a checkpoint that was marked bad before it.
    NoReuseOfBad,
    /// One save becomes at most one checkpoint.
    OneCommitASave,
    /// Whoever opens the run sees what was acknowledged before.
    ReadersSeeAcknowledged,
    /// A rank on a store that works gets through, in bounded steps.
    LiveRanksGetThrough,
    /// Saving a step again meets nobody else's objects.
    SavingAgainIsFree,
    /// One incarnation starts one attempt, so that a late rank of an old one fences nobody.
    OneAttemptAnIncarnation,
}

impl Invariant {
    /// The promise in a few words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AcknowledgedStays => "nothing acknowledged is lost",
            Self::CommittedIsReadable => "no committed checkpoint is unreadable",
            Self::UnknownIsNotRefused => "an unknown outcome is not told as a refusal",
            Self::OneHistory => "one history, no fork",
            Self::FencedCommitsNothing => "a fenced attempt commits nothing",
            Self::AbandonedStaysAbandoned => "an abandoned save is never committed",
            Self::NoReuseOfExpired => "no commit reuses what expired",
            Self::NoReuseOfBad => "no commit reuses what is bad",
            Self::OneCommitASave => "a save is committed once",
            Self::ReadersSeeAcknowledged => "a later reader sees what was acknowledged",
            Self::LiveRanksGetThrough => "live ranks are never stuck",
            Self::SavingAgainIsFree => "saving a step again never collides",
            Self::OneAttemptAnIncarnation => "an incarnation starts one attempt",
        }
    }
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How it shows.
    pub detail: String,
}

impl Violation {
    /// A broken promise with how it shows.
    #[must_use]
    pub fn new(invariant: Invariant, detail: impl Into<String>) -> Self {
        Self { invariant, detail: detail.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.name(), self.detail)
    }
}
