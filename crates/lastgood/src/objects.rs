//! Putting and getting objects whose content is known beforehand: manifests, shard indexes, packs.
//!
//! Such a put is settled by content: if the object exists, it is read back, verified, and must be the
//! same. A put whose answer was lost is repeated; it cannot do harm.

use bytes::Bytes;
use lastgood_format::{Error, ErrorKind, Hash, Result};
use lastgood_store::{Payload, Put, Store};

const TRIES_MAX: u32 = 5;

/// Creates `object` with `payload`, or finds it there with the same bytes.
///
/// # Errors
/// `Conflict` if other bytes stand there; `Unavailable` if the store does not say; `Denied`,
/// `Overloaded`.
pub async fn put_same(store: &dyn Store, object: &str, payload: Payload) -> Result<()> {
    let mut last = Error::unavailable("the store did not answer");
    for _ in 0..TRIES_MAX {
        match store.put_if_absent(object, payload.clone()).await {
            Ok(Put::Created) => return Ok(()),
            Ok(Put::Exists) => match compare(store, object, &payload).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            },
            // A full or slow store gains nothing from being asked again at once.
            Err(error) if error.kind() != ErrorKind::Unavailable => {
                return Err(error.with_object(object));
            }
            Err(error) => last = error,
        }
    }
    Err(last.with_object(object))
}

async fn compare(store: &dyn Store, object: &str, payload: &Payload) -> Result<()> {
    let expected = Hash::of_parts(payload.parts().iter().map(|part| part.as_ref()));
    let stored = store.get(object, payload.len()).await.map_err(|error| match error.kind() {
        ErrorKind::Corrupt => differs(object),
        _ => error,
    })?;
    if Hash::of(&stored) == expected { Ok(()) } else { Err(differs(object)) }
}

fn differs(object: &str) -> Error {
    Error::new(ErrorKind::Conflict, "an object of this name exists with other bytes")
        .with_object(object)
        .with_remedy(
            "two processes write as the same rank of the same attempt, or the object is damaged",
        )
}

/// The bytes of `object`, which must have exactly this size and hash. A damaged read is read once
/// more, since the flip may have been on the way.
///
/// # Errors
/// `Corrupt` if it is missing or differs; `Unavailable`, `Denied`.
pub(crate) async fn get_exact(
    store: &dyn Store,
    object: &str,
    bytes: u64,
    hash: &Hash,
) -> Result<Bytes> {
    let mut last = None;
    for _ in 0..2 {
        match store.get(object, bytes).await {
            Ok(stored) if Hash::of(&stored) == *hash => return Ok(stored),
            Ok(stored) => {
                last = Some(Error::corrupt(format!(
                    "expected {bytes} bytes with hash {hash}, found {} bytes with hash {}",
                    stored.len(),
                    Hash::of(&stored)
                )));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::corrupt("the object is missing").with_object(object));
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => last = Some(error),
            Err(error) => return Err(error.with_object(object)),
        }
    }
    Err(last.unwrap_or_else(|| Error::corrupt("unreadable")).with_object(object))
}
