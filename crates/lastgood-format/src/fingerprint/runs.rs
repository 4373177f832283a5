//! Where the bytes of a shard stand in its tensor: runs at regular distances.

use super::field::{WORD_BYTES, add, multiply, weigh, weight_of};
use crate::layout::{NdBox, unaligned};
use crate::{Dtype, Error, Result};

/// The row-major bytes of a box as contiguous runs of the tensor's bytes.
pub(super) struct Runs {
    /// Where the first run begins in the tensor's bytes.
    first: u64,
    /// The length of every run in bytes.
    bytes: u64,
    /// The loops over the runs, the innermost first.
    loops: Vec<Loop>,
}

/// `count` things that each begin `stride` bytes after the one before.
#[derive(Clone, Copy)]
struct Loop {
    count: u64,
    stride: u64,
}

impl Runs {
    /// The runs of `extent`, which lies inside `shape` and has elements.
    ///
    /// # Errors
    /// `Corrupt` if a size overflows; `Incompatible` if a run does not begin and end on a whole byte.
    pub(super) fn new(dtype: Dtype, shape: &[u64], extent: &NdBox) -> Result<Self> {
        // In bits until it is known that they are whole bytes. The tensor's size in bits fits, and
        // everything else here is at most that.
        let overflow = || Error::corrupt("the size of a tensor overflows");
        let mut runs = Self { first: 0, bytes: dtype.bits(), loops: Vec::new() };
        let mut stride = dtype.bits();
        for ((dim, offset), count) in shape.iter().zip(&extent.offsets).zip(&extent.sizes).rev() {
            let outer = stride.checked_mul(*dim).ok_or_else(overflow)?;
            runs.first += offset * stride;
            match runs.loops.last_mut() {
                _ if *count == 1 => {}
                None if stride == runs.bytes => runs.bytes *= count,
                Some(inner) if stride == inner.stride * inner.count => inner.count *= count,
                _ => runs.loops.push(Loop { count: *count, stride }),
            }
            stride = outer;
        }
        let strides = runs.loops.iter_mut().map(|each| &mut each.stride);
        for bits in [&mut runs.first, &mut runs.bytes].into_iter().chain(strides) {
            if !bits.is_multiple_of(8) {
                return Err(unaligned(dtype));
            }
            *bits /= 8;
        }
        Ok(runs)
    }

    /// The weighted sum of `bytes`, which are the box's from its byte `offset` on.
    pub(super) fn weigh(&self, offset: u64, bytes: &[u8]) -> u128 {
        let mut walk = Walk::begin(self, offset / self.bytes);
        let inside = offset % self.bytes;
        let begun = bytes.len().min(usize::try_from(self.bytes - inside).unwrap_or(usize::MAX));
        let (head, rest) = bytes.split_at(begun);
        let at = walk.at + inside;
        let between = weight_of(at / WORD_BYTES as u64 - walk.at / WORD_BYTES as u64);
        let total = weigh(multiply(walk.weight, between), phase(at), head);
        // Where a run is longer than memory, nothing is left.
        let run = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        rest.chunks(run).fold(total, |total, run| {
            walk.advance();
            add(total, weigh(walk.weight, phase(walk.at), run))
        })
    }
}

/// Which byte of its word a byte of the tensor is.
fn phase(at: u64) -> usize {
    (at % WORD_BYTES as u64) as usize
}

/// A place among the runs, with the weight of its word.
struct Walk {
    /// Where the run begins in the tensor's bytes.
    at: u64,
    /// `R` to the power of the word that it begins in.
    weight: u128,
    /// The innermost loop first.
    steps: Vec<Step>,
}

/// How one loop moves on. From run to run the word's place grows by one of two numbers, whatever
/// the distance in bytes, so two weights are all that is ever needed.
struct Step {
    index: u64,
    count: u64,
    /// From the last run of the loops inside to the first of their next time.
    bytes: u64,
    words: u64,
    /// `R^words` and `R^(words + 1)`.
    weights: [u128; 2],
}

impl Walk {
    /// At the run with the number `run`.
    fn begin(runs: &Runs, mut run: u64) -> Self {
        let mut walk = Self { at: runs.first, weight: 1, steps: Vec::new() };
        let mut reached = 0;
        for Loop { count, stride } in &runs.loops {
            let index = run % count;
            run /= count;
            walk.at += index * stride;
            let bytes = stride - reached;
            reached += (count - 1) * stride;
            let words = bytes / WORD_BYTES as u64;
            let weights = [weight_of(words), weight_of(words + 1)];
            walk.steps.push(Step { index, count: *count, bytes, words, weights });
        }
        walk.weight = weight_of(walk.at / WORD_BYTES as u64);
        walk
    }

    /// To the next run; there is one.
    fn advance(&mut self) {
        for step in &mut self.steps {
            step.index += 1;
            if step.index == step.count {
                step.index = 0;
                continue;
            }
            let word = self.at / WORD_BYTES as u64 + step.words;
            self.at += step.bytes;
            let carried = self.at / WORD_BYTES as u64 - word;
            self.weight = multiply(self.weight, step.weights[carried as usize & 1]);
            return;
        }
    }
}
