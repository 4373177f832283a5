//! Why an attack ended: a broken promise, or a set-up that did not work.

use std::error::Error;
use std::fmt;

/// A result whose error is [`Failure`].
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// What broke, with what it happened in before it.
///
/// It is no [`Error`] itself, so that every error becomes one with `?`.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A failure with a message.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Puts `context` in front of the message.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self(format!("{context}: {}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Puts `context` in front of the message.
    ///
    /// # Errors
    /// The failure, if there is one.
    fn context(self, context: impl fmt::Display) -> Result<T>;

    /// As [`Context::context`], for a text that is made only if it is needed.
    ///
    /// # Errors
    /// The failure, if there is one.
    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().context(context))
    }

    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.into().context(context()))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Failure::new(context.to_string()))
    }

    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.ok_or_else(|| Failure::new(context().to_string()))
    }
}

/// Ends the function with a failure of this text.
macro_rules! bail {
    ($($text:tt)*) => {
        return Err($crate::failure::Failure::new(format!($($text)*)))
    };
}

/// Ends the function with a failure of this text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            $crate::failure::bail!($($text)*);
        }
    };
}

pub(crate) use {bail, ensure};
