//! Whether every object of a checkpoint is there, and how long it takes to read them.

use std::str::FromStr;
use std::time::Duration;

use lastgood_format::{Error, Result, key};

use crate::io::Io;
use crate::repository::Repository;
use crate::restore::{self, Contents};

/// How much of the bytes is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// None: every object is there and has its size.
    Size,
    /// Some packs, chosen by chance, every byte of them.
    Sample,
    /// Every byte.
    Full,
}

impl FromStr for Depth {
    type Err = Error;

    /// Reads `size`, `sample` or `full`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "size" => Ok(Self::Size),
            "sample" => Ok(Self::Sample),
            "full" => Ok(Self::Full),
            _ => Err(Error::invalid(format!("{text:?} is no depth of a look at objects"))
                .with_remedy("use size, sample or full")),
        }
    }
}

/// How many bytes of packs a sample reads, and one more pack.
const SAMPLE_BYTES: u64 = 256 << 20;

/// What was found of the objects of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// The packs that it stands on.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes that were read and verified.
    pub read: u64,
    /// How long reading took.
    pub took: Duration,
}

impl Objects {
    /// How long it takes to read `bytes` as fast as the sample was; `None` if nothing was read.
    #[must_use]
    pub fn estimate(&self, bytes: u64) -> Option<Duration> {
        (self.read > 0).then(|| self.took.mul_f64(bytes as f64 / self.read as f64))
    }
}

/// Looks whether every pack that `contents` stands on is there with its size.
pub(crate) fn check_sizes(io: &dyn Io, contents: &Contents) -> Result<Objects> {
    let (packs, bytes) = restore::check_sizes(io, contents)?;
    Ok(Objects { packs, bytes, ..Objects::default() })
}

impl Repository {
    /// Looks whether every object that `contents` stands on is there, and reads as much of it as `depth` says.
    /// `progress` is told the bytes that were read, and those that will be.
    ///
    /// # Errors
    /// `Corrupt` naming the first object that is missing, of another size or damaged; `Unavailable`, `Denied`.
    pub fn check_objects(
        &self,
        contents: &Contents,
        depth: Depth,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Objects> {
        let found = check_sizes(self.io(), contents)?;
        let started = self.env().elapsed();
        let read = match depth {
            Depth::Size => 0,
            Depth::Full => self.verify_packs(contents, progress)?,
            Depth::Sample => self.read_sample(contents, progress)?,
        };
        Ok(Objects { read, took: self.env().elapsed().saturating_sub(started), ..found })
    }

    fn read_sample(
        &self,
        contents: &Contents,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<u64> {
        let folder = key::run_folder(&contents.manifest().run);
        let packs = contents.indexes().iter().flat_map(|index| &index.packs);
        let mut packs: Vec<(&str, u64)> = packs.map(|p| (p.object.as_str(), p.bytes)).collect();
        packs.sort_unstable();
        packs.dedup();
        let mut read = 0;
        while read < SAMPLE_BYTES && !packs.is_empty() {
            let chosen = usize::try_from(self.env().random() % packs.len() as u64)
                .map_err(|_| Error::internal("more packs than memory"))?;
            let (object, bytes) = packs.swap_remove(chosen);
            progress(read, read + bytes);
            self.verify_pack(contents, &format!("{folder}{object}"))?;
            read += bytes;
        }
        progress(read, read);
        Ok(read)
    }
}
