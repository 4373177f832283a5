//! The members of a JSON object, before anything is known of the version that wrote it.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::descriptor::check_version;
use crate::{Error, Result};

/// The version of a JSON object none of whose members stands there twice; the others are looked at by those who know it.
pub(crate) struct Members {
    format: Option<Value>,
}

impl Members {
    /// Checks the member `format`, which an object of every version has.
    ///
    /// # Errors
    /// `Corrupt` if it is missing or no version; `Incompatible` if it is newer.
    pub(crate) fn check_version(&self) -> Result<()> {
        let format = self.format.as_ref().and_then(Value::as_u64).ok_or_else(|| {
            Error::corrupt("expected the version as an integer \"format\", found none")
        })?;
        check_version(u32::try_from(format).unwrap_or(u32::MAX))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Unique)
    }
}

struct Unique;

impl<'de> Visitor<'de> for Unique {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut names = BTreeSet::new();
        let mut format = None;
        while let Some(name) = object.next_key::<String>()? {
            if name == "format" {
                format = Some(object.next_value()?);
            } else {
                object.next_value::<Skipped>()?;
            }
            if let Some(name) = names.replace(name) {
                return Err(A::Error::custom(format!("the member {name:?} stands there twice")));
            }
        }
        Ok(Members { format })
    }
}

/// Any value, as deep as one that is kept may be: `IgnoredAny` knows no bound.
struct Skipped;

impl<'de> Deserialize<'de> for Skipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Skipped {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(Self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self, A::Error> {
        while object.next_entry::<Self, Self>()?.is_some() {}
        Ok(Self)
    }
}
