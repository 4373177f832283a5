//! Arrays of zarr, of versions 2 and 3: how they are cut into chunks, and how chunks are packed.
//!
//! What is unpacked here is what Orbax writes: zstd, alone or in the shards of version 3 (zarr's
//! `sharding_indexed`), which end in an index of their own chunks and its CRC-32C.

use std::io::Read;

use serde_json::Value as Json;

use super::ocdbt::crc32c;
use crate::doctor::flaw::Flaw;

/// Chunks of one array that are looked for one by one.
const CHUNKS_MAX: u64 = 1_000_000;
/// An entry of a shard's index: where a chunk begins, and how long it is.
const ENTRY_BYTES: usize = 16;
const SUM_BYTES: usize = 4;

/// How an array is cut into chunks.
#[derive(Debug)]
pub(super) struct Grid {
    /// Chunks in each dimension.
    counts: Vec<u64>,
    /// Between the numbers of a chunk's name, and what stands before them.
    separator: String,
    before: &'static str,
    /// Nothing if it is a way that is not known here.
    packing: Option<Packing>,
}

/// How a chunk is packed by zstd.
#[derive(Clone, Copy, Debug)]
struct Packing {
    /// The unpacked bytes of a chunk, or of each chunk in a shard.
    bytes: u64,
    /// The chunks of a shard, if it is one.
    in_shard: Option<u64>,
}

impl Grid {
    pub(super) fn read(description: &Json) -> Result<Self, Flaw> {
        let odd = |what: &str| Flaw::content(format!("its description has no {what}"));
        let is_v3 = description.get("zarr_format").and_then(Json::as_u64) == Some(3);
        let shape = sizes(description.get("shape")).ok_or_else(|| odd("shape"))?;
        let chunks = match is_v3 {
            true => sizes(description.pointer("/chunk_grid/configuration/chunk_shape")),
            false => sizes(description.get("chunks")),
        };
        let chunks = chunks.filter(|c| c.len() == shape.len()).ok_or_else(|| odd("chunks"))?;
        if chunks.contains(&0) && !shape.contains(&0) {
            return Err(odd("chunks with something in them"));
        }
        let counts: Vec<u64> =
            shape.iter().zip(&chunks).map(|(size, chunk)| size.div_ceil((*chunk).max(1))).collect();
        if product(&counts).is_none_or(|total| total > CHUNKS_MAX) {
            return Err(Flaw::limit(format!("more than {CHUNKS_MAX} chunks")));
        }
        let separator = match is_v3 {
            true => description.pointer("/chunk_key_encoding/configuration/separator"),
            false => description.get("dimension_separator"),
        };
        let default = if is_v3 { "/" } else { "." };
        Ok(Self {
            counts,
            separator: separator.and_then(Json::as_str).unwrap_or(default).to_owned(),
            before: if is_v3 { "c" } else { "" },
            packing: match is_v3 {
                true => packing_of_v3(description, &chunks),
                false => packing_of_v2(description, &chunks),
            },
        })
    }

    /// The names of all chunks.
    pub(super) fn keys<'g>(&'g self, array: &'g str) -> impl Iterator<Item = String> + 'g {
        let total: u64 = self.counts.iter().product();
        let name = move |number: u64| {
            let mut rest = number;
            let mut parts = Vec::new();
            for count in self.counts.iter().rev() {
                parts.push((rest % count).to_string());
                rest /= count;
            }
            parts.extend((!self.before.is_empty()).then(|| self.before.to_owned()));
            if parts.is_empty() {
                parts.push("0".to_owned());
            }
            parts.reverse();
            format!("{array}/{}", parts.join(&self.separator))
        };
        (0..total).map(name)
    }

    /// How many bytes are unpacked at most to check one chunk.
    pub(super) fn unpacked_bytes(&self) -> u64 {
        self.packing.map_or(0, |of| of.bytes.saturating_mul(of.in_shard.unwrap_or(1)))
    }

    /// Unpacks a chunk, and counts its bytes.
    pub(super) fn check(&self, stored: &[u8]) -> Result<(), Flaw> {
        match self.packing {
            _ if stored.is_empty() => Err(Flaw::content("0 bytes")),
            Some(Packing { bytes, in_shard: Some(chunks) }) => shard(stored, bytes, chunks),
            Some(Packing { bytes, in_shard: None }) => unpack(stored, bytes),
            None => Ok(()),
        }
    }
}

