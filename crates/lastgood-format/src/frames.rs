//! zstd contexts that each thread keeps: to make one costs more than to code a small frame.

use std::cell::Cell;
use std::io;

use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, DCtx, ParamSwitch, ResetDirective};

/// A context that grew larger than this is not kept.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// So fast that nothing that repeats is looked for.
const FASTEST: i32 = -1000;

thread_local! {
    static DECODER: Cell<Option<DCtx<'static>>> = const { Cell::new(None) };
    static ENCODER: Cell<Option<Compressor<'static>>> = const { Cell::new(None) };
}

/// Decodes with a context that knows nothing of earlier frames.
pub(crate) fn with_decoder<T>(decode: impl FnOnce(&mut DCtx<'static>) -> T) -> T {
    let mut context = DECODER.take().unwrap_or_default();
    let decoded = decode(&mut context);
    // A frame that broke off, and what was set for this one, are not for the next.
    let is_reset = context.reset(ResetDirective::SessionAndParameters).is_ok();
    if is_reset && context.sizeof() <= KEPT_BYTES_MAX {
        DECODER.set(Some(context));
    }
    decoded
}

/// `decoded` as one zstd frame; fails as the encoder does.
pub(crate) fn compress(decoded: &[u8], level: i32) -> io::Result<Vec<u8>> {
    with_encoder(decoded, |encoder| encoder.set_compression_level(level))
}

/// `decoded` as one zstd frame of literals alone: for bytes that are of unequal frequency and follow no other pattern,
/// several times as fast as the lowest level, and smaller.
pub(crate) fn compress_literals(decoded: &[u8]) -> io::Result<Vec<u8>> {
    with_encoder(decoded, |encoder| {
        encoder.set_compression_level(FASTEST)?;
        encoder.set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Enable))
    })
}

fn with_encoder(
    decoded: &[u8],
    set: impl FnOnce(&mut Compressor<'static>) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    let mut encoder = ENCODER.take().unwrap_or_default();
    set(&mut encoder)?;
    let frame = encoder.compress(decoded)?;
    let is_reset = encoder.context_mut().reset(ResetDirective::SessionAndParameters).is_ok();
    if is_reset && encoder.context_mut().sizeof() <= KEPT_BYTES_MAX {
        ENCODER.set(Some(encoder));
    }
    Ok(frame)
}
