//! Random numbers whose state can be saved.

use candle_core::{Device, Shape, Tensor};
use lastgood_format::Result;
use serde::{Deserialize, Serialize};

use crate::state::{Component, Part, Slots};

/// xoshiro256++ by David Blackman and Sebastiano Vigna (2019): a generator that is seeded, is saved with
/// the checkpoint, and gives the same bits on every machine ([`Rng::normal`] takes its logarithm from the
/// machine's library).
///
/// As a component each rank saves its own; restarting on another number of ranks needs a seed for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rng([u64; 4]);

impl Rng {
    /// A generator that begins where `seed` says. Neighbouring seeds give unrelated numbers.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let mut word = seed;
        // SplitMix64 by Sebastiano Vigna (2015), which xoshiro's authors recommend for this.
        Self(std::array::from_fn(|_| {
            word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `0 .. bound`, by multiply and shift; its bias is below `bound / 2^64`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A number in `[0, 1)` with the 53 bits that an `f64` holds.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Puts `items` into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// A tensor of `f32` in `[low, high)`.
    ///
    /// # Errors
    /// candle's own, if there is no memory; none of lastgood's kinds (`Overloaded` and so on).
    pub fn uniform(
        &mut self,
        low: f32,
        high: f32,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.tensor(shape.into(), device, |rng| {
            let unit = (rng.bits() >> 40) as f32 / (1u32 << 24) as f32;
            low + (high - low) * unit
        })
    }

    /// A tensor of normally distributed `f32`, by Marsaglia's polar method (1964).
    ///
    /// # Errors
    /// candle's own, if there is no memory; none of lastgood's kinds (`Overloaded` and so on).
    pub fn normal(
        &mut self,
        mean: f32,
        deviation: f32,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.tensor(shape.into(), device, |rng| {
            loop {
                let (x, y) = (2.0 * rng.unit() - 1.0, 2.0 * rng.unit() - 1.0);
                let square = x * x + y * y;
                if square > 0.0 && square < 1.0 {
                    let normal = x * (-2.0 * square.ln() / square).sqrt();
                    return mean + deviation * normal as f32;
                }
            }
        })
    }

    fn tensor(
        &mut self,
        shape: Shape,
        device: &Device,
        number: impl Fn(&mut Self) -> f32,
    ) -> candle_core::Result<Tensor> {
        let numbers: Vec<f32> = (0..shape.elem_count()).map(|_| number(self)).collect();
        Tensor::from_vec(numbers, shape, device)
    }
}

impl Component for Rng {
    fn capture<'a>(&'a self, part: &mut Part<'_, 'a>) -> Result<()> {
        part.rank_value("xoshiro256++", self)
    }

    fn restore<'a>(&'a mut self, slots: &mut Slots<'_, 'a>) -> Result<()> {
        slots.rank_value("xoshiro256++", self)
    }
}