/// A shard of so many chunks, all of which, or some, are in it.
fn shard(stored: &[u8], chunk_bytes: u64, chunks: u64) -> Result<(), Flaw> {
    let index = usize::try_from(chunks).ok().and_then(|chunks| chunks.checked_mul(ENTRY_BYTES));
    let begin = index.and_then(|len| stored.len().checked_sub(len)?.checked_sub(SUM_BYTES));
    let begin = begin.ok_or_else(|| {
        Flaw::content(format!(
            "{} bytes have no room for an index of {chunks} chunks",
            stored.len()
        ))
    })?;
    let (body, index) = stored.split_at(begin);
    let (index, sum) = index.split_at(index.len() - SUM_BYTES);
    let computed = crc32c(index);
    if sum != computed.to_le_bytes() {
        return Err(Flaw::content(format!("the CRC-32C of its index is not {computed:08x}")));
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    for entry in index.chunks_exact(ENTRY_BYTES) {
        let (offset, len) = entry.split_at(ENTRY_BYTES / 2);
        let (offset, len) = (number(offset), number(len));
        // One that is all fill value.
        if offset == u64::MAX && len == u64::MAX {
            continue;
        }
        let end = offset.checked_add(len).filter(|end| *end <= body.len() as u64);
        let end =
            end.ok_or_else(|| Flaw::content("its index names bytes that it does not have"))?;
        unpack(&body[offset as usize..end as usize], chunk_bytes)?;
    }
    Ok(())
}

fn unpack(packed: &[u8], expected: u64) -> Result<(), Flaw> {
    let wrong = |e| Flaw::content(format!("it cannot be decompressed: {e}"));
    let decoder = zstd::stream::read::Decoder::new(packed).map_err(wrong)?;
    let found = std::io::copy(&mut decoder.take(expected.saturating_add(1)), &mut std::io::sink());
    match found.map_err(wrong)? {
        found if found == expected => Ok(()),
        found => Err(Flaw::content(format!("{found} bytes decompressed, {expected} expected"))),
    }
}

fn packing_of_v2(description: &Json, chunks: &[u64]) -> Option<Packing> {
    let is_zstd = description.pointer("/compressor/id").and_then(Json::as_str) == Some("zstd");
    let each = element_bytes(description.get("dtype")?.as_str()?).filter(|_| is_zstd)?;
    Some(Packing { bytes: product(chunks)?.checked_mul(each)?, in_shard: None })
}

fn packing_of_v3(description: &Json, chunks: &[u64]) -> Option<Packing> {
    let each = element_bytes(description.get("data_type")?.as_str()?)?;
    let codecs = description.get("codecs")?;
    if names(codecs)? == ["bytes", "zstd"] {
        return Some(Packing { bytes: product(chunks)?.checked_mul(each)?, in_shard: None });
    }
    let shard = codecs.pointer("/0/configuration")?;
    let inner = sizes(shard.get("chunk_shape")).filter(|inner| inner.len() == chunks.len())?;
    let is_at_end = shard.get("index_location").is_none_or(|place| place == "end");
    let known = names(codecs)? == ["sharding_indexed"]
        && names(shard.get("codecs")?)? == ["bytes", "zstd"]
        && names(shard.get("index_codecs")?)? == ["bytes", "crc32c"]
        && is_at_end
        && chunks.iter().zip(&inner).all(|(outer, inner)| *inner > 0 && outer % inner == 0);
    let counts: Vec<u64> = chunks.iter().zip(&inner).map(|(o, i)| o / (*i).max(1)).collect();
    let bytes = product(&inner)?.checked_mul(each)?;
    Some(Packing { bytes, in_shard: Some(product(&counts)?) }).filter(|_| known)
}

fn names(codecs: &Json) -> Option<Vec<&str>> {
    codecs.as_array()?.iter().map(|codec| codec.get("name")?.as_str()).collect()
}

fn sizes(value: Option<&Json>) -> Option<Vec<u64>> {
    value?.as_array()?.iter().map(Json::as_u64).collect()
}

fn product(sizes: &[u64]) -> Option<u64> {
    sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size))
}

/// The size of an element, as numpy writes its dtype, or by its name: those below 8 bits have a byte each.
fn element_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "bool" | "int2" | "int4" | "int8" | "uint2" | "uint4" | "uint8" => Some(1),
        "bfloat16" | "float16" | "int16" | "uint16" => Some(2),
        "float32" | "int32" | "uint32" => Some(4),
        "float64" | "int64" | "uint64" | "complex64" => Some(8),
        "complex128" => Some(16),
        name if name.starts_with("float8") => Some(1),
        name if name.starts_with(['<', '>', '|', '=']) => name.get(2..)?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
