//! Reading a shard index that may be damaged or hostile.

use std::collections::BTreeMap;
use std::io::Read;

use zstd::stream::read::Decoder;
use zstd::zstd_safe::DCtx;

use super::{
    Chunk, Component, DELTAS, DIMS_MAX, Durability, HEADER_BYTES, MAGIC, METADATA_BYTES_MAX,
    NAME_BYTES_MAX, NAMES_BYTES_MAX, Pack, Shard, ShardIndex, TENSOR_NAME_BYTES_MAX, Tensor,
};
use crate::key::{OBJECT_BYTES_MAX, SaveKey};
use crate::layout::NdBox;
use crate::wire::Reader;
use crate::{Dtype, Error, Hash, Result, descriptor, frames, pack};

impl ShardIndex {
    /// Reads stored bytes and checks every rule of `FORMAT.md`.
    ///
    /// # Errors
    /// `Corrupt` if a rule is broken; `Incompatible` if the version or a code is newer.
    pub fn decode(stored: &[u8]) -> Result<Self> {
        descriptor::check_size("shard index", stored, Self::BYTES_MAX)?;
        let (columns, has_deltas) = unpack(stored)?;
        let index = read(&columns, has_deltas)?;
        index.check()?;
        Ok(index)
    }
}

/// The columns of a stored index, after its hash was checked, and whether there are those for deltas.
fn unpack(stored: &[u8]) -> Result<(Vec<u8>, bool)> {
    let split =
        stored.len().checked_sub(Hash::BYTES).filter(|split| *split >= HEADER_BYTES).ok_or_else(
            || Error::corrupt(format!("a shard index of {} bytes is too short", stored.len())),
        )?;
    let (body, seal) = stored.split_at(split);
    let expected = Reader::new(seal).hash()?;
    let found = Hash::of(body);
    if found != expected {
        return Err(Error::corrupt(format!(
            "shard index: expected hash {expected}, found {found}"
        )));
    }
    let mut fields = Reader::new(body);
    if fields.bytes(MAGIC.len())? != MAGIC {
        return Err(Error::corrupt("the object does not begin as a shard index does"));
    }
    descriptor::check_version(fields.u32()?)?;
    let flags = fields.u32()?;
    if flags & !DELTAS != 0 {
        return Err(Error::incompatible(format!("shard index flags {flags:#x} are not known"))
            .with_remedy("use a newer lastgood"));
    }
    let decoded_bytes = fields.u64()?;
    let stored_bytes = fields.u64()?;
    let frame = &body[HEADER_BYTES..];
    let plausible = stored_bytes == frame.len() as u64
        && decoded_bytes <= ShardIndex::BYTES_MAX
        && decoded_bytes <= stored_bytes.saturating_mul(ShardIndex::GROWTH_MAX);
    if !plausible {
        return Err(Error::corrupt(format!(
            "a shard index cannot have {decoded_bytes} bytes of columns in {stored_bytes} of {}",
            frame.len()
        )));
    }
    Ok((inflate(frame, decoded_bytes)?, flags & DELTAS != 0))
}

fn inflate(frame: &[u8], decoded_bytes: u64) -> Result<Vec<u8>> {
    frames::with_decoder(|context| inflate_with(context, frame, decoded_bytes))
}

/// Memory grows with what is really decoded, and stops one byte after what was announced.
fn inflate_with(context: &mut DCtx<'static>, frame: &[u8], decoded_bytes: u64) -> Result<Vec<u8>> {
    let unreadable = |e| Error::corrupt(format!("the columns of a shard index do not decode: {e}"));
    let mut decoder = Decoder::with_context(frame, context).single_frame();
    decoder.window_log_max(ShardIndex::WINDOW_LOG_MAX).map_err(unreadable)?;
    let mut columns = Vec::with_capacity((decoded_bytes + 1).min(4096) as usize);
    decoder.by_ref().take(decoded_bytes + 1).read_to_end(&mut columns).map_err(unreadable)?;
    if columns.len() as u64 != decoded_bytes {
        let found = if columns.len() as u64 > decoded_bytes { "more" } else { "fewer" };
        return Err(Error::corrupt(format!(
            "expected {decoded_bytes} bytes of columns in a shard index, found {found}"
        )));
    }
    let rest = decoder.finish().len();
    if rest > 0 {
        return Err(Error::corrupt(format!("{rest} bytes follow the frame of a shard index")));
    }
    Ok(columns)
}

