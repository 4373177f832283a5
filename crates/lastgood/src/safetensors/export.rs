//! A component of a checkpoint as safetensors files.

use std::cmp::Reverse;
use std::fmt;
use std::fmt::Write as _;

use lastgood_format::layout::NdBox;
use lastgood_format::{Dtype, Error, ErrorKind, Result};

use super::{HEADER_BYTES_MAX, LENGTH_BYTES};
use crate::repository::Repository;
use crate::restore::Contents;
use crate::state::{Durability, Targets, World};

/// About how much of a file is in memory at a time.
const PART_BYTES: u64 = 64 << 20;

/// Which of the two files of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The tensors, with the checkpoint's metadata. A tied tensor is written once for each of its names,
    /// since safetensors knows no ties.
    Tensors,
    /// Values and blobs, for which safetensors has no dtype, as tensors of `U8`.
    Blobs,
}

/// One safetensors file of a checkpoint, read and verified part by part.
pub struct Export<'c> {
    repository: &'c Repository,
    contents: &'c Contents,
    component: &'c str,
    entries: Vec<Entry<'c>>,
    header: Option<Vec<u8>>,
    bytes: u64,
    /// What comes next: an entry, and the place in it.
    next: (usize, u64),
    memory: Vec<u8>,
    part_bytes: u64,
}

impl fmt::Debug for Export<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("component", &self.component)
            .field("entries", &self.entries.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// A tensor of the file.
#[derive(Debug)]
struct Entry<'c> {
    name: &'c str,
    dtype: Dtype,
    shape: &'c [u64],
    bytes: u64,
}

impl<'c> Export<'c> {
    /// The file of `component`, or `None` if there is nothing to be in it.
    ///
    /// # Errors
    /// `NotFound` if there is no such component; `Incompatible` if safetensors cannot have such a file.
    pub fn new(
        repository: &'c Repository,
        contents: &'c Contents,
        component: &'c str,
        content: Content,
    ) -> Result<Option<Self>> {
        let components = contents.components();
        if !components.contains_key(component) {
            let names: Vec<&str> = components.into_keys().collect();
            return Err(Error::not_found(format!("the checkpoint has no component {component:?}"))
                .with_remedy(format!("there are: {}", names.join(", "))));
        }
        let mut entries = Vec::new();
        for ((of, name), info) in contents.tensors() {
            let is_blob = info.dtype == Dtype::Blob;
            if of == component && is_blob == (content == Content::Blobs) {
                let elements = NdBox::whole(&info.shape).elements();
                let bytes =
                    elements.and_then(|count| info.dtype.bytes_of(count)).ok_or_else(|| {
                        Error::corrupt(format!("{of}/{name} is no whole number of bytes"))
                    })?;
                entries.push(Entry { name, dtype: info.dtype, shape: &info.shape, bytes });
            }
        }
        if entries.is_empty() {
            return Ok(None);
        }
        // The widest first, so that every tensor begins where its elements are aligned.
        entries.sort_by_key(|entry| (Reverse(entry.dtype.bits()), entry.name));
        let header = header(&entries, contents, content)?;
        let bytes = header.len() as u64 + entries.iter().map(|entry| entry.bytes).sum::<u64>();
        Ok(Some(Self {
            repository,
            contents,
            component,
            entries,
            header: Some(header),
            bytes,
            next: (0, 0),
            memory: Vec::new(),
            part_bytes: PART_BYTES,
        }))
    }

    /// The bytes of the whole file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes of the file, verified; `None` after the last ones.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`, `Denied` from reading; `Overloaded` if there is no memory.
    pub fn next_bytes(&mut self) -> Result<Option<&[u8]>> {
        if let Some(header) = self.header.take() {
            self.memory = header;
            return Ok(Some(&self.memory));
        }
        let boxes = self.take_boxes();
        if boxes.is_empty() {
            return Ok(None);
        }
        let total: u64 = boxes.iter().map(|(_, _, bytes)| bytes).sum();
        self.memory.clear();
        self.memory.try_reserve_exact(total as usize).map_err(|_| {
            Error::new(ErrorKind::Overloaded, format!("no memory for {total} bytes of a tensor"))
        })?;
        self.memory.resize(total as usize, 0);
        let mut targets = Targets::new(World::ALONE);
        targets.partial();
        let mut slots = targets.component(self.component, "export", Durability::Durable)?;
        let mut rest = self.memory.as_mut_slice();
        for (number, extent, bytes) in boxes {
            let Entry { name, dtype, shape, .. } = &self.entries[number];
            let (place, behind) = rest.split_at_mut(bytes as usize);
            rest = behind;
            slots.shard(name, *dtype, shape, extent, place)?;
        }
        self.repository.restore(self.contents, targets)?;
        Ok(Some(&self.memory))
    }

