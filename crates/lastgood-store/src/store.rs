//! The store seam.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Error, Result};

/// A flat namespace of immutable objects.
///
/// Keys are relative paths of `/`-separated plain parts (`a-z A-Z 0-9 . _ -`). An object is created
/// once, whole, and never changed. When `put_if_absent` answers [`Put::Created`], the object survives
/// the loss of power, and so does every folder on its way.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The URL of the store, for messages.
    fn location(&self) -> String;

    /// Creates `key` with the concatenation of the payload's parts, unless it exists.
    ///
    /// Of any number of racing creators exactly one gets [`Put::Created`].
    ///
    /// # Errors
    /// `Invalid`, `Denied`: nothing was created. `Unavailable`, `Overloaded`: **unknown**: the object
    /// may exist now or appear later; settle it by putting the same bytes again and, on
    /// [`Put::Exists`], reading the object and comparing.
    ///
    /// # Cancel safety
    /// As after `Unavailable`.
    async fn put_if_absent(&self, key: &str, payload: Payload) -> Result<Put>;

    /// The whole object.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is larger than `bytes_max`, before that much is allocated;
    /// `Unavailable`, `Denied`.
    async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes>;

    /// The bytes `range` of the object.
    ///
    /// # Errors
    /// As [`Self::get`]; `Corrupt` if the object ends before the range does.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes>;

    /// Fills `target` with the bytes of the object from `offset`.
    ///
    /// # Errors
    /// As [`Self::get_range`].
    async fn read_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        let end = offset
            .checked_add(target.len() as u64)
            .ok_or_else(|| Error::corrupt("a range ends beyond 2^64").with_object(key))?;
        let bytes = self.get_range(key, offset..end).await?;
        if bytes.len() != target.len() {
            return Err(Error::corrupt(format!(
                "expected {} bytes at {offset}, found {}",
                target.len(),
                bytes.len()
            ))
            .with_object(key));
        }
        target.copy_from_slice(&bytes);
        Ok(())
    }

    /// The size of the object, or `None` if there is none.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn size(&self, key: &str) -> Result<Option<u64>>;

    /// Makes sure that an object that this process has seen, but not created, survives the loss of
    /// power: another process may have created it and not yet been told so. Whoever decides or
    /// acknowledges something because an object exists settles the object first.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn settle(&self, key: &str) -> Result<()> {
        let _ = key;
        Ok(())
    }

    /// Every object whose key begins with `prefix` and is greater than `after`, sorted by key.
    /// Leavings of crashed writers are not listed. A listing may be stale: never conclude from it
    /// that an object does not exist.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>>;

    /// Deletes the object; deleting what does not exist is no error.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn delete(&self, key: &str) -> Result<()>;
}

/// What a put-if-absent did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// This call created the object; it is durable.
    Created,
    /// The object exists already, and is durable now; nothing was changed.
    Exists,
}

/// One object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The key.
    pub key: String,
    /// The size.
    pub bytes: u64,
}

/// The content of an object, in parts that need not be copied together.
#[derive(Clone, Debug, Default)]
pub struct Payload(Vec<Bytes>);

impl Payload {
    /// A payload of `parts`, in order.
    #[must_use]
    pub fn from_parts(parts: Vec<Bytes>) -> Self {
        Self(parts)
    }

    /// The parts, in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.0
    }

    /// The number of bytes of all parts.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|part| part.len() as u64).sum()
    }

    /// True if there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The parts copied together.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match self.0.as_slice() {
            [part] => part.clone(),
            parts => parts.concat().into(),
        }
    }
}

impl<T: Into<Bytes>> From<T> for Payload {
    fn from(bytes: T) -> Self {
        Self(vec![bytes.into()])
    }
}

/// The longest key, in bytes; S3 allows 1024.
const KEY_BYTES_MAX: usize = 1000;

/// Refuses a key that is no plain relative path, so that none can point outside of the store.
pub(crate) fn check_key(key: &str) -> Result<()> {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if key.len() <= KEY_BYTES_MAX && key.split('/').all(plain) {
        return Ok(());
    }
    Err(Error::invalid(format!("{key:?} is no key of an object"))
        .with_remedy("use parts of letters, digits, '.', '_' and '-', joined by '/'"))
}

/// Refuses a prefix that no key can begin with.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    match prefix.strip_suffix('/').unwrap_or(prefix) {
        "" => Ok(()),
        trimmed => check_key(trimmed),
    }
}

pub(crate) fn too_large(key: &str, bytes: u64, bytes_max: u64) -> Error {
    Error::corrupt(format!("the object has {bytes} bytes, at most {bytes_max} are expected"))
        .with_object(key)
}

/// `range` as indexes into an object of `bytes` bytes.
pub(crate) fn cut(key: &str, bytes: u64, range: &Range<u64>) -> Result<Range<usize>> {
    if range.start <= range.end && range.end <= bytes {
        return Ok(range.start as usize..range.end as usize);
    }
    Err(Error::corrupt(format!("asked for bytes {range:?} of an object of {bytes}"))
        .with_object(key))
}
