//! `FORMAT.md`, "Pack" and "Chunks and codecs".

use lastgood_format::index::ShardIndex;

use super::columns::Fields;
use super::{Objects, delta};

/// Hash, offset, stored bytes, decoded bytes, codec.
type Row = ([u8; 32], u64, u32, u32, u8);

/// The table of a pack.
pub(super) fn table(stored: &[u8]) -> Vec<Row> {
    let (rest, trailer) = stored.split_at(stored.len() - 64);
    let mut fields = Fields(trailer);
    assert_eq!(fields.take(8), b"LGPKEND\0");
    assert_eq!(fields.u32(), 1);
    let rows = fields.u32();
    let offset = fields.u64() as usize;
    assert_eq!(fields.u64(), 0);
    let sealed = [&stored[..16], &rest[offset..], &trailer[..32]].concat();
    assert_eq!(fields.hash(), *blake3::hash(&sealed).as_bytes());
    assert_eq!(&stored[..16], b"LGPACK\0\0\x01\0\0\0\0\0\0\0");
    assert_eq!(rest.len() - offset, 49 * rows as usize);
    let mut fields = Fields(&rest[offset..]);
    let mut end = 16;
    let mut table = Vec::new();
    for _ in 0..rows {
        let row = (fields.hash(), fields.u64(), fields.u32(), fields.u32(), fields.u8());
        assert_eq!(row.1, end);
        end += u64::from(row.2);
        table.push(row);
    }
    assert_eq!(end as usize, offset);
    table
}

/// The decoded bytes of row `row`, of a shard or of a base.
pub(super) fn chunk(objects: &Objects, run: &str, index: &ShardIndex, row: usize) -> Vec<u8> {
    let chunk = if row < index.chunks.len() {
        &index.chunks[row]
    } else {
        &index.bases[row - index.chunks.len()]
    };
    let pack = &objects[&format!("runs/{run}/{}", index.packs[chunk.pack as usize].object)];
    let begin = chunk.offset as usize;
    let stored = &pack[begin..begin + chunk.stored_bytes as usize];
    let decoded_bytes = chunk.decoded_bytes as usize;
    let decoded = match chunk.codec.name() {
        "raw" => stored.to_vec(),
        "zero" => vec![0; decoded_bytes],
        "planes" => planes(stored, decoded_bytes),
        "delta" => {
            let rows = &index.operands[&(row as u32)];
            let of: Vec<_> =
                rows.iter().map(|row| self::chunk(objects, run, index, *row as usize)).collect();
            delta::decode(stored, &of, decoded_bytes)
        }
        _ => zstd::bulk::decompress(stored, decoded_bytes).unwrap(),
    };
    assert_eq!(decoded.len(), decoded_bytes);
    assert_eq!(blake3::hash(&decoded).as_bytes(), chunk.hash.as_bytes());
    decoded
}

/// `FORMAT.md`, "Planes".
pub(super) fn planes(stored: &[u8], decoded_bytes: usize) -> Vec<u8> {
    let width = usize::from(stored[0]);
    assert!([1, 2, 4, 8].contains(&width));
    let count = decoded_bytes / width;
    let mut data = &stored[1 + 5 * width..];
    let mut decoded = vec![0; decoded_bytes];
    for p in 0..width {
        let entry = &stored[1 + 5 * p..][..5];
        let bytes = u32::from_le_bytes(entry[1..].try_into().unwrap()) as usize;
        let (own, behind) = data.split_at(bytes);
        data = behind;
        let own = plane(entry[0], own, count);
        for (element, byte) in own.into_iter().enumerate() {
            decoded[element * width + p] = byte;
        }
    }
    decoded[count * width..].copy_from_slice(data);
    decoded
}

/// A plane of `count` bytes.
pub(super) fn plane(kind: u8, stored: &[u8], count: usize) -> Vec<u8> {
    assert!(kind <= 1, "a plane of kind {kind}");
    let plane = match kind {
        0 => stored.to_vec(),
        _ => zstd::bulk::decompress(stored, count).unwrap(),
    };
    assert_eq!(plane.len(), count);
    plane
}
