//! What an event says, as JSON: bytes as hexadecimal digits, and numbers that JSON lacks as text.

use lastgood::journal::Value;
use serde::{Serialize, Serializer};

/// A value as JSON. A binary32 is written as the binary64 that it is equal to, so that every reader gets
/// the same number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain<'a> {
    value: &'a Value,
    for_sql: bool,
}

impl<'a> Plain<'a> {
    pub(crate) fn new(value: &'a Value) -> Self {
        Self { value, for_sql: false }
    }

    /// As [`Plain::new`], but integers that SQLite would make an inexact float of are text.
    pub(crate) fn for_sql(value: &'a Value) -> Self {
        Self { value, for_sql: true }
    }
}

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { value, for_sql } = *self;
        let inside = |value| Plain { value, for_sql };
        match value {
            Value::Null => to.serialize_unit(),
            Value::Bool(value) => to.serialize_bool(*value),
            Value::Uint(value) if for_sql && i64::try_from(*value).is_err() => {
                to.collect_str(value)
            }
            Value::Uint(value) => to.serialize_u64(*value),
            Value::Negative(value) => to.serialize_i64(*value),
            Value::F32(value) if value.is_finite() => to.serialize_f64(f64::from(*value)),
            Value::F64(value) if value.is_finite() => to.serialize_f64(*value),
            Value::F32(_) | Value::F64(_) => to.collect_str(value),
            Value::Bytes(bytes) => to.serialize_str(&hex(bytes)),
            Value::Text(text) => to.serialize_str(text),
            Value::Array(values) => to.collect_seq(values.iter().map(inside)),
            Value::Map(members) => {
                to.collect_map(members.iter().map(|(name, value)| (name, inside(value))))
            }
        }
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}
