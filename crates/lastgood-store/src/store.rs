//! The store seam.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Error, Hedges, Result};

/// A flat namespace of immutable objects.
///
/// Keys are relative paths of `/`-separated plain parts (`a-z A-Z 0-9 . _ -`, none begins with a dot,
/// at most 255 bytes each and 900 together); two keys that differ in the case of a letter are two
/// keys. What is no such key is refused with `Invalid` by every call. No key may be the folder of
/// another: `a` and `a/b` cannot both exist on every store.
///
/// An object is created once, whole, and never changed: nobody ever sees a part of one. When
/// `put_if_absent` answers [`Put::Created`], the object survives the loss of power, and so does every
/// folder on its way. Every process that opens the same store sees the same objects.
///
/// [`conformance`](crate::conformance) tries every sentence of this documentation.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The URL of the store, for messages.
    fn location(&self) -> String;

    /// How it is best asked for many bytes.
    fn transfers(&self) -> Transfers {
        Transfers::default()
    }

    /// How often slow reads were asked for a second time so far.
    fn hedges(&self) -> Hedges {
        Hedges::default()
    }

    /// Creates `key` with the concatenation of the payload's parts, unless it exists.
    ///
    /// Of any number of racing creators exactly one gets [`Put::Created`], and everybody who gets
    /// [`Put::Exists`] reads that one's bytes from then on.
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

    /// The bytes `range` of the object; an empty range is no bytes of an object that must exist.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if the object ends before the range does, before the range is
    /// allocated; `Invalid` if the range ends before it starts; `Unavailable`, `Denied`.
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

    /// As [`Self::read_into`], of bytes that other processes of this machine read as well: what one of them has
    /// read is to be at hand for the others.
    ///
    /// # Errors
    /// As [`Self::get_range`].
    async fn read_shared_into(&self, key: &str, offset: u64, target: &mut [u8]) -> Result<()> {
        self.read_into(key, offset, target).await
    }

    /// The size of the object, or `None` if there is none.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn size(&self, key: &str) -> Result<Option<u64>>;

    /// Makes sure that an object that this process has seen, but not created, survives the loss of
    /// power: another process may have created it and not yet been told so. Whoever decides or
    /// acknowledges something because an object exists settles the object first. For an object that
    /// does not exist there is nothing to do.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn settle(&self, key: &str) -> Result<()> {
        check_key(key)
    }

    /// Every object whose key begins with `prefix` and is greater than `after`, sorted by key.
    /// `prefix` need not end with a folder's name; an empty one lists everything. Leavings of crashed
    /// writers, and what others put there under names that are no keys, are not listed. A listing may
    /// be stale: never conclude from it that an object does not exist.
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

/// How a store is best asked for many bytes, and given them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfers {
    /// Reads at a time: as many as keep it busy while what they gave is verified.
    pub reads: usize,
    /// The most bytes of one read.
    pub read_bytes: u64,
    /// Puts of large objects at a time.
    pub puts: usize,
}

impl Default for Transfers {
    /// What a local disk wants: it is busy with few requests, and each of them takes memory.
    fn default() -> Self {
        Self { reads: 8, read_bytes: 4 << 20, puts: 2 }
    }
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

/// The longest key, in bytes; S3 allows 1024, with the prefix of the repository.
const KEY_BYTES_MAX: usize = 900;

/// The longest part of a key, in bytes: the longest name that local file systems allow.
const PART_BYTES_MAX: usize = 255;

/// For each byte, whether a part of a key may hold it. Every call of a store looks up all bytes of a key.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut b = 0;
    while b < plain.len() {
        let byte = b as u8;
        plain[b] = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        b += 1;
    }
    plain
};

/// True if `part` may stand between the slashes of a key.
pub(crate) fn is_plain(part: &[u8]) -> bool {
    (1..=PART_BYTES_MAX).contains(&part.len())
        && part[0] != b'.'
        && part.iter().all(|b| PLAIN[usize::from(*b)])
}

pub(crate) fn is_key(text: &str) -> bool {
    text.len() <= KEY_BYTES_MAX && text.as_bytes().split(|b| *b == b'/').all(is_plain)
}

/// Refuses a key that is no plain relative path, so that none can point outside of the store.
pub(crate) fn check_key(key: &str) -> Result<()> {
    if is_key(key) {
        return Ok(());
    }
    Err(Error::invalid(format!("{key:?} is no key of an object")).with_remedy(
        "use parts of letters, digits, '.', '_' and '-', joined by '/', of at most 255 bytes each \
         and 900 together",
    ))
}

/// Refuses a prefix that no key can begin with.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    match prefix {
        "" => Ok(()),
        prefix => check_key(prefix.strip_suffix('/').unwrap_or(prefix)),
    }
}

pub(crate) fn too_large(key: &str, bytes: u64, bytes_max: u64) -> Error {
    Error::corrupt(format!("the object has {bytes} bytes, at most {bytes_max} are expected"))
        .with_object(key)
}

/// `range` as indexes into an object of `bytes` bytes.
pub(crate) fn cut(key: &str, bytes: u64, range: &Range<u64>) -> Result<Range<usize>> {
    if range.start > range.end {
        return Err(Error::invalid(format!("{range:?} ends before it starts")).with_object(key));
    }
    if range.end > bytes {
        return Err(Error::corrupt(format!(
            "bytes {range:?} are expected, the object ends after {bytes}"
        ))
        .with_object(key));
    }
    Ok(range.start as usize..range.end as usize)
}
