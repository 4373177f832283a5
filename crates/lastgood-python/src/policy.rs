//! When a run saves, as Python says it.

use std::collections::BTreeMap;

use lastgood::policy::{Explanation, Policy, Want};
use lastgood::{Error, Result};
use pyo3::prelude::*;

use crate::errors::{Raise, raise};
use crate::options::seconds;

/// The policy of settings by the names that `Policy` has.
pub(crate) fn from_python(settings: &BTreeMap<String, Bound<'_, PyAny>>) -> PyResult<Policy> {
    let mut policy = Policy::default();
    let time = |value: &Bound<'_, PyAny>| seconds(value.extract()?).or_raise();
    for (name, value) in settings {
        match name.as_str() {
            "steps" => policy.steps = Some(value.extract()?),
            "seconds" => policy.seconds = Some(time(value)?),
            "at" => policy.at = value.extract()?,
            "multiples" => policy.multiples = value.extract()?,
            "auto" => policy.auto = value.extract()?,
            "loss_max" => policy.loss_max = Some(time(value)?),
            "loss_steps_max" => policy.loss_steps_max = Some(value.extract()?),
            "bandwidth" => policy.bandwidth = Some(value.extract()?),
            "grace" => policy.grace = Some(time(value)?),
            "demand" => policy.demand = value.extract()?,
            other => {
                let error = Error::invalid(format!("there is no setting {other:?} of policies"));
                return Err(raise(error));
            }
        }
    }
    Ok(policy)
}

pub(crate) fn name_of(want: Want) -> &'static str {
    match want {
        Want::Nothing => "nothing",
        Want::Save => "save",
        Want::SaveAndEnd => "save-and-end",
        Want::End => "end",
    }
}

/// The steps between saves, the seconds, everything as JSON, and as text.
pub(crate) fn explained(found: &Explanation) -> Result<(u64, f64, String, String)> {
    Ok((found.every, found.interval_s, found.to_json()?, found.to_string()))
}