fn read(columns: &[u8], has_deltas: bool) -> Result<ShardIndex> {
    let mut fields = Reader::new(columns);
    let run = fields.text(NAME_BYTES_MAX)?;
    let run = run.parse().map_err(|e: Error| Error::corrupt(e.message().to_owned()))?;
    let save = SaveKey { attempt: fields.u64()?, step: fields.u64()?, generation: fields.u32()? };
    let rank = fields.u32()?;
    let world_size = fields.u32()?;
    let chunk_bytes = fields.u32()?;
    let parent = match flag(fields.u8()?)? {
        true => Some(fields.hash()?),
        false => None,
    };
    let count = fields.count(Hash::BYTES)?;
    let reuses = repeat(count, || fields.hash())?;
    let metadata = read_metadata(&mut fields)?;
    let components = read_components(&mut fields)?;
    let tensors = read_tensors(&mut fields)?;
    let shards = read_shards(&mut fields, &tensors)?;
    let packs = read_packs(&mut fields)?;
    let chunks = read_rows(&mut fields)?;
    let (bases, operands) = match has_deltas {
        true => (read_rows(&mut fields)?, read_operands(&mut fields)?),
        false => Default::default(),
    };
    fields.end()?;
    Ok(ShardIndex {
        run,
        save,
        rank,
        world_size,
        parent,
        reuses,
        chunk_bytes,
        components,
        tensors,
        shards,
        chunks,
        bases,
        operands,
        packs,
        metadata,
    })
}

