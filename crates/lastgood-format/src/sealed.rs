//! JSON objects that carry their own hash.
//!
//! A sealed object is two lines of JSON: the body, and `{"seal":"<BLAKE3 of the first line with its
//! line feed>"}` with a line feed. `cat` and `jq` read it, and no single flipped bit goes unseen,
//! even in an object that nothing else names by hash yet.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::members::Members;
use crate::{Error, Hash, Result};

const SEAL_HEAD: &str = "{\"seal\":\"";
const SEAL_TAIL: &str = "\"}\n";
const SEAL_BYTES: usize = SEAL_HEAD.len() + 64 + SEAL_TAIL.len();

/// The stored bytes of `body`.
///
/// # Errors
/// `Internal` if the body cannot be written as JSON.
pub fn seal(body: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(body)
        .map_err(|e| Error::internal(format!("cannot write an object as JSON: {e}")))?;
    bytes.push(b'\n');
    let seal = Hash::of(&bytes);
    for part in [SEAL_HEAD.as_bytes(), &seal.digits(), SEAL_TAIL.as_bytes()] {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

/// The body of the stored bytes `stored`, after the seal and the version were checked.
///
/// # Errors
/// `Corrupt` if the seal is missing, malformed or does not match, or the body is no valid JSON of
/// the type; `Incompatible` if its `format` is newer than this crate reads.
pub fn unseal<T: DeserializeOwned>(stored: &[u8]) -> Result<T> {
    let unclear = |e| Error::corrupt(format!("the body is sealed but not understood: {e}"));
    let body = body(stored)?;
    serde_json::from_slice::<Members>(body).map_err(unclear)?.check_version()?;
    serde_json::from_slice(body).map_err(unclear)
}

/// The body of `stored` without its line feed, after the seal was checked.
///
/// # Errors
/// `Corrupt` if the seal is missing, malformed or does not match, or the body is not one line.
pub fn body(stored: &[u8]) -> Result<&[u8]> {
    let Some(split) = stored.len().checked_sub(SEAL_BYTES).filter(|split| *split > 1) else {
        return Err(Error::corrupt(format!(
            "a sealed object has more than {SEAL_BYTES} bytes, found {}",
            stored.len()
        )));
    };
    let (line, seal) = stored.split_at(split);
    let hash = Hash::of(line);
    if !is_seal(seal, &hash) {
        let expected = format!("{SEAL_HEAD}{hash}{SEAL_TAIL}");
        return Err(Error::corrupt(format!(
            "the seal does not match: expected {:?}, found {:?}",
            expected.trim_end(),
            String::from_utf8_lossy(seal).trim_end()
        )));
    }
    line.strip_suffix(b"\n").filter(|body| !body.contains(&b'\n')).ok_or_else(|| {
        Error::corrupt("the body of a sealed object is not one line that ends with a line feed")
    })
}

fn is_seal(seal: &[u8], hash: &Hash) -> bool {
    seal.strip_prefix(SEAL_HEAD.as_bytes())
        .and_then(|seal| seal.strip_suffix(SEAL_TAIL.as_bytes()))
        .is_some_and(|digits| digits == hash.digits())
}
