//! The members of a JSON object, before anything is known of the version that wrote it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::descriptor::check_version;
use crate::{Error, Result};

/// The members of a JSON object, none of them twice.
pub(crate) struct Members(pub(crate) Map<String, Value>);

impl Members {
    /// Checks the member `format`, which an object of every version has.
    ///
    /// # Errors
    /// `Corrupt` if it is missing or no version; `Incompatible` if it is newer.
    pub(crate) fn check_version(&self) -> Result<()> {
        let format = self.0.get("format").and_then(Value::as_u64).ok_or_else(|| {
            Error::corrupt("expected the version as an integer \"format\", found none")
        })?;
        check_version(u32::try_from(format).unwrap_or(u32::MAX))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Unique).map(Self)
    }
}

struct Unique;

impl<'de> Visitor<'de> for Unique {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, value)) = object.next_entry::<String, Value>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom(format!("the member {name:?} stands there twice")));
            }
            members.insert(name, value);
        }
        Ok(members)
    }
}
