//! What differs between the environments of two processes, and what that means.

use std::collections::BTreeSet;
use std::fmt;

use lastgood_format::journal::Value;
use lastgood_format::{Hash, Result};
use serde::{Deserialize, Serialize};

use super::{Environment, Finding};

/// What it means that two processes differ in something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// A restore may put state where it does not belong.
    Safety,
    /// Equal bytes cannot be promised.
    Numerics,
    /// Neither.
    Information,
}

impl Effect {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Safety => "safety",
            Self::Numerics => "numerics",
            Self::Information => "information",
        }
    }

    /// The effect with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Safety, Self::Numerics, Self::Information].into_iter().find(|e| e.name() == name)
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a difference means: of a key, or of a family, which ends with a dot. The longest that fits decides.
pub const EFFECTS: &[(&str, Effect)] = &[
    ("python.", Effect::Numerics),
    ("os.", Effect::Information),
    // The mathematical functions of C.
    ("libc", Effect::Numerics),
    ("host.", Effect::Information),
    ("cpu.", Effect::Numerics),
    // The numbers of threads say what of it is used.
    ("cpu.count", Effect::Information),
    // All flags of the kernel, which names more of them with every release; `cpu.isa` has those that compute.
    ("cpu.flags", Effect::Information),
    ("package.", Effect::Numerics),
    ("package.lastgood", Effect::Information),
    ("torch.", Effect::Numerics),
    ("numpy.", Effect::Numerics),
    ("jax.", Effect::Numerics),
    ("env.", Effect::Numerics),
    ("env.CUDA_VISIBLE_DEVICES", Effect::Information),
    ("gpu.", Effect::Information),
    ("code.", Effect::Numerics),
    // Whoever goes on says so on the command line.
    ("code.argv", Effect::Information),
    ("code.main", Effect::Information),
    // What should be installed; `package.` says what is.
    ("code.lock.", Effect::Information),
];

/// What it means that the values of `key` differ. A key of a family that is not known counts as numerics;
/// `package.NAME.major`, which libraries have that lay out what they save themselves, as safety.
#[must_use]
pub fn effect_of(key: &str) -> Effect {
    if key.starts_with("package.") && key.ends_with(".major") {
        return Effect::Safety;
    }
    let fits = |name: &str| name == key || (name.ends_with('.') && key.starts_with(name));
    let all = EFFECTS.iter().filter(|(name, _)| fits(name));
    all.max_by_key(|(name, _)| name.len()).map_or(Effect::Numerics, |(_, effect)| *effect)
}

/// The payload of the event that records `environment`.
#[must_use]
pub fn value(environment: &Environment) -> Value {
    Value::map(environment.iter().map(|(name, text)| (name.as_str(), text.as_str().into())))
}

/// The environment that an event records; members that are no text are left out.
#[must_use]
pub fn of_value(value: &Value) -> Environment {
    let members = value.as_map().into_iter().flatten();
    members.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// The hash by which processes know that they are alike.
///
/// # Errors
/// `Invalid` if it is too large to be an event.
pub fn digest(environment: &Environment) -> Result<Hash> {
    Ok(Hash::of(&value(environment).encode()?))
}

/// What differs, by key. A process that has imported less has fewer keys, of which nothing can be said; a variable
/// that is not set is another value.
#[must_use]
pub fn differences(recorded: &Environment, found: &Environment) -> Vec<Finding> {
    let keys: BTreeSet<&String> = recorded.keys().chain(found.keys()).collect();
    let differing = keys.into_iter().filter(|key| recorded.get(*key) != found.get(*key));
    differing
        .map(|key| {
            let (recorded, found) = (recorded.get(key).cloned(), found.get(key).cloned());
            let is_known = recorded.is_some() && found.is_some() || key.starts_with("env.");
            let effect = if is_known { effect_of(key) } else { Effect::Information };
            Finding { key: key.clone(), effect, recorded, found, accepted: None }
        })
        .collect()
}

#[cfg(test)]
mod tests;
