//! Files of others, read without trusting them: nothing is opened that is no regular file, and nothing is
//! allocated before its length was checked.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::flaw::Flaw;

/// How much is read at a time where all of a file is read.
const BLOCK_BYTES: usize = 1 << 20;

/// A regular file, open.
#[derive(Debug)]
pub(crate) struct Input {
    file: File,
    len: u64,
    modified: Option<SystemTime>,
}

impl Input {
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, Flaw> {
        // Before it is opened: opening a device can do things, and opening a pipe waits for a writer.
        if !fs::metadata(path)?.is_file() {
            return Err(Flaw::content("it is no regular file"));
        }
        let no_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(no_wait).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Flaw::content("it is no regular file"));
        }
        Ok(Arc::new(Self { file, len: metadata.len(), modified: metadata.modified().ok() }))
    }

    pub(crate) fn modified(&self) -> Option<SystemTime> {
        self.modified
    }
}

/// A part of a file.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    input: Arc<Input>,
    begin: u64,
    len: u64,
}

impl Span {
    /// The whole file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, Flaw> {
        let input = Input::open(path)?;
        let len = input.len;
        Ok(Self { input, begin: 0, len })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where it begins in its file.
    pub(crate) fn begin(&self) -> u64 {
        self.begin
    }

    pub(crate) fn modified(&self) -> Option<SystemTime> {
        self.input.modified()
    }

    /// The `len` bytes from `offset` on.
    pub(crate) fn part(&self, offset: u64, len: u64) -> Result<Self, Flaw> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {
                Ok(Self { input: Arc::clone(&self.input), begin: self.begin + offset, len })
            }
            _ => Err(Flaw::content(format!(
                "bytes {offset} to {} of {}: the file is too short",
                u128::from(offset) + u128::from(len),
                self.len
            ))),
        }
    }

    /// Fills `into` with the bytes from `offset` on.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Flaw> {
        let part = self.part(offset, into.len() as u64)?;
        Ok(self.input.file.read_exact_at(into, part.begin)?)
    }

    /// The `len` bytes from `offset` on, if they are no more than `most`.
    pub(crate) fn bytes(&self, offset: u64, len: u64, most: u64) -> Result<Vec<u8>, Flaw> {
        let part = self.part(offset, len)?;
        if len > most {
            return Err(Flaw::limit(format!("{len} bytes, at most {most} are read here")));
        }
        let mut bytes = vec![0; len as usize];
        part.input.file.read_exact_at(&mut bytes, part.begin)?;
        Ok(bytes)
    }

    /// All bytes, if they are no more than `most`.
    pub(crate) fn all(&self, most: u64) -> Result<Vec<u8>, Flaw> {
        self.bytes(0, self.len, most)
    }

    /// Gives all bytes block by block.
    pub(crate) fn each_block(&self, mut take: impl FnMut(&[u8])) -> Result<(), Flaw> {
        let mut block = vec![0; BLOCK_BYTES.min(self.len as usize)];
        let mut at = 0;
        while at < self.len {
            let count = (self.len - at).min(BLOCK_BYTES as u64) as usize;
            self.read(at, &mut block[..count])?;
            take(&block[..count]);
            at += count as u64;
        }
        Ok(())
    }
}

/// The text of a small file.
pub(crate) fn text(path: &Path, most: u64) -> Result<String, Flaw> {
    let bytes = Span::open(path)?.all(most)?;
    String::from_utf8(bytes).map_err(|_| Flaw::content("it is no UTF-8 text"))
}
