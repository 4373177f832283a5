//! What an event says, as deterministic CBOR (RFC 8949 §4.2, with the rules of `FORMAT.md`).
//!
//! There is one way to write a value, so that equal events are equal bytes: the shortest integers, definite
//! lengths, maps with text keys in the order of their encodings, and floats in the width that the writer
//! chose, bit for bit. A reader refuses everything else.

use std::collections::BTreeMap;
use std::fmt;

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use crate::{Error, Result};

/// The deepest nesting of arrays and maps.
pub const DEPTH_MAX: usize = 16;

/// One value. Floats are compared by their bits: a NaN is equal to itself.
#[derive(Clone)]
pub enum Value {
    /// Nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number of at least 0.
    Uint(u64),
    /// A whole number below 0.
    Negative(i64),
    /// A binary32.
    F32(f32),
    /// A binary64.
    F64(f64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Text.
    Text(String),
    /// Values in order.
    Array(Vec<Value>),
    /// Values by name.
    Map(BTreeMap<String, Value>),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Uint(a), Self::Uint(b)) => a == b,
            (Self::Negative(a), Self::Negative(b)) => a == b,
            (Self::F32(a), Self::F32(b)) => a.to_bits() == b.to_bits(),
            (Self::F64(a), Self::F64(b)) => a.to_bits() == b.to_bits(),
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Array(a), Self::Array(b)) => a == b,
            (Self::Map(a), Self::Map(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Value {}

macro_rules! from {
    ($($type:ty => |$value:ident| $make:expr;)*) => {
        $(impl From<$type> for Value {
            fn from($value: $type) -> Self {
                $make
            }
        })*
    };
}

from! {
    bool => |value| Self::Bool(value);
    u64 => |value| Self::Uint(value);
    u32 => |value| Self::Uint(value.into());
    i64 => |value| u64::try_from(value).map_or(Self::Negative(value), Self::Uint);
    f32 => |value| Self::F32(value);
    f64 => |value| Self::F64(value);
    &str => |value| Self::Text(value.to_owned());
    String => |value| Self::Text(value);
    Vec<u8> => |value| Self::Bytes(value);
    &[u8] => |value| Self::Bytes(value.to_vec());
    Vec<Value> => |value| Self::Array(value);
    BTreeMap<String, Value> => |value| Self::Map(value);
}

impl Value {
    /// A map of these members.
    #[must_use]
    pub fn map<'n>(members: impl IntoIterator<Item = (&'n str, Value)>) -> Self {
        Self::Map(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The member `name`, if this is a map that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(members) => members.get(name),
            _ => None,
        }
    }

    /// The number, if this is one of at least 0.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Uint(number) => Some(*number),
            _ => None,
        }
    }

    /// The text, if this is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if these are some.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The values, if this is an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }

    /// The members, if this is a map.
    #[must_use]
    pub fn as_map(&self) -> Option<&BTreeMap<String, Self>> {
        match self {
            Self::Map(members) => Some(members),
            _ => None,
        }
    }

    /// The one way to write it.
    ///
    /// # Errors
    /// `Invalid` if it is nested deeper than [`DEPTH_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut encoder = Encoder::new(Vec::new());
        encode(self, &mut encoder, 0)?;
        Ok(encoder.into_writer())
    }

    /// Reads `bytes`, which must be exactly one value, written in the one way.
    ///
    /// # Errors
    /// `Corrupt` if they are not.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let unclear = |why: String| Error::corrupt(format!("an event is not understood: {why}"));
        let mut decoder = Decoder::new(bytes);
        let value = decode(&mut decoder, 0).map_err(unclear)?;
        // There is one way, so whoever wrote it otherwise is caught by writing it again.
        if decoder.position() != bytes.len() || value.encode()? != bytes {
            return Err(unclear("it is not written in the one way that there is".into()));
        }
        Ok(value)
    }
}

