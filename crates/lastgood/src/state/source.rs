//! Where the bytes of captured state come from.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use lastgood_format::Result;

/// Bytes that lie somewhere else than in this process's memory, or that nobody may borrow: they are read
/// once, straight into the arena, while the state is captured.
pub trait Source: fmt::Debug + Send + Sync {
    /// Fills `into` with the bytes from `offset` on, counted from the first one of the tensor.
    ///
    /// # Errors
    /// Whatever keeps them from being read (`NotFound`, `Denied`, `Corrupt`, `Unavailable`); the save then
    /// fails with it.
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()>;
}

/// The bytes of a piece.
#[derive(Debug)]
pub(crate) enum Data<'a> {
    Bytes(Cow<'a, [u8]>),
    Source(Box<dyn Source + 'a>, usize),
}

impl Data<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Source(_, bytes) => *bytes,
        }
    }

    /// Copies the bytes of `range` to `into`, which has its length.
    pub(crate) fn copy(&self, range: Range<usize>, into: &mut [u8]) -> Result<()> {
        match self {
            Self::Bytes(bytes) => into.copy_from_slice(&bytes[range]),
            Self::Source(source, _) => source.read(range.start, into)?,
        }
        Ok(())
    }
}
