//! The one element of a tensor that differs.

use lastgood::replay::compare::Divergence;
use lastgood::{Dtype, Repository, Result, RunName};
use serde_json::json;

use crate::demo::compare;

/// One element of a tensor that was recorded with another value than it was re-executed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// `component/name`.
    pub(crate) tensor: String,
    /// Its place in each dimension.
    pub(crate) index: Vec<u64>,
    /// What was recorded.
    pub(crate) recorded: String,
    /// What it should have been.
    pub(crate) replayed: String,
    /// How many bits differ.
    pub(crate) bits: u32,
}

/// The element of `tensor` that differs, whose re-executed state is the checkpoint of that step in `target`. `None` if
/// more than one does.
///
/// # Errors
/// As [`compare::read`].
pub(crate) fn read(
    target: &Repository,
    run: &RunName,
    tensor: &Divergence,
) -> Result<Option<Element>> {
    let whole = compare::read(target, run, tensor.step)?;
    let named =
        whole.iter().find(|((component, name), _)| format!("{component}/{name}") == tensor.what);
    let (Some((_, found)), Some(change)) = (named, tensor.change) else { return Ok(None) };
    let begin = change.word as usize * 8;
    let Some(bytes) = found.bytes.get(begin..found.bytes.len().min(begin + 8)) else {
        return Ok(None);
    };
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let replayed = u64::from_le_bytes(word);
    let recorded = (i128::from(replayed) + change.delta) as u64;
    let size = found.dtype.bytes_of(1).unwrap_or(1).clamp(1, 8) as usize;
    let differing: Vec<usize> = (0..8 / size)
        .filter(|i| {
            let part = |word: u64| word.to_le_bytes()[i * size..(i + 1) * size].to_vec();
            part(recorded) != part(replayed)
        })
        .collect();
    let [only] = differing[..] else { return Ok(None) };
    let part = |word: u64| word.to_le_bytes()[only * size..(only + 1) * size].to_vec();
    Ok(Some(Element {
        tensor: tensor.what.clone(),
        index: index(&found.shape, (begin / size + only) as u64),
        recorded: show(found.dtype, &part(recorded)),
        replayed: show(found.dtype, &part(replayed)),
        bits: (recorded ^ replayed).count_ones(),
    }))
}

/// The place of element `at` in each dimension.
fn index(shape: &[u64], mut at: u64) -> Vec<u64> {
    let mut index: Vec<u64> = shape
        .iter()
        .rev()
        .map(|size| {
            let place = at % (*size).max(1);
            at /= (*size).max(1);
            place
        })
        .collect();
    index.reverse();
    index
}

fn show(dtype: Dtype, bytes: &[u8]) -> String {
    let hex = || bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
    match (dtype, bytes) {
        (Dtype::F32, [a, b, c, d]) => {
            format!("{:?} (0x{})", f32::from_le_bytes([*a, *b, *c, *d]), hex())
        }
        (Dtype::F64, bytes) => match <[u8; 8]>::try_from(bytes) {
            Ok(bytes) => format!("{:?} (0x{})", f64::from_le_bytes(bytes), hex()),
            Err(_) => format!("0x{}", hex()),
        },
        (Dtype::Bf16, [low, high]) => {
            format!("{:?} (0x{})", f32::from_le_bytes([0, 0, *low, *high]), hex())
        }
        _ => format!("0x{}", hex()),
    }
}

impl Element {
    /// True if one bit alone differs.
    pub(crate) fn is_flip(&self) -> bool {
        self.bits == 1
    }

    /// As the page describes it.
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({"tensor": self.tensor, "index": self.index, "recorded": self.recorded,
            "replayed": self.replayed, "bits": self.bits})
    }

    /// The text of it, where the second value is introduced by `second`.
    pub(crate) fn told(&self, second: &str) -> String {
        let Self { tensor, index, recorded, replayed, bits } = self;
        let plural = if *bits == 1 { "bit differs" } else { "bits differ" };
        format!("{tensor} {index:?} was {recorded} and {second} {replayed}: {bits} {plural}")
    }
}
