//! `lastgood.json`: what makes a store a repository.

use serde::{Deserialize, Serialize};

use crate::{Error, FORMAT_VERSION, Result, sealed};

/// The descriptor of a repository; written once, put-if-absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// Always `lastgood`.
    pub kind: String,
    /// The newest format version that the repository may hold.
    pub format: u32,
    /// A random id of 32 hexadecimal digits.
    pub repository: String,
}

impl Descriptor {
    /// The longest stored descriptor, in bytes.
    pub const BYTES_MAX: u64 = 4096;

    /// A descriptor of this format version with a random id.
    #[must_use]
    pub fn new(repository: u128) -> Self {
        Self {
            kind: "lastgood".into(),
            format: FORMAT_VERSION,
            repository: format!("{repository:032x}"),
        }
    }

    /// The stored bytes.
    ///
    /// # Errors
    /// `Internal` if it cannot be written as JSON.
    pub fn encode(&self) -> Result<Vec<u8>> {
        sealed::seal(self)
    }

    /// Reads stored bytes.
    ///
    /// # Errors
    /// `Corrupt` if the seal does not match or a rule is broken; `Incompatible` if the version is newer
    /// than this one.
    pub fn decode(stored: &[u8]) -> Result<Self> {
        check_size("descriptor", stored, Self::BYTES_MAX)?;
        let descriptor: Self = sealed::unseal(stored)?;
        if descriptor.kind != "lastgood" {
            return Err(Error::corrupt(format!(
                "the descriptor says kind {:?}, expected \"lastgood\"",
                descriptor.kind
            )));
        }
        if id_of(&descriptor.repository).is_none() {
            return Err(Error::corrupt(format!(
                "a repository's id is 32 lower-case hexadecimal digits, found {:?}",
                descriptor.repository
            )));
        }
        Ok(descriptor)
    }
}

/// The number that exactly 32 lower-case hexadecimal digits tell.
pub(crate) fn id_of(digits: &str) -> Option<u128> {
    let plain = digits.len() == 32 && digits.bytes().all(|b| b"0123456789abcdef".contains(&b));
    u128::from_str_radix(digits, 16).ok().filter(|_| plain)
}

/// Refuses a stored object that is larger than the format allows.
pub(crate) fn check_size(what: &str, stored: &[u8], bytes_max: u64) -> Result<()> {
    if stored.len() as u64 <= bytes_max {
        return Ok(());
    }
    Err(Error::corrupt(format!("a {what} has at most {bytes_max} bytes, found {}", stored.len())))
}

/// Refuses a format version that this crate does not read.
///
/// # Errors
/// `Incompatible` if the version is newer; `Corrupt` if it is 0.
pub fn check_version(format: u32) -> Result<()> {
    match format {
        0 => Err(Error::corrupt("format version 0 does not exist")),
        1..=FORMAT_VERSION => Ok(()),
        _ => Err(Error::incompatible(format!(
            "format version {format} is newer than this lastgood reads ({FORMAT_VERSION})"
        ))
        .with_remedy("use a newer lastgood")),
    }
}
