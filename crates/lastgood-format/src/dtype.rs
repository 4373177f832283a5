//! Element types of tensors.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

macro_rules! dtypes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $bits:literal;)*) => {
        /// The element type of a tensor: every type of safetensors, and opaque bytes.
        ///
        /// Elements are little-endian. The codes are part of the format (`FORMAT.md`, "Dtypes").
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Dtype { $($(#[$doc])* $name,)* }

        impl Dtype {
            /// Every dtype, in the order of the codes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code in a shard index.
            #[must_use]
            pub fn code(self) -> u8 { match self { $(Self::$name => $code,)* } }

            /// The dtype of a code, if this version knows it.
            #[must_use]
            pub fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// The name, as safetensors spells it (`BLOB` for opaque bytes).
            #[must_use]
            pub fn name(self) -> &'static str { match self { $(Self::$name => $text,)* } }

            /// The size of one element in bits.
            #[must_use]
            pub fn bits(self) -> u64 { match self { $(Self::$name => $bits,)* } }
        }

        impl FromStr for Dtype {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Self::$name),)*
                    _ => Err(Error::incompatible(format!("unknown dtype {text:?}"))),
                }
            }
        }
    };
}

dtypes! {
    /// Opaque bytes; the shape has one dimension, the number of bytes.
    Blob = 0, "BLOB", 8;
    /// One byte, 0 or 1.
    Bool = 1, "BOOL", 8;
    /// Unsigned 8-bit integer.
    U8 = 2, "U8", 8;
    /// Signed 8-bit integer.
    I8 = 3, "I8", 8;
    /// Unsigned 16-bit integer.
    U16 = 4, "U16", 16;
    /// Signed 16-bit integer.
    I16 = 5, "I16", 16;
    /// Unsigned 32-bit integer.
    U32 = 6, "U32", 32;
    /// Signed 32-bit integer.
    I32 = 7, "I32", 32;
    /// Unsigned 64-bit integer.
    U64 = 8, "U64", 64;
    /// Signed 64-bit integer.
    I64 = 9, "I64", 64;
    /// IEEE 754 binary16.
    F16 = 10, "F16", 16;
    /// bfloat16: the upper half of binary32.
    Bf16 = 11, "BF16", 16;
    /// IEEE 754 binary32.
    F32 = 12, "F32", 32;
    /// IEEE 754 binary64.
    F64 = 13, "F64", 64;
    /// 8-bit float, 5 exponent and 2 mantissa bits.
    F8E5M2 = 14, "F8_E5M2", 8;
    /// 8-bit float, 4 exponent and 3 mantissa bits.
    F8E4M3 = 15, "F8_E4M3", 8;
    /// 8-bit exponent only (MX scale).
    F8E8M0 = 16, "F8_E8M0", 8;
    /// 6-bit float, 2 exponent and 3 mantissa bits, packed.
    F6E2M3 = 17, "F6_E2M3", 6;
    /// 6-bit float, 3 exponent and 2 mantissa bits, packed.
    F6E3M2 = 18, "F6_E3M2", 6;
    /// 4-bit float, packed.
    F4 = 19, "F4", 4;
    /// Complex number of two binary32.
    C64 = 20, "C64", 64;
    /// 8-bit float, 5 exponent and 2 mantissa bits, finite, no negative zero.
    F8E5M2Fnuz = 21, "F8_E5M2FNUZ", 8;
    /// 8-bit float, 4 exponent and 3 mantissa bits, finite, no negative zero.
    F8E4M3Fnuz = 22, "F8_E4M3FNUZ", 8;
}

impl Dtype {
    /// The bytes of `elements` elements, or `None` if that is no whole number of bytes or overflows.
    #[must_use]
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