fn read_metadata(fields: &mut Reader<'_>) -> Result<BTreeMap<String, String>> {
    let count = fields.count(8)?;
    let mut metadata = BTreeMap::new();
    let mut last: Option<String> = None;
    for _ in 0..count {
        let key = fields.text(METADATA_BYTES_MAX)?.to_owned();
        let value = fields.text(METADATA_BYTES_MAX)?.to_owned();
        if last.as_ref().is_some_and(|last| *last >= key) {
            return Err(Error::corrupt("the metadata keys are not in order"));
        }
        last = Some(key.clone());
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn read_components(fields: &mut Reader<'_>) -> Result<Vec<Component>> {
    let count = fields.count(9)?;
    repeat(count, || {
        Ok(Component {
            name: fields.text(NAME_BYTES_MAX)?.to_owned(),
            owner: fields.text(NAME_BYTES_MAX)?.to_owned(),
            durability: Durability::from_code(fields.u8()?)?,
        })
    })
}

fn read_tensors(fields: &mut Reader<'_>) -> Result<Vec<Tensor>> {
    // Component 4, name 8, dtype 1, dimensions 1, tie 4, shards 4.
    let count = fields.count(22)?;
    let components = fields.u32s(count)?;
    let names = read_names(fields, count)?;
    let dtypes = repeat(count, || {
        let code = fields.u8()?;
        Dtype::from_code(code).ok_or_else(|| {
            Error::incompatible(format!("dtype {code} is not known"))
                .with_remedy("use a newer lastgood")
        })
    })?;
    let dims = repeat(count, || fields.u8().map(usize::from))?;
    if let Some(dims) = dims.iter().find(|dims| **dims > DIMS_MAX) {
        return Err(Error::corrupt(format!("a tensor has {dims} dimensions")));
    }
    let shapes = dims.iter().map(|dims| fields.u64s(*dims)).collect::<Result<Vec<_>>>()?;
    let ties = fields.u32s(count)?;
    let counts = fields.u32s(count)?;
    let mut begin = 0u32;
    let mut tensors = Vec::with_capacity(count);
    let columns = components.into_iter().zip(names).zip(dtypes).zip(shapes).zip(ties).zip(counts);
    for (((((component, name), dtype), shape), tie), shards) in columns {
        let end = begin
            .checked_add(shards)
            .ok_or_else(|| Error::corrupt("the counts of shards overflow"))?;
        let tied_to = tie.checked_sub(1);
        tensors.push(Tensor { component, name, dtype, shape, tied_to, shards: begin..end });
        begin = end;
    }
    Ok(tensors)
}

/// Each name is the beginning of the one before and a text of its own.
fn read_names(fields: &mut Reader<'_>, count: usize) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::with_capacity(count);
    let mut total = 0;
    for _ in 0..count {
        let kept = fields.u32()? as usize;
        let own = fields.text(TENSOR_NAME_BYTES_MAX)?;
        let last = names.last().map_or("", String::as_str);
        let head = last.get(..kept).ok_or_else(|| {
            Error::corrupt("a tensor's name keeps more of the name before than there is")
        })?;
        let name = [head, own].concat();
        total += name.len() as u64;
        if super::encode::shared_prefix(last, &name) != kept
            || name.len() > TENSOR_NAME_BYTES_MAX
            || total > NAMES_BYTES_MAX
        {
            return Err(Error::corrupt("a tensor's name is too long or not written the one way"));
        }
        names.push(name);
    }
    Ok(names)
}

fn read_shards(fields: &mut Reader<'_>, tensors: &[Tensor]) -> Result<Vec<Shard>> {
    let count = fields.count(8)?;
    let named = tensors.last().map_or(0, |last| last.shards.end as usize);
    if count != named {
        return Err(Error::corrupt(format!("{named} shards are named, {count} are there")));
    }
    let dims: Vec<usize> = tensors
        .iter()
        .flat_map(|tensor| tensor.shards.clone().map(|_| tensor.shape.len()))
        .collect();
    let vectors = |fields: &mut Reader<'_>| {
        dims.iter().map(|dims| fields.u64s(*dims)).collect::<Result<Vec<_>>>()
    };
    let offsets = vectors(fields)?;
    let sizes = vectors(fields)?;
    let first_chunks = fields.u32s(count)?;
    let chunk_offsets = fields.u32s(count)?;
    let columns = offsets.into_iter().zip(sizes).zip(first_chunks).zip(chunk_offsets);
    Ok(columns
        .map(|(((offsets, sizes), first_chunk), chunk_offset)| Shard {
            extent: NdBox { offsets, sizes },
            first_chunk,
            chunk_offset,
        })
        .collect())
}

fn read_packs(fields: &mut Reader<'_>) -> Result<Vec<Pack>> {
    let count = fields.count(13)?;
    repeat(count, || {
        Ok(Pack {
            object: fields.text(OBJECT_BYTES_MAX)?.to_owned(),
            bytes: fields.u64()?,
            is_new: flag(fields.u8()?)?,
        })
    })
}

fn read_rows(fields: &mut Reader<'_>) -> Result<Vec<Chunk>> {
    let count = fields.count(53)?;
    let hashes = repeat(count, || fields.hash())?;
    let decoded = fields.u32s(count)?;
    let stored = fields.u32s(count)?;
    let codecs = repeat(count, || pack::codec(fields.u8()?))?;
    let in_packs = fields.u32s(count)?;
    let offsets = fields.u64s(count)?;
    let columns =
        hashes.into_iter().zip(decoded).zip(stored).zip(codecs).zip(in_packs).zip(offsets);
    let chunks = columns
        .map(|(((((hash, decoded_bytes), stored_bytes), codec), pack), offset)| Chunk {
            hash,
            decoded_bytes,
            stored_bytes,
            codec,
            pack,
            offset,
        })
        .collect();
    Ok(chunks)
}

fn read_operands(fields: &mut Reader<'_>) -> Result<BTreeMap<u32, Vec<u32>>> {
    let count = fields.count(5)?;
    let rows = fields.u32s(count)?;
    if count == 0 || !rows.is_sorted_by(|a, b| a < b) {
        return Err(Error::corrupt("the deltas of a shard index are none or out of order"));
    }
    let counts = repeat(count, || fields.u8().map(usize::from))?;
    rows.into_iter().zip(counts).map(|(row, n)| Ok((row, fields.u32s(n)?))).collect()
}

/// Whether there is room for `count` was looked at, or it is small.
fn repeat<T>(count: usize, mut read: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(read()?);
    }
    Ok(all)
}

fn flag(byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::corrupt(format!("a flag is 0 or 1, found {byte}"))),
    }
}

impl Durability {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Durable => 0,
            Self::Derived => 1,
            Self::Volatile => 2,
        }
    }

    fn from_code(code: u8) -> Result<Self> {
        match code {
            0 => Ok(Self::Durable),
            1 => Ok(Self::Derived),
            2 => Ok(Self::Volatile),
            _ => Err(Error::incompatible(format!("durability {code} is not known"))),
        }
    }
}
