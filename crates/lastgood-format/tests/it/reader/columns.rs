//! `FORMAT.md`, "Shard index".

use std::collections::BTreeMap;

use lastgood_format::chunk::Codec;
use lastgood_format::index::{Chunk, Component, Durability, Pack, Shard, ShardIndex, Tensor};
use lastgood_format::key::SaveKey;
use lastgood_format::layout::NdBox;
use lastgood_format::{Dtype, Hash};

/// Bytes that fields are taken from.
pub(crate) struct Fields<'b>(pub(crate) &'b [u8]);

impl<'b> Fields<'b> {
    pub(crate) fn take(&mut self, count: usize) -> &'b [u8] {
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        head
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    pub(crate) fn hash(&mut self) -> [u8; 32] {
        self.take(32).try_into().unwrap()
    }

    fn text(&mut self) -> String {
        let count = self.u32() as usize;
        String::from_utf8(self.take(count).to_vec()).unwrap()
    }

    fn each<T>(&mut self, count: usize, mut read: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..count).map(|_| read(self)).collect()
    }
}

/// The table of `FORMAT.md`, "Dtypes", by code.
const DTYPES: [(&str, u64); 23] = [
    ("BLOB", 8),
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("U16", 16),
    ("I16", 16),
    ("U32", 32),
    ("I32", 32),
    ("U64", 64),
    ("I64", 64),
    ("F16", 16),
    ("BF16", 16),
    ("F32", 32),
    ("F64", 64),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("F4", 4),
    ("C64", 64),
    ("F8_E5M2FNUZ", 8),
    ("F8_E4M3FNUZ", 8),
];

fn dtype(code: u8) -> Dtype {
    let name = DTYPES[usize::from(code)].0;
    Dtype::ALL.iter().copied().find(|dtype| dtype.name() == name).unwrap()
}

pub(crate) fn bits_of(dtype: Dtype) -> u64 {
    DTYPES.iter().find(|(name, _)| *name == dtype.name()).unwrap().1
}

/// The columns of a stored index.
pub(crate) fn unpack(stored: &[u8]) -> Vec<u8> {
    let (body, seal) = stored.split_at(stored.len() - 32);
    assert_eq!(blake3::hash(body).as_bytes(), seal);
    let mut fields = Fields(body);
    assert_eq!(fields.take(8), b"LGINDEX\0");
    assert_eq!(fields.u32(), 1);
    assert!(fields.u32() <= 1);
    let decoded_bytes = fields.u64() as usize;
    assert_eq!(fields.u64(), fields.0.len() as u64);
    let columns = zstd::stream::decode_all(fields.0).unwrap();
    assert_eq!(columns.len(), decoded_bytes);
    columns
}

pub(crate) fn read_index(stored: &[u8]) -> ShardIndex {
    let columns = unpack(stored);
    let mut fields = Fields(&columns);
    let f = &mut fields;
    let run = f.text().parse().unwrap();
    let save = SaveKey { attempt: f.u64(), step: f.u64(), generation: f.u32() };
    let (rank, world_size, chunk_bytes) = (f.u32(), f.u32(), f.u32());
    let hash = |f: &mut Fields<'_>| Hash::from_bytes(f.hash());
    let parent = (f.u8() == 1).then(|| hash(f));
    let count = f.u32() as usize;
    let reuses = f.each(count, hash);
    let count = f.u32() as usize;
    let metadata = f.each(count, |f| (f.text(), f.text())).into_iter().collect();
    let count = f.u32() as usize;
    let components = f.each(count, |f| Component {
        name: f.text(),
        owner: f.text(),
        durability: [Durability::Durable, Durability::Derived, Durability::Volatile]
            [usize::from(f.u8())],
    });
    let tensors = read_tensors(f);
    let shards = read_shards(f, &tensors);
    let count = f.u32() as usize;
    let packs = f.each(count, |f| Pack { object: f.text(), bytes: f.u64(), is_new: f.u8() == 1 });
    let chunks = read_chunks(f);
    let (mut bases, mut operands) = (Vec::new(), BTreeMap::new());
    if stored[12] == 1 {
        bases = read_chunks(f);
        let count = f.u32() as usize;
        let rows = f.each(count, Fields::u32);
        let counts = f.each(count, Fields::u8);
        operands = rows
            .into_iter()
            .zip(counts)
            .map(|(row, count)| (row, f.each(usize::from(count), Fields::u32)))
            .collect();
    }
    assert!(f.0.is_empty());
    ShardIndex {
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
    }
}

fn read_tensors(f: &mut Fields<'_>) -> Vec<Tensor> {
    let count = f.u32() as usize;
    let components = f.each(count, Fields::u32);
    let mut last = Vec::new();
    let names = f.each(count, |f| {
        let kept = f.u32() as usize;
        let own = f.text();
        last.truncate(kept);
        last.extend_from_slice(own.as_bytes());
        String::from_utf8(last.clone()).unwrap()
    });
    let dtypes = f.each(count, |f| dtype(f.u8()));
    let dims = f.each(count, Fields::u8);
    let shapes: Vec<_> = dims.iter().map(|dims| f.each(usize::from(*dims), Fields::u64)).collect();
    let ties = f.each(count, |f| f.u32().checked_sub(1));
    let mut end = 0;
    let shards = f.each(count, |f| {
        let begin = end;
        end += f.u32();
        begin..end
    });
    let mut tensors = Vec::new();
    for i in 0..count {
        tensors.push(Tensor {
            component: components[i],
            name: names[i].clone(),
            dtype: dtypes[i],
            shape: shapes[i].clone(),
            tied_to: ties[i],
            shards: shards[i].clone(),
        });
    }
    tensors
}

fn read_shards(f: &mut Fields<'_>, tensors: &[Tensor]) -> Vec<Shard> {
    let count = f.u32() as usize;
    let dims: Vec<usize> =
        tensors.iter().flat_map(|t| t.shards.clone().map(|_| t.shape.len())).collect();
    assert_eq!(dims.len(), count);
    let offsets: Vec<_> = dims.iter().map(|dims| f.each(*dims, Fields::u64)).collect();
    let sizes: Vec<_> = dims.iter().map(|dims| f.each(*dims, Fields::u64)).collect();
    let first = f.each(count, Fields::u32);
    let within = f.each(count, Fields::u32);
    let extents = offsets.into_iter().zip(sizes);
    extents
        .zip(first.into_iter().zip(within))
        .map(|((offsets, sizes), (first_chunk, chunk_offset))| Shard {
            extent: NdBox { offsets, sizes },
            first_chunk,
            chunk_offset,
        })
        .collect()
}

fn read_chunks(f: &mut Fields<'_>) -> Vec<Chunk> {
    let count = f.u32() as usize;
    let hashes = f.each(count, Fields::hash);
    let decoded = f.each(count, Fields::u32);
    let stored = f.each(count, Fields::u32);
    let codecs = f.each(count, |f| {
        [Codec::Raw, Codec::Zstd, Codec::Zero, Codec::Planes, Codec::Delta][usize::from(f.u8())]
    });
    let packs = f.each(count, Fields::u32);
    let offsets = f.each(count, Fields::u64);
    (0..count)
        .map(|i| Chunk {
            hash: Hash::from_bytes(hashes[i]),
            decoded_bytes: decoded[i],
            stored_bytes: stored[i],
            codec: codecs[i],
            pack: packs[i],
            offset: offsets[i],
        })
        .collect()
}
