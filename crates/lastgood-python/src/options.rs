//! What a run is opened with, as Python names it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lastgood::journal::JournalOptions;
use lastgood::preflight::{Acceptance, PreflightOptions};
use lastgood::replay::{Plan, Replay};
use lastgood::save::{CHAIN_DEFAULT, Compression, SaveOptions};
use lastgood::{Error, Repository, Result};
use lastgood_store::{Env, SystemEnv};
use pyo3::prelude::*;

use crate::errors::{Raise, raise};

/// The settings of saves, by the names that `SaveOptions` has.
pub(crate) fn save_options(settings: &BTreeMap<String, Bound<'_, PyAny>>) -> PyResult<SaveOptions> {
    let mut options = SaveOptions::default();
    for (name, value) in settings {
        match name.as_str() {
            "chunk_bytes" => options.chunk_bytes = value.extract()?,
            "arena_bytes_max" => options.arena_bytes_max = value.extract()?,
            "in_flight_max" => options.in_flight_max = value.extract()?,
            "commit_wait" => options.commit_wait = seconds(value.extract()?).or_raise()?,
            "failures_max" => options.failures_max = value.extract()?,
            "compression" => {
                options.compression = compression(&value.extract::<String>()?).or_raise()?
            }
            other => {
                let error = Error::invalid(format!("there is no setting {other:?} of saves"));
                return Err(raise(error));
            }
        }
    }
    Ok(options)
}

/// The settings of the journal, by the names that `JournalOptions` has.
pub(crate) fn journal_options(
    settings: &BTreeMap<String, Bound<'_, PyAny>>,
) -> PyResult<JournalOptions> {
    let mut options = JournalOptions::default();
    for (name, value) in settings {
        match name.as_str() {
            "logical" => {
                let (first, end): (u32, u32) = value.extract()?;
                options.logical = Some(first..end);
            }
            "folder" => options.folder = Some(value.extract()?),
            "seal_after" => options.seal_after = seconds(value.extract()?).or_raise()?,
            "wait" => options.wait = value.extract()?,
            "digests" => options.digests = value.extract()?,
            other => {
                let error = Error::invalid(format!("there is no setting {other:?} of the journal"));
                return Err(raise(error));
            }
        }
    }
    Ok(options)
}

/// What is done with what a preflight finds, as Python names it.
pub(crate) fn preflight_options(mode: &str, accept: Option<&str>) -> Result<PreflightOptions> {
    let accept = accept.map(Acceptance::decode).transpose()?;
    Ok(PreflightOptions { mode: mode.parse()?, accept: accept.unwrap_or_default() })
}

pub(crate) fn seconds(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|e| Error::invalid(format!("{seconds} seconds are no duration: {e}")))
}

fn compression(text: &str) -> Result<Compression> {
    let level = |text: &str| text.strip_prefix("zstd:")?.parse().ok();
    let chain = |text: &str| {
        let chain = text.strip_prefix("delta:")?.parse().ok()?;
        Some(Compression::Delta { chain })
    };
    match text {
        "off" => Ok(Compression::Off),
        "auto" => Ok(Compression::Auto),
        "delta" => Ok(Compression::Delta { chain: CHAIN_DEFAULT }),
        _ => level(text).map(Compression::Zstd).or_else(|| chain(text)).ok_or_else(|| {
            Error::invalid(format!("{text:?} is no compression"))
                .with_remedy("use off, auto, zstd:LEVEL, delta or delta:SAVES")
        }),
    }
}

/// The repositories that the plan of a replay names.
pub(crate) fn open_replay(plan: &str, options: &BTreeMap<String, String>) -> Result<Replay> {
    let plan = Plan::decode(plan)?;
    let source = repository(&plan.source.store, options, false)?;
    let into = repository(&plan.into.store, options, true)?;
    Ok(Replay { plan, source, into })
}

/// Opens the repository that `url` names; with `create`, a store without one becomes one.
pub(crate) fn repository(
    url: &str,
    options: &BTreeMap<String, String>,
    create: bool,
) -> Result<Repository> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::default());
    let store = lastgood_store::open_url(url, options, &env)?;
    if create { Repository::create(store, env) } else { Repository::open(store, env) }
}
