//! The environment of the process that a rank goes on for.

use std::sync::Arc;

use lastgood_format::journal::{CUT, Cut, ENVIRONMENT, Kind, Lane, LaneName};
use lastgood_format::{Error, ErrorKind, Hash, Result, RunName};

use super::{Environment, Report, environment};
use crate::journal::read::{JournalReader, LaneReader};
use crate::repository::Repository;
use crate::restore::Contents;

/// What a checkpoint says of the environment that its part for one rank was saved in.
#[derive(Debug)]
pub(crate) enum Recorded {
    /// Nothing.
    Nothing,
    /// It is this one.
    Alike,
    /// It is another one.
    Other(Environment),
    /// It is another one, and the journal does not say which.
    Lost(String),
}

/// How many of the first frames of a lane are looked at: the environment is the second.
const FRAMES_MAX: u32 = 16;

/// Compares `here` with what `contents` says of rank `rank`, or of the last rank if the checkpoint has fewer.
///
/// # Errors
/// `Unavailable`, `Denied`.
pub(crate) async fn recorded(
    repository: &Repository,
    contents: &Contents,
    rank: u32,
    here: &Environment,
) -> Result<Recorded> {
    let indexes = contents.indexes();
    let Some(index) = indexes.get(rank as usize).or(indexes.last()) else {
        return Ok(Recorded::Nothing);
    };
    let Some(hash) = index.metadata.get(ENVIRONMENT) else { return Ok(Recorded::Nothing) };
    if *hash == environment::digest(here)?.to_string() {
        return Ok(Recorded::Alike);
    }
    let Some(cut) = index.metadata.get(CUT) else { return Ok(Recorded::Nothing) };
    let found = match Cut::decode(cut) {
        Ok(cut) => of_cut(repository, contents, &cut, hash).await,
        Err(error) => Err(error),
    };
    match found {
        Ok(Some(environment)) => Ok(Recorded::Other(environment)),
        Ok(None) => Ok(Recorded::Lost("the journal does not hold it".into())),
        // A damaged journal must not stop a recovery by itself: it is told.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Incompatible
            ) =>
        {
            Ok(Recorded::Lost(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

async fn of_cut(
    repository: &Repository,
    contents: &Contents,
    cut: &Cut,
    hash: &str,
) -> Result<Option<Environment>> {
    let lanes = cut.lanes.keys().map(|LaneName(lane)| *lane);
    let Some(lane) = lanes.filter(|lane| *lane != Lane::CONTROL).min() else { return Ok(None) };
    let run = &contents.manifest().run;
    let store = Arc::clone(repository.store());
    let mut frames = LaneReader::first(store, repository.id(), run, (cut.attempt, lane));
    for _ in 0..FRAMES_MAX {
        let Some(frame) = frames.next().await? else { break };
        if frame.kind == Kind::ENVIRONMENT {
            let value = frame.value()?;
            let is_it = Hash::of(&value.encode()?).to_string() == hash;
            return Ok(is_it.then(|| environment::of_value(&value)));
        }
    }
    Ok(None)
}

impl Repository {
    /// What the ranks of an attempt found before they restored, by the lane of each, as far as it is sealed.
    ///
    /// # Errors
    /// `Corrupt`, `Incompatible` if the journal is damaged; `Unavailable`, `Denied`.
    pub fn preflights(&self, run: &RunName, attempt: u64) -> Result<Vec<(Lane, Report)>> {
        self.preflights_in(&self.journal(run)?, attempt)
    }

    /// As [`Repository::preflights`], of a journal that is listed.
    ///
    /// # Errors
    /// As [`Repository::preflights`].
    pub fn preflights_in(
        &self,
        reader: &JournalReader,
        attempt: u64,
    ) -> Result<Vec<(Lane, Report)>> {
        let mut found = Vec::new();
        for lane in reader.lanes().filter(|lane| lane.attempt == attempt) {
            let mut frames = reader.lane(attempt, lane.lane);
            while let Some(frame) = self.block_on(frames.next())? {
                // Nobody looks once steps are done.
                if frame.kind == Kind::STEP {
                    break;
                }
                if frame.kind == Kind::PREFLIGHT {
                    let report = Report::of_value(&frame.value()?).ok_or_else(|| {
                        Error::corrupt(format!("{} is none of a preflight", frame.place()))
                    })?;
                    found.push((lane.lane, report));
                }
            }
        }
        Ok(found)
    }
}
