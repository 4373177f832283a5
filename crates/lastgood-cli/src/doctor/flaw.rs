//! Why something could not be read.

use std::fmt;
use std::io;

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The bytes are not what they should be.
    Content(String),
    /// It is larger or stranger than what is read here. It may be right.
    Limit(String),
    /// The system did not give the bytes.
    Io(String),
}

impl Flaw {
    pub(crate) fn content(text: impl Into<String>) -> Self {
        Self::Content(text.into())
    }

    /// The same, with what it is about before it.
    pub(crate) fn about(self, what: &str) -> Self {
        match self {
            Self::Content(text) => Self::Content(format!("{what}: {text}")),
            Self::Limit(text) => Self::Limit(format!("{what}: {text}")),
            Self::Io(text) => Self::Io(format!("{what}: {text}")),
        }
    }

    pub(crate) fn limit(text: impl Into<String>) -> Self {
        Self::Limit(text.into())
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(text) | Self::Limit(text) | Self::Io(text) => f.write_str(text),
        }
    }
}

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Content("the file ends too early".to_owned()),
            io::ErrorKind::NotFound => Self::Content("it is not there".to_owned()),
            _ => Self::Io(format!("{error}")),
        }
    }
}
