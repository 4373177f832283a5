//! Chunks that are cut, or lie.

use serde_json::json;

use super::*;

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A shard of two chunks of 8 bytes, of which the second one may be left out.
fn sharded(second: Option<&[u8]>) -> Vec<u8> {
    let mut body = Vec::new();
    let mut index = Vec::new();
    for chunk in [Some([1; 8].as_slice()), second] {
        let packed = chunk.map(zstd);
        let place = packed.as_ref().map_or([u64::MAX; 2], |p| [body.len() as u64, p.len() as u64]);
        index.extend(place.iter().flat_map(|n| n.to_le_bytes()));
        body.extend(packed.unwrap_or_default());
    }
    let sum = crc32c(&index).to_le_bytes();
    [body, index, sum.to_vec()].concat()
}

fn v3() -> Grid {
    let inner = json!([{"name": "bytes"}, {"name": "zstd"}]);
    let index = json!([{"name": "bytes"}, {"name": "crc32c"}]);
    let shard = json!({"chunk_shape": [1, 2], "codecs": inner, "index_codecs": index});
    Grid::read(&json!({"zarr_format": 3, "shape": [4, 2], "data_type": "float32",
        "chunk_grid": {"configuration": {"chunk_shape": [2, 2]}},
        "codecs": [{"name": "sharding_indexed", "configuration": shard}]}))
    .unwrap()
}

#[test]
fn no_cut_and_no_flip_in_the_index_of_a_shard_passes() {
    let grid = v3();
    assert_eq!(grid.keys("a").collect::<Vec<_>>(), ["a/c/0/0", "a/c/1/0"]);
    let whole = sharded(Some(&[2; 8]));
    assert_eq!(grid.check(&whole), Ok(()));
    assert_eq!(grid.check(&sharded(None)), Ok(()));
    assert!(grid.check(&sharded(Some(&[2; 9]))).is_err());
    assert!(grid.check(&vec![0; whole.len()]).is_err());
    for len in 0..whole.len() {
        assert!(grid.check(&whole[..len]).is_err(), "cut at {len}");
    }
    for at in whole.len() - 36..whole.len() {
        let mut wrong = whole.clone();
        wrong[at] ^= 1;
        assert!(grid.check(&wrong).is_err(), "flip at {at}");
    }
}

#[test]
fn chunks_of_both_versions_have_as_many_bytes_as_their_dtype_says() {
    for (dtype, each) in [("<f4", 4), ("int4", 1), ("bfloat16", 2), ("float8_e4m3fn", 1)] {
        let compressor = json!({"id": "zstd"});
        let v2 = json!({"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": dtype, "compressor": compressor});
        let grid = Grid::read(&v2).unwrap();
        assert_eq!(grid.check(&zstd(&vec![0; 4 * each])), Ok(()), "{dtype}");
        for wrong in [Vec::new(), vec![0; 20], zstd(&vec![0; 4 * each + 1])] {
            assert!(grid.check(&wrong).is_err(), "{dtype}");
        }
    }
    let codecs = json!([{"name": "bytes"}, {"name": "zstd"}]);
    let grid = Grid::read(&json!({"zarr_format": 3, "shape": [], "data_type": "complex64",
        "chunk_grid": {"configuration": {"chunk_shape": []}}, "codecs": codecs}))
    .unwrap();
    assert_eq!(grid.check(&zstd(&[0; 8])), Ok(()));
    assert!(grid.check(&[]).is_err());
}
