//! The bytes of a tensor in a file, in row-major order whatever its strides are.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::ProgressBar;
use lastgood::state::Source;
use lastgood::{Error, Result};

use super::error_of;
use crate::doctor::disk::Span;
use crate::doctor::tensors::{View, element_bytes};

/// How much more than its bytes a tensor that is not contiguous may have between its first and its last.
const SPREAD_BYTES: u64 = 64 << 20;

/// A tensor in a file. The file is opened for each piece that is read, so that thousands of files do not
/// need thousands of handles.
#[derive(Debug)]
pub(super) struct Stored {
    path: Arc<PathBuf>,
    /// Where its first element is in the file.
    begin: u64,
    /// From the first element to behind the last.
    extent: u64,
    bytes: u64,
    strides: Option<Strides>,
    bar: ProgressBar,
}

/// How a tensor that is not contiguous lies in its extent; kept in memory while it is read.
#[derive(Debug)]
struct Strides {
    element: usize,
    shape: Vec<u64>,
    strides: Vec<u64>,
    memory: Mutex<Vec<u8>>,
}

impl Stored {
    /// The tensor `view` whose storage is `storage` in the file at `path`.
    ///
    /// # Errors
    /// `Corrupt` if it does not lie in its storage; `Incompatible` if it is spread over far more bytes than
    /// it has.
    pub(super) fn new(
        path: &Arc<PathBuf>,
        storage: &Span,
        view: &View,
        bar: &ProgressBar,
    ) -> Result<Self> {
        view.check().map_err(error_of)?;
        let odd = || Error::corrupt("a tensor without a size");
        let (begin, end) = view.extent().ok_or_else(odd)?;
        let element = element_bytes(&view.dtype).ok_or_else(odd)?;
        let bytes = view.elements().and_then(|count| count.checked_mul(element)).ok_or_else(odd)?;
        let strides = (!view.is_contiguous()).then(|| Strides {
            element: element as usize,
            shape: view.shape.clone(),
            strides: view.strides.clone(),
            memory: Mutex::default(),
        });
        if strides.is_some() && end - begin > (bytes * 2).max(SPREAD_BYTES) {
            return Err(Error::incompatible(format!(
                "a tensor of {bytes} bytes is spread over {}",
                end - begin
            ))
            .with_remedy("save a clone of it"));
        }
        let begin_in_file = storage.begin() + begin;
        let path = Arc::clone(path);
        Ok(Self {
            path,
            begin: begin_in_file,
            extent: end - begin,
            bytes,
            strides,
            bar: bar.clone(),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_file(path: &Path, offset: u64, into: &mut [u8]) -> Result<()> {
        let span = Span::open(path).map_err(error_of)?;
        span.read(offset, into).map_err(error_of)
    }
}

impl Source for &Stored {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.bar.inc(into.len() as u64);
        let Some(strides) = &self.strides else {
            return Stored::read_file(&self.path, self.begin + offset as u64, into);
        };
        let mut memory = strides.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.is_empty() && self.extent > 0 {
            memory.resize(self.extent as usize, 0);
            Stored::read_file(&self.path, self.begin, &mut memory)?;
        }
        strides.gather(&memory, offset, into);
        if offset as u64 + into.len() as u64 >= self.bytes {
            // It is read from front to back, once for a save.
            *memory = Vec::new();
        }
        Ok(())
    }
}

impl Strides {
    /// Fills `into` with the bytes from `offset` on of the row-major order.
    fn gather(&self, memory: &[u8], offset: usize, into: &mut [u8]) {
        let mut at = offset;
        let mut filled = 0;
        while filled < into.len() {
            let (element, inside) = (at / self.element, at % self.element);
            let count = (self.element - inside).min(into.len() - filled);
            let begin = self.place(element as u64) as usize * self.element + inside;
            into[filled..filled + count].copy_from_slice(&memory[begin..begin + count]);
            filled += count;
            at += count;
        }
    }

    /// Where an element is, in elements from the first.
    fn place(&self, element: u64) -> u64 {
        let mut rest = element;
        let mut place = 0;
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            place += rest % size * stride;
            rest /= size;
        }
        place
    }
}
