//! The one error type of lastgood's libraries.
//!
//! A caller chooses what to do by [`ErrorKind`]; a person reads the message; a page under
//! `docs/errors/` explains the code.

use std::fmt;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Fix the argument or the configuration.
    Invalid,
    /// Choose another object: this one does not exist.
    NotFound,
    /// Read again and decide again: somebody else was first.
    Conflict,
    /// Stop: a newer attempt owns the run.
    Fenced,
    /// Try again later: the store did not answer, or its answer is unknown.
    Unavailable,
    /// Wait or shed load: a bound is reached.
    Overloaded,
    /// Heal from a copy, or go back to an older checkpoint: stored bytes are damaged.
    Corrupt,
    /// Use another version, layout or environment.
    Incompatible,
    /// Open the report: two executions differ.
    Diverged,
    /// Ask for the right, or wait for the hold to end.
    Denied,
    /// Open it again.
    Closed,
    /// Report a bug.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of their codes.
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::NotFound,
        Self::Conflict,
        Self::Fenced,
        Self::Unavailable,
        Self::Overloaded,
        Self::Corrupt,
        Self::Incompatible,
        Self::Diverged,
        Self::Denied,
        Self::Closed,
        Self::Internal,
    ];

    /// The stable code, `LG001` to `LG012`; `docs/errors/<code>.md` explains it.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "LG001",
            Self::NotFound => "LG002",
            Self::Conflict => "LG003",
            Self::Fenced => "LG004",
            Self::Unavailable => "LG005",
            Self::Overloaded => "LG006",
            Self::Corrupt => "LG007",
            Self::Incompatible => "LG008",
            Self::Diverged => "LG009",
            Self::Denied => "LG010",
            Self::Closed => "LG011",
            Self::Internal => "LG012",
        }
    }

    /// The name of the kind in lower case, as messages and JSON show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not found",
            Self::Conflict => "conflict",
            Self::Fenced => "fenced",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Corrupt => "corrupt",
            Self::Incompatible => "incompatible",
            Self::Diverged => "diverged",
            Self::Denied => "denied",
            Self::Closed => "closed",
            Self::Internal => "internal",
        }
    }
}

/// A failed operation: what failed, why, and what to do.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    object: Option<String>,
    remedy: Option<String>,
    causes: Vec<Error>,
}

impl Error {
    /// An error of a kind with a message in the form `what failed: why`.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            object: None,
            remedy: None,
            causes: Vec::new(),
        }))
    }

    /// [`ErrorKind::Invalid`] with a message.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// [`ErrorKind::Corrupt`] with a message.
    #[must_use]
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// [`ErrorKind::NotFound`] with a message.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// [`ErrorKind::Incompatible`] with a message.
    #[must_use]
    pub fn incompatible(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Incompatible, message)
    }

    /// [`ErrorKind::Unavailable`] with a message.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// [`ErrorKind::Internal`] with a message.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Names the object (key, tensor, file) that the error is about, unless one is named already.
    #[must_use]
    pub fn with_object(mut self, object: impl Into<String>) -> Self {
        self.0.object.get_or_insert_with(|| object.into());
        self
    }

    /// Says what to do about it, unless that is said already.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy.get_or_insert_with(|| remedy.into());
        self
    }

    /// Adds the causes, one for each shard, rank or copy that failed.
    #[must_use]
    pub fn with_causes(mut self, causes: Vec<Error>) -> Self {
        self.0.causes.extend(causes);
        self
    }

    /// Puts `context` in front of the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// What the caller does next.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The stable code of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.kind.code()
    }

    /// What failed and why, without object and remedy.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The object that the error is about, if it is about one.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        self.0.object.as_deref()
    }

    /// What to do about it, if there is something to say.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// One error for each shard, rank or copy that failed; empty if there is one cause.
    #[must_use]
    pub fn causes(&self) -> &[Error] {
        &self.0.causes
    }

    /// True if the same call may succeed later without any change.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::Overloaded)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.message)?;
        if let Some(object) = &self.0.object {
            write!(f, " [{object}]")?;
        }
        for cause in &self.0.causes {
            write!(f, "; {cause}")?;
        }
        if let Some(remedy) = &self.0.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {self}", self.code(), self.0.kind.name())
    }
}

impl std::error::Error for Error {}
