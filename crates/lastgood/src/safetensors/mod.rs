//! Safetensors in and out, without a whole file in memory: a [`Reader`] reads tensors while they are
//! captured, an [`Export`] gives a file part by part.

mod export;
mod reader;

pub use export::{Content, Export};
pub use reader::Reader;

/// What other readers of safetensors take as a header at most.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// The length of the header, little-endian, that a file begins with.
const LENGTH_BYTES: usize = 8;
