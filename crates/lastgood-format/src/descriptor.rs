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
    /// `Corrupt` if the seal does not match; `Incompatible` if the version is newer than this one.
    pub fn decode(stored: &[u8]) -> Result<Self> {
        let descriptor: Self = sealed::unseal(stored)?;
        check_version(descriptor.format)?;
        if descriptor.kind != "lastgood" {
            return Err(Error::corrupt(format!(
                "the descriptor says kind {:?}, expected \"lastgood\"",
                descriptor.kind
            )));
        }
        Ok(descriptor)
    }
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
