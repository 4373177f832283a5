//! A safetensors file as a component.

use std::fmt;

use lastgood_format::{Dtype, Error, Result};
use safetensors::tensor::Metadata;

use super::{HEADER_BYTES_MAX, LENGTH_BYTES};
use crate::state::{Capture, Durability, Part, Source};

/// A safetensors file whose header was read and checked.
///
/// Its tensors are read when they are captured, straight into the arena: an import needs the memory of the
/// tensors once.
pub struct Reader<'f> {
    file: &'f dyn Source,
    header: Metadata,
    /// Where the tensors begin in the file.
    data: usize,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("file", &self.file).finish_non_exhaustive()
    }
}

impl<'f> Reader<'f> {
    /// Reads the header of `file`, which has `bytes` bytes.
    ///
    /// # Errors
    /// `Corrupt` if the file is no whole safetensors file; `Incompatible` if it has a dtype that lastgood
    /// does not know; those of `file`.
    pub fn open(file: &'f dyn Source, bytes: u64) -> Result<Self> {
        let mut length = [0; LENGTH_BYTES];
        if bytes < LENGTH_BYTES as u64 {
            return Err(unreadable(format!("it has {bytes} bytes")));
        }
        file.read(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        let room = HEADER_BYTES_MAX.min(bytes - LENGTH_BYTES as u64);
        if length > room {
            return Err(unreadable(format!(
                "its first 8 bytes tell of a header of {length} bytes, there is room for {room}"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read(LENGTH_BYTES, &mut header)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|e| unreadable(format!("its header: {e}")))?;
        let data = LENGTH_BYTES + length as usize;
        let expected = data as u64 + header.data_len() as u64;
        if expected != bytes {
            return Err(unreadable(format!(
                "its header tells of {expected} bytes, it has {bytes}"
            )));
        }
        Ok(Self { file, header, data })
    }

    /// The bytes of all tensors.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.header.data_len() as u64
    }

    /// Captures every tensor as component `component` of `owner`, and the file's metadata as the
    /// checkpoint's.
    ///
    /// # Errors
    /// `Incompatible` if there is a dtype that lastgood does not know; `Invalid` if the component is
    /// declared already.
    pub fn capture(&self, component: &str, owner: &str, capture: &mut Capture<'f>) -> Result<()> {
        self.capture_metadata(capture);
        self.capture_into(&mut capture.component(component, owner, Durability::Durable)?)
    }

    /// Captures the file's metadata as the checkpoint's.
    pub fn capture_metadata(&self, capture: &mut Capture<'_>) {
        for (key, value) in self.header.metadata().iter().flatten() {
            capture.metadata(key.clone(), value.clone());
        }
    }

    /// Captures every tensor into a component that is declared already, so that several files can be one
    /// component.
    ///
    /// # Errors
    /// `Incompatible` if there is a dtype that lastgood does not know; `Invalid` as
    /// [`Part::source`](crate::state::Part::source).
    pub fn capture_into(&self, part: &mut Part<'_, 'f>) -> Result<()> {
        for name in self.header.offset_keys() {
            let Some(info) = self.header.info(&name) else { continue };
            let dtype: Dtype = info.dtype.to_string().parse()?;
            let shape: Vec<u64> = info.shape.iter().map(|size| *size as u64).collect();
            let data = Tensor { file: self.file, begin: self.data + info.data_offsets.0 };
            part.source(&name, dtype, &shape, data)?;
        }
        Ok(())
    }
}

fn unreadable(why: String) -> Error {
    Error::corrupt(format!("the file is no whole safetensors file: {why}"))
}

/// One tensor of a file.
#[derive(Debug)]
struct Tensor<'f> {
    file: &'f dyn Source,
    begin: usize,
}

impl Source for Tensor<'_> {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.file.read(self.begin + offset, into)
    }
}

#[cfg(test)]
mod tests;
