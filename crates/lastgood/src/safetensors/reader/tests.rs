use lastgood_format::ErrorKind;

use super::*;
use crate::state::World;

/// A file in memory.
#[derive(Debug)]
struct Memory(Vec<u8>);

impl Source for Memory {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.0[offset..offset + into.len()]);
        Ok(())
    }
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn open(bytes: &[u8]) -> Result<u64> {
    let file = Memory(bytes.to_vec());
    let reader = Reader::open(&file, bytes.len() as u64)?;
    let mut capture = Capture::new(World::ALONE);
    reader.capture("c", "test", &mut capture)?;
    Ok(capture.bytes())
}

#[test]
fn a_file_that_is_not_whole_is_refused_before_it_is_read() {
    let whole = file(r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#, b"abc");
    assert_eq!(open(&whole).unwrap(), 3);
    for length in 0..whole.len() {
        assert_eq!(open(&whole[..length]).unwrap_err().kind(), ErrorKind::Corrupt, "{length}");
    }
    let longer = [whole.as_slice(), b"d"].concat();
    assert_eq!(open(&longer).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn headers_that_lie_are_refused() {
    for header in [
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,3]}}"#,
        r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}"#,
        r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#,
        r#"{"a":{"dtype":"U8","shape":[18446744073709551615,9],"data_offsets":[0,3]}}"#,
        r#"{"a":{"dtype":"U9","shape":[3],"data_offsets":[0,3]}}"#,
        r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[3,0]}}"#,
        r#"["a"]"#,
        "",
    ] {
        assert_eq!(open(&file(header, b"abc")).unwrap_err().kind(), ErrorKind::Corrupt, "{header}");
    }
    let bomb = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    assert_eq!(open(&bomb).unwrap_err().kind(), ErrorKind::Corrupt);
}
