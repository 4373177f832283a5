//! The bytes of candle's tensors, little-endian and row-major, without unsafe code.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor, Var};
use lastgood_format::{Dtype, Error, ErrorKind, Result};

use crate::state::Source;

/// candle's dtype in lastgood's words.
pub(super) fn dtype(dtype: DType) -> Result<Dtype> {
    Ok(match dtype {
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::BF16 => Dtype::Bf16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F8E4M3 => Dtype::F8E4M3,
        DType::F6E2M3 => Dtype::F6E2M3,
        DType::F6E3M2 => Dtype::F6E3M2,
        DType::F4 => Dtype::F4,
        DType::F8E8M0 => Dtype::F8E8M0,
        _ => return Err(Error::incompatible(format!("candle's dtype {dtype:?} is not known"))),
    })
}

/// The shape of a tensor.
pub(super) fn shape(tensor: &Tensor) -> Vec<u64> {
    tensor.dims().iter().map(|size| *size as u64).collect()
}

/// An error of candle about `name`.
pub(super) fn failed(name: &str, error: &candle_core::Error) -> Error {
    Error::new(ErrorKind::Overloaded, format!("candle: {error}")).with_object(name)
}

/// A tensor on the CPU whose elements lie one after the other.
#[derive(Debug)]
pub(super) struct Bytes(Tensor);

impl Bytes {
    /// The bytes of `tensor`: its own memory if it lies so already, else a copy.
    pub(super) fn of(name: &str, tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.to_device(&Device::Cpu).and_then(|tensor| tensor.contiguous());
        tensor.map(Self).map_err(|e| failed(name, &e))
    }
}

impl Source for Bytes {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        let (storage, layout) = self.0.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            return Err(Error::internal("a tensor that was copied to the CPU is not there"));
        };
        copy_out(storage, layout.start_offset(), offset, into)
    }
}

/// The range of the elements that `count` bytes from byte `offset` on are part of, and the first byte of
/// it that is wanted.
fn elements(first: usize, offset: usize, count: usize, size: usize) -> (Range<usize>, usize) {
    let begin = first + offset / size;
    let end = first + (offset + count).div_ceil(size);
    (begin..end, offset % size)
}

fn outgrown() -> Error {
    Error::internal("a tensor of candle has fewer elements than its shape says")
}

macro_rules! wide {
    ($values:expr, $size:literal, $first:expr, $offset:expr, $into:expr) => {{
        let (range, skip) = elements($first, $offset, $into.len(), $size);
        let values = $values.get(range).ok_or_else(outgrown)?;
        if skip == 0 && $into.len() % $size == 0 {
            // The compiler makes one copy of this loop.
            for (place, value) in $into.chunks_exact_mut($size).zip(values) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        } else {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).skip(skip);
            $into.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        }
    }};
}

fn copy_out(storage: &CpuStorage, first: usize, offset: usize, into: &mut [u8]) -> Result<()> {
    match storage {
        CpuStorage::U8(v)
        | CpuStorage::F6E2M3(v)
        | CpuStorage::F6E3M2(v)
        | CpuStorage::F4(v)
        | CpuStorage::F8E8M0(v) => {
            let begin = first + offset;
            into.copy_from_slice(v.get(begin..begin + into.len()).ok_or_else(outgrown)?);
        }
        CpuStorage::F8E4M3(v) => {
            let begin = first + offset;
            let values = v.get(begin..begin + into.len()).ok_or_else(outgrown)?;
            into.iter_mut().zip(values).for_each(|(place, value)| *place = value.to_bits());
        }
        CpuStorage::U32(v) => wide!(v, 4, first, offset, into),
        CpuStorage::I16(v) => wide!(v, 2, first, offset, into),
        CpuStorage::I32(v) => wide!(v, 4, first, offset, into),
        CpuStorage::I64(v) => wide!(v, 8, first, offset, into),
        CpuStorage::BF16(v) => wide!(v, 2, first, offset, into),
        CpuStorage::F16(v) => wide!(v, 2, first, offset, into),
        CpuStorage::F32(v) => wide!(v, 4, first, offset, into),
        CpuStorage::F64(v) => wide!(v, 8, first, offset, into),
    }
    Ok(())
}

/// Gives `var` the elements that `bytes` are, where it is.
pub(super) fn fill(name: &str, var: &Var, bytes: &[u8]) -> Result<()> {
    let made = Tensor::from_raw_buffer(bytes, var.dtype(), var.dims(), var.device());
    made.and_then(|made| var.set(&made)).map_err(|e| failed(name, &e))
}
