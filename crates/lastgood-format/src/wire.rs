//! Reading and writing little-endian fields with bounds.

use crate::{Error, Hash, Result};

/// Appends little-endian fields.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn hash(&mut self, value: &Hash) {
        self.0.extend_from_slice(value.as_bytes());
    }

    /// A length of 32 bits and that many bytes.
    pub(crate) fn text(&mut self, value: &str) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value.as_bytes());
    }
}

/// Takes little-endian fields off the front of bytes that may be hostile.
#[derive(Debug)]
pub(crate) struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'b [u8]> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| {
            Error::corrupt(format!("expected {count} more bytes, found {}", self.rest.len()))
        })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// So many fields; nothing is allocated for what cannot be there.
    pub(crate) fn u32s(&mut self, count: usize) -> Result<Vec<u32>> {
        let bytes = self.bytes(count.saturating_mul(4))?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// As [`Reader::u32s`].
    pub(crate) fn u64s(&mut self, count: usize) -> Result<Vec<u64>> {
        let bytes = self.bytes(count.saturating_mul(8))?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
    }

    pub(crate) fn hash(&mut self) -> Result<Hash> {
        self.array().map(Hash::from_bytes)
    }

    pub(crate) fn text(&mut self, bytes_max: usize) -> Result<&'b str> {
        let count = self.u32()? as usize;
        if count > bytes_max {
            return Err(Error::corrupt(format!("a text has {count} bytes, at most {bytes_max}")));
        }
        let bytes = self.bytes(count)?;
        std::str::from_utf8(bytes).map_err(|_| Error::corrupt("a text is not UTF-8"))
    }

    /// A count of things of which each takes at least `bytes_each` more bytes, so that nothing is
    /// allocated for things that cannot be there.
    pub(crate) fn count(&mut self, bytes_each: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        if count.checked_mul(bytes_each.max(1)).is_none_or(|bytes| bytes > self.rest.len()) {
            return Err(Error::corrupt(format!(
                "a count of {count} does not fit the {} bytes after it",
                self.rest.len()
            )));
        }
        Ok(count)
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// What is left.
    pub(crate) fn rest(&self) -> &'b [u8] {
        self.rest
    }

    pub(crate) fn end(&self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(Error::corrupt(format!("{extra} bytes follow the last field"))),
        }
    }
}
