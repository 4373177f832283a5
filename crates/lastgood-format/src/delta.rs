//! Delta: a chunk as what is left of it where a prediction from other chunks is known.
//!
//! A prediction is made of chunks that are stored already (*operands*): the same numbers a save earlier, or what an
//! optimizer must have made of them. What is stored is the *residual*, from which the prediction gives the chunk back
//! to the bit, however wrong it was: the better it is, the smaller the residual gets.

mod residual;
mod rule;

use residual::Form;
pub use rule::{Prediction, Rule, nearest_bfloat16};

use crate::planes::WIDTHS;
use crate::wire::{Reader, Writer};
use crate::{Error, Hash, Result};

/// The most operands of a chunk.
pub const OPERANDS_MAX: usize = 3;

/// The longest way from a chunk over operands to one that has none.
pub const DEPTH_MAX: u32 = 256;

/// The most constants of a prediction.
const CONSTANTS_MAX: usize = 8;

/// A chunk that others are made of: decoded and verified.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'b> {
    /// Its hash.
    pub hash: Hash,
    /// Its decoded bytes.
    pub bytes: &'b [u8],
}

/// `decoded`, elements of `width` bytes, as the residual of `prediction` from `operands`; `None` if that is not smaller.
///
/// # Errors
/// `Internal` if the encoder fails; `Invalid` if the operands are not those that the rule takes, of the size of
/// `decoded`, or the width is not one that the rule is for.
pub fn encode(
    decoded: &[u8],
    width: usize,
    prediction: &Prediction,
    operands: &[Operand<'_>],
    level: i32,
) -> Result<Option<Vec<u8>>> {
    let bytes: Vec<&[u8]> = operands.iter().map(|operand| operand.bytes).collect();
    prediction.check(width, &bytes, decoded.len()).map_err(Error::invalid)?;
    let residual = residual::of(decoded, width, prediction, &bytes);
    let (form, body) = residual::encode(&residual, width, level)?;
    let mut out = Writer(Vec::with_capacity(body.len() + 256));
    out.hash(&Hash::from_bytes([0; Hash::BYTES]));
    out.u8(prediction.rule.code());
    out.u8(width as u8);
    out.u8(u8::from(prediction.fused));
    out.u8(prediction.constants.len() as u8);
    operands.iter().for_each(|operand| out.hash(&operand.hash));
    prediction.constants.iter().for_each(|constant| out.u64(constant.to_bits()));
    out.u8(form.code());
    out.0.extend_from_slice(&body);
    let seal = Hash::of(&out.0[Hash::BYTES..]);
    out.0[..Hash::BYTES].copy_from_slice(seal.as_bytes());
    Ok((out.0.len() < decoded.len()).then_some(out.0))
}

/// About how many bytes the residual would take.
///
/// # Errors
/// As [`encode`].
pub fn estimate(
    sample: &[u8],
    width: usize,
    prediction: &Prediction,
    operands: &[&[u8]],
    level: i32,
) -> Result<usize> {
    prediction.check(width, operands, sample.len()).map_err(Error::invalid)?;
    let residual = residual::of(sample, width, prediction, operands);
    residual::encode(&residual, width, level).map(|(_, body)| body.len())
}

/// Checks that the stored bytes are those that were stored, which needs no operand.
///
/// # Errors
/// `Corrupt` if they are not.
pub fn check(stored: &[u8]) -> Result<()> {
    parse(stored).map(|_| ())
}

/// The rule of a stored chunk.
///
/// # Errors
/// As [`check`]; `Incompatible` if the rule is newer.
pub fn rule(stored: &[u8]) -> Result<Rule> {
    parse(stored).map(|parsed| parsed.prediction.rule)
}

/// Decodes `stored` into exactly `decoded`.
///
/// # Errors
/// `Corrupt` if the bytes are no residual of so many bytes, or of other operands; `Incompatible` if the rule is newer.
pub(crate) fn decode(stored: &[u8], operands: &[Operand<'_>], decoded: &mut [u8]) -> Result<()> {
    let Parsed { prediction, width, operands: named, form, body } = parse(stored)?;
    if named.len() != operands.len() || named.iter().zip(operands).any(|(a, b)| *a != b.hash) {
        return Err(Error::corrupt(
            "a delta chunk was made of other chunks than those that are named",
        ));
    }
    let bytes: Vec<&[u8]> = operands.iter().map(|operand| operand.bytes).collect();
    prediction.check(width, &bytes, decoded.len()).map_err(Error::corrupt)?;
    residual::decode(form, body, width, decoded)
        .map_err(|e| e.context("the residual of a delta chunk does not decode"))?;
    residual::add(decoded, width, &prediction, &bytes);
    Ok(())
}

struct Parsed<'b> {
    prediction: Prediction,
    width: usize,
    operands: Vec<Hash>,
    form: Form,
    body: &'b [u8],
}

fn parse(stored: &[u8]) -> Result<Parsed<'_>> {
    let unclear = |what: String| Error::corrupt(format!("a delta chunk: {what}"));
    let mut fields = Reader::new(stored);
    let seal = fields.hash()?;
    let found = Hash::of(fields.rest());
    if seal != found {
        return Err(unclear(format!("expected stored bytes of hash {seal}, found {found}")));
    }
    let rule = Rule::from_code(fields.u8()?).ok_or_else(|| {
        Error::incompatible("a delta chunk is of a rule that is not known")
            .with_remedy("use a newer lastgood")
    })?;
    let width = usize::from(fields.u8()?);
    let fused = fields.u8()?;
    let count = usize::from(fields.u8()?);
    if !WIDTHS.contains(&width) || fused > 1 || count > CONSTANTS_MAX {
        return Err(unclear(format!("width {width}, fused {fused}, {count} constants")));
    }
    let operands = (0..rule.operands()).map(|_| fields.hash()).collect::<Result<_>>()?;
    let constants = (0..count).map(|_| fields.u64().map(f64::from_bits)).collect::<Result<_>>()?;
    let form = fields.u8()?;
    let form =
        Form::from_code(form).ok_or_else(|| unclear(format!("its residual is of form {form}")))?;
    let prediction = Prediction { rule, fused: fused == 1, constants };
    Ok(Parsed { prediction, width, operands, form, body: fields.rest() })
}

#[cfg(test)]
mod tests;