    /// The parts of tensors that are read together next, with their bytes, in the order of the file.
    fn take_boxes(&mut self) -> Vec<(usize, NdBox, u64)> {
        let mut boxes = Vec::new();
        let mut total = 0;
        while let Some(entry) = self.entries.get(self.next.0) {
            let slices = Slices::new(entry, self.part_bytes);
            let (extent, bytes, units) = slices.extent(entry, self.next.1, self.part_bytes);
            if !boxes.is_empty() && total + bytes > self.part_bytes {
                break;
            }
            total += bytes;
            boxes.push((self.next.0, extent, bytes));
            self.next.1 += units;
            if self.next.1 >= slices.count {
                self.next = (self.next.0 + 1, 0);
            }
        }
        boxes
    }
}

/// How a tensor is cut into slices that follow each other in its bytes: along dimension `along`, all that
/// is behind it whole.
struct Slices {
    along: Option<usize>,
    bytes: u64,
    count: u64,
}

impl Slices {
    fn new(entry: &Entry<'_>, part_bytes: u64) -> Self {
        let whole = Self { along: None, bytes: entry.bytes, count: 1 };
        if entry.bytes <= part_bytes {
            return whole;
        }
        let of = |along: usize| {
            let bytes = entry.dtype.bytes_of(entry.shape[along + 1..].iter().product())?;
            let count = entry.shape[..=along].iter().product();
            (bytes <= part_bytes && bytes > 0).then_some(Self { along: Some(along), bytes, count })
        };
        (0..entry.shape.len()).find_map(of).unwrap_or(whole)
    }

    /// The part of the tensor that begins at slice `from`, its bytes, and how many slices it is.
    fn extent(&self, entry: &Entry<'_>, from: u64, part_bytes: u64) -> (NdBox, u64, u64) {
        let mut extent = NdBox::whole(entry.shape);
        let Some(along) = self.along else { return (extent, entry.bytes, 1) };
        let size = entry.shape[along];
        let mut outer = from / size;
        extent.offsets[along] = from % size;
        let count = (part_bytes / self.bytes).max(1).min(size - from % size);
        extent.sizes[along] = count;
        for d in (0..along).rev() {
            extent.offsets[d] = outer % entry.shape[d];
            extent.sizes[d] = 1;
            outer /= entry.shape[d];
        }
        (extent, count * self.bytes, count)
    }
}

/// The length, and the header with spaces behind it so that the tensors begin at a multiple of 8.
fn header(entries: &[Entry<'_>], contents: &Contents, content: Content) -> Result<Vec<u8>> {
    let mut json = String::from("{");
    let metadata = contents.metadata();
    if content == Content::Tensors && !metadata.is_empty() {
        write!(json, "\"__metadata__\":{},", text(&metadata)?).map_err(unwritten)?;
    }
    let mut begin = 0;
    for entry in entries {
        if entry.name == "__metadata__" {
            return Err(Error::incompatible("safetensors keeps the name __metadata__ for itself"));
        }
        let dtype = if content == Content::Blobs { Dtype::U8 } else { entry.dtype };
        let (name, shape, end) = (text(entry.name)?, text(entry.shape)?, begin + entry.bytes);
        write!(
            json,
            "{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}},"
        )
        .map_err(unwritten)?;
        begin = end;
    }
    json.pop();
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    if json.len() as u64 > HEADER_BYTES_MAX {
        return Err(Error::incompatible(format!(
            "{} tensors need a header of {} bytes, safetensors allows {HEADER_BYTES_MAX}",
            entries.len(),
            json.len()
        ))
        .with_remedy("export single components"));
    }
    let mut header = Vec::with_capacity(LENGTH_BYTES + json.len());
    header.extend((json.len() as u64).to_le_bytes());
    header.extend(json.as_bytes());
    Ok(header)
}

fn text(value: &(impl serde::Serialize + ?Sized)) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal(format!("JSON: {e}")))
}

fn unwritten(_: fmt::Error) -> Error {
    Error::internal("text that cannot be written")
}

#[cfg(test)]
mod tests;