fn encode(value: &Value, to: &mut Encoder<Vec<u8>>, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(Error::invalid(format!("an event is nested deeper than {DEPTH_MAX}")));
    }
    let written = match value {
        Value::Null => to.null(),
        Value::Bool(value) => to.bool(*value),
        Value::Uint(value) => to.u64(*value),
        Value::Negative(value) => to.i64(*value),
        Value::F32(value) => to.f32(*value),
        Value::F64(value) => to.f64(*value),
        Value::Bytes(bytes) => to.bytes(bytes),
        Value::Text(text) => to.str(text),
        Value::Array(values) => {
            let written = to.array(values.len() as u64).map(drop);
            for value in values {
                encode(value, to, depth + 1)?;
            }
            return written.map_err(|e| Error::internal(format!("cannot write an event: {e}")));
        }
        Value::Map(members) => {
            let written = to.map(members.len() as u64).map(drop);
            let mut order: Vec<_> = members.iter().collect();
            // Shorter names have lower encodings, whatever their letters.
            order.sort_by_key(|(name, _)| (name.len(), *name));
            for (name, value) in order {
                let named = to.str(name).map(drop);
                named.map_err(|e| Error::internal(format!("cannot write an event: {e}")))?;
                encode(value, to, depth + 1)?;
            }
            return written.map_err(|e| Error::internal(format!("cannot write an event: {e}")));
        }
    };
    written.map(drop).map_err(|e| Error::internal(format!("cannot write an event: {e}")))
}

fn decode(from: &mut Decoder<'_>, depth: usize) -> Result<Value, String> {
    if depth > DEPTH_MAX {
        return Err(format!("it is nested deeper than {DEPTH_MAX}"));
    }
    let text = |e: minicbor::decode::Error| e.to_string();
    let kind = from.datatype().map_err(text)?;
    match kind {
        Type::Null => from.null().map(|()| Value::Null),
        Type::Bool => from.bool().map(Value::Bool),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => from.u64().map(Value::Uint),
        Type::I8 | Type::I16 | Type::I32 | Type::I64 => from.i64().map(Value::from),
        Type::F32 => from.f32().map(Value::F32),
        Type::F64 => from.f64().map(Value::F64),
        Type::Bytes => from.bytes().map(Value::from),
        Type::String => from.str().map(Value::from),
        Type::Array => return decode_array(from, depth),
        Type::Map => return decode_map(from, depth),
        other => return Err(format!("{other} is not used in events")),
    }
    .map_err(text)
}

// Neither makes room for more than was read: a hostile count ends with the bytes.

fn decode_array(from: &mut Decoder<'_>, depth: usize) -> Result<Value, String> {
    let count = from.array().map_err(|e| e.to_string())?.ok_or("an array has no length")?;
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(decode(from, depth + 1)?);
    }
    Ok(Value::Array(values))
}

fn decode_map(from: &mut Decoder<'_>, depth: usize) -> Result<Value, String> {
    let count = from.map().map_err(|e| e.to_string())?.ok_or("a map has no length")?;
    let mut members = BTreeMap::new();
    for _ in 0..count {
        let name = from.str().map_err(|e| e.to_string())?.to_owned();
        members.insert(name, decode(from, depth + 1)?);
    }
    Ok(Value::Map(members))
}

/// As a person writes it: JSON, but for bytes (`h'…'`) and for floats that JSON lacks.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Uint(value) => value.fmt(f),
            Self::Negative(value) => value.fmt(f),
            Self::F32(value) => write!(f, "{value:?}"),
            Self::F64(value) => write!(f, "{value:?}"),
            Self::Bytes(bytes) => {
                f.write_str("h'")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str("'")
            }
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Array(values) => {
                f.write_str("[")?;
                for (i, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Map(members) => {
                f.write_str("{")?;
                for (i, (name, value)) in members.iter().enumerate() {
                    write!(f, "{}{name}: {value}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("}")
            }
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
