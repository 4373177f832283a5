//! Memory that Python owns: the only module that trusts an address.
#![expect(unsafe_code, reason = "Python's arrays are known by their addresses")]

use std::ops::Range;
use std::sync::Arc;

use lastgood::state::Source;
use lastgood::{Error, Result};
use pyo3::{Py, PyAny, Python};

/// What is no larger is copied at once, under the interpreter's lock: no thread of Python changes it meanwhile, and a
/// copy in the call costs less than what is known of the tensor.
const SMALL: usize = 64 << 10;

/// The least size of a page, and the usual one of a huge page.
#[cfg(target_os = "linux")]
const PAGE: usize = 4 << 10;
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;

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

/// Asks the kernel for huge pages below `memories`, which are about to be written: most of the time of a restore into
/// fresh memory is spent in touching it page by page.
pub(crate) fn expect_writes<'m>(memories: impl Iterator<Item = &'m Memory>) {
    #[cfg(target_os = "linux")]
    {
        let mut ranges: Vec<Range<usize>> =
            memories.map(|m| m.address..m.address + m.bytes).filter(|r| !r.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        // Large tensors lie beside each other, and a huge page may hold the end of one and the beginning of the next.
        let mut merged: Vec<Range<usize>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start < last.end.saturating_add(PAGE) => {
                    last.end = range.end.max(last.end)
                }
                _ => merged.push(range),
            }
        }
        for range in merged {
            let (begin, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
            if end.saturating_sub(begin) >= HUGE_PAGE {
                // SAFETY: the advice changes neither content nor access of the pages, all of which lie within memory
                // that owners keep alive, or in a gap of less than a page between two of them.
                let advised = unsafe {
                    let at = begin as *mut std::ffi::c_void;
                    rustix::mm::madvise(at, end - begin, rustix::mm::Advice::LinuxHugepage)
                };
                // A kernel without huge pages: slower, and all the same otherwise.
                advised.unwrap_or_default();
            }
        }
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

/// The bytes of a tensor that is saved.
#[derive(Debug)]
pub(crate) enum Held {
    /// Python's memory, which stays as it is until the save has copied it.
    InPlace(Memory),
    /// A range of copies that were made at once.
    Copied(Arc<Vec<u8>>, Range<usize>),
}

impl Held {
    /// Copies of `memories`, whose owners may change them as soon as the call of the save returns. If the save copies
    /// within its call (not `overlapped`), large ones are left to it.
    pub(crate) fn copies(
        py: Python<'_>,
        memories: Vec<Memory>,
        overlapped: bool,
    ) -> Result<Vec<Self>> {
        let small = block_of(&memories, |memory| memory.len() <= SMALL)?;
        let large = match overlapped {
            true => py.detach(|| block_of(&memories, |memory| memory.len() > SMALL))?,
            false => Arc::default(),
        };
        let (mut small_end, mut large_end) = (0, 0);
        let held = memories.into_iter().map(|memory| {
            let (block, end) = match memory.len() <= SMALL {
                true => (&small, &mut small_end),
                false if overlapped => (&large, &mut large_end),
                false => return Self::InPlace(memory),
            };
            let begin = *end;
            *end += memory.len();
            Self::Copied(Arc::clone(block), begin..*end)
        });
        Ok(held.collect())
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::InPlace(memory) => memory.len(),
            Self::Copied(_, range) => range.len(),
        }
    }
}

/// Those of `memories` that are `wanted`, one after the other.
fn block_of(memories: &[Memory], wanted: impl Fn(&Memory) -> bool) -> Result<Arc<Vec<u8>>> {
    let wanted = || memories.iter().filter(|memory| wanted(memory));
    let mut block = vec![0; wanted().map(Memory::len).sum()];
    let mut rest = block.as_mut_slice();
    for memory in wanted() {
        let (into, behind) = rest.split_at_mut(memory.len());
        memory.read(0, into)?;
        rest = behind;
    }
    Ok(Arc::new(block))
}

impl Source for Held {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        let (block, range) = match self {
            Self::InPlace(memory) => return memory.read(offset, into),
            Self::Copied(block, range) => (block, range),
        };
        let bytes = block.get(range.clone()).and_then(|bytes| bytes.get(offset..));
        match bytes.and_then(|bytes| bytes.get(..into.len())) {
            Some(bytes) => into.copy_from_slice(bytes),
            None => return Err(Error::internal("a copy reaches beyond the copy of a tensor")),
        }
        Ok(())
    }
}
