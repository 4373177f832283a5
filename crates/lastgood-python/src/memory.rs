//! Memory that Python owns: the only module that trusts an address.
#![expect(unsafe_code, reason = "Python's arrays are known by their addresses")]

use lastgood::state::Source;
use lastgood::{Error, Result};
use pyo3::{Py, PyAny};

/// A contiguous piece of memory of a Python object, which is kept alive for as long as this is.
///
/// Python's code in `lastgood/_memory.py` is the only place that makes them, from arrays whose size it has
/// asked for in the same breath.
#[derive(Debug)]
pub(crate) struct Memory {
    address: usize,
    bytes: usize,
    _owner: Py<PyAny>,
}

impl Memory {
    pub(crate) fn new(address: usize, bytes: usize, owner: Py<PyAny>) -> Result<Self> {
        if bytes > 0 && (address == 0 || address.checked_add(bytes).is_none()) {
            return Err(Error::invalid(format!("{bytes} bytes at {address:#x} are no memory")));
        }
        if isize::try_from(bytes).is_err() {
            return Err(Error::invalid(format!("{bytes} bytes are more than memory can be")));
        }
        Ok(Self { address, bytes, _owner: owner })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The memory to write to.
    pub(crate) fn target(&mut self) -> &mut [u8] {
        if self.bytes == 0 {
            return &mut [];
        }
        // SAFETY: `new` was given an address of `bytes` bytes of plain memory that `_owner` keeps alive, and
        // a restore is only given memory that lastgood allocated for it and that nobody else has seen.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes) }
    }
}

impl Source for Memory {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(into.len()).filter(|end| *end <= self.bytes);
        if end.is_none() {
            return Err(Error::internal("a copy reaches beyond the memory of a tensor"));
        }
        if into.is_empty() {
            return Ok(());
        }
        // SAFETY: the range was checked to lie inside memory that `_owner` keeps alive, and `into` is fresh
        // memory of the arena, so that both cannot overlap. Whoever writes to the tensor meanwhile breaks the
        // contract of an overlapped save and tears the copy, as a raw copy of bytes can bear.
        unsafe {
            let from = (self.address as *const u8).add(offset);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len());
        }
        Ok(())
    }
}
