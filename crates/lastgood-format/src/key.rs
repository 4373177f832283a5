//! Where each object stands in a repository (`FORMAT.md`, "Objects").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::journal::Lane;
use crate::{Error, Hash, Result};

/// The descriptor of a repository.
pub const DESCRIPTOR: &str = "lastgood.json";

/// The prefix of every run's folder.
pub const RUNS: &str = "runs/";

/// The longest name of an object inside a run, in bytes.
pub const OBJECT_BYTES_MAX: usize = 512;

/// The name of a run: 1 to 128 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RunName(String);

impl RunName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if starts && plain && text.len() <= Self::BYTES_MAX {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(format!("run name {text:?} is not usable")).with_remedy(
            "use 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        ))
    }
}

impl<'de> Deserialize<'de> for RunName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One save of one step: what its shard indexes and packs are filed under.
///
/// `generation` is 0 for the first save of the step in its attempt and counts up when the same
/// attempt saves the same step again, so that a second save never meets the leavings of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaveKey {
    /// The attempt that saves.
    pub attempt: u64,
    /// The step that is saved.
    pub step: u64,
    /// How often this attempt has saved this step before.
    pub generation: u32,
}

impl SaveKey {
    fn folder(&self) -> String {
        let Self { attempt, step, generation } = self;
        match generation {
            0 => format!("{attempt}/{step:012}"),
            _ => format!("{attempt}/{step:012}.{generation}"),
        }
    }
}

impl fmt::Display for SaveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} of attempt {}", self.step, self.attempt)?;
        if self.generation > 0 {
            write!(f, " (generation {})", self.generation)?;
        }
        Ok(())
    }
}

/// The folder of a run, with a closing `/`.
#[must_use]
pub fn run_folder(run: &RunName) -> String {
    [RUNS, run.as_str(), "/"].concat()
}

/// Ledger entry `n` of a run.
#[must_use]
pub fn ledger_entry(run: &RunName, n: u64) -> String {
    numbered(run, "ledger", n)
}

/// The summary of the entries up to and with `n`.
#[must_use]
pub fn ledger_head(run: &RunName, n: u64) -> String {
    numbered(run, "ledger/heads", n)
}

/// Number `n`, in twenty digits, in a folder of the run. Opening a run asks for hundreds of these names, and
/// the formatter takes ten times as long.
fn numbered(run: &RunName, folder: &str, n: u64) -> String {
    let mut digits = [b'0'; 20];
    let mut rest = n;
    for digit in digits.iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    // Digits are ASCII, so this never falls back.
    let digits = std::str::from_utf8(&digits).unwrap_or_default();
    [RUNS, run.as_str(), "/", folder, "/", digits, ".json"].concat()
}

/// The manifest of a checkpoint.
#[must_use]
pub fn manifest(run: &RunName, id: &Hash) -> String {
    format!("{RUNS}{run}/checkpoints/{id}.json")
}

/// The shard index of one rank of a save, relative to the run's folder.
#[must_use]
pub fn index_in_run(save: &SaveKey, rank: u32) -> String {
    format!("saves/{}/{rank}.idx", save.folder())
}

/// Pack `i` of one rank of a save, relative to the run's folder.
#[must_use]
pub fn pack_in_run(save: &SaveKey, rank: u32, i: u32) -> String {
    format!("packs/{}/{rank}-{i}.pack", save.folder())
}

/// The save and the rank that wrote the pack named `relative` to the run's folder; `None` if it is no pack's name.
#[must_use]
pub fn parse_pack_in_run(relative: &str) -> Option<(SaveKey, u32)> {
    let mut parts = relative.strip_prefix("packs/")?.split('/');
    let attempt = parts.next()?.parse().ok()?;
    let save = parts.next()?;
    let (step, generation) = save.split_once('.').unwrap_or((save, "0"));
    let (step, generation) = (step.parse().ok()?, generation.parse().ok()?);
    let (rank, i) = parts.next()?.strip_suffix(".pack")?.split_once('-')?;
    let (rank, i) = (rank.parse().ok()?, i.parse().ok()?);
    let save = SaveKey { attempt, step, generation };
    (pack_in_run(&save, rank, i) == relative).then_some((save, rank))
}

/// The folder of a run's journal, with a closing `/`.
#[must_use]
pub fn journal_folder(run: &RunName) -> String {
    [RUNS, run.as_str(), "/journal/"].concat()
}

/// The sealed segment of a lane of an attempt whose first frame is number `first`.
#[must_use]
pub fn journal_segment(run: &RunName, attempt: u64, lane: Lane, first: u64) -> String {
    format!("{RUNS}{run}/journal/{attempt}/{lane}/{first:020}.seg")
}

/// The attempt, the lane and the first frame of the segment under `key`; `None` if it is no segment's key.
#[must_use]
pub fn parse_journal_segment(run: &RunName, key: &str) -> Option<(u64, Lane, u64)> {
    let mut parts = key.strip_prefix(&journal_folder(run))?.split('/');
    let attempt = parts.next()?.parse().ok()?;
    let lane = parts.next()?.parse().ok()?;
    let first = parts.next()?.strip_suffix(".seg")?.parse().ok()?;
    (journal_segment(run, attempt, lane, first) == key).then_some((attempt, lane, first))
}

/// The key of an object named relative to the run's folder.
///
/// # Errors
/// `Corrupt` if the name leaves the folder or is no plain relative path: it came from a manifest or
/// an index, and neither may point outside its run.
pub fn in_run(run: &RunName, relative: &str) -> Result<String> {
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    if relative.len() <= OBJECT_BYTES_MAX && relative.split('/').all(plain) {
        return Ok([RUNS, run.as_str(), "/", relative].concat());
    }
    Err(Error::corrupt(format!("object name {relative:?} is not a plain path inside run {run}")))
}
