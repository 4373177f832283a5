//! Pseudo-random numbers whose whole state is four words that can be saved.

/// What a stream of numbers is for, so that no two uses share one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    /// The weights before the first step.
    Weights,
    /// The order of the samples in this epoch.
    Order(u64),
    /// The disturbance of the images of this logical rank.
    Noise(u64),
    /// The kills of the demo.
    Kills,
}

/// xoshiro256++ by David Blackman and Sebastiano Vigna (2019), in the public domain.
#[derive(Debug)]
pub(crate) struct Rng<'a>(
    /// The state: nothing else decides what comes next.
    pub(crate) &'a mut [u64; 4],
);

impl Rng<'_> {
    /// The next 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        let s = &mut *self.0;
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

    /// A number in `0 .. bound`, by multiply and shift. Its bias is below `bound / 2^64`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// A number in `[0, 1)` with the 24 bits that an `f32` holds.
    pub(crate) fn unit(&mut self) -> f32 {
        const STEP: f32 = 1.0 / (1 << 24) as f32;
        (self.next() >> 40) as f32 * STEP
    }
}

/// The state from which a stream begins, for a seed.
pub(crate) fn seeded(seed: u64, stream: Stream) -> [u64; 4] {
    let (kind, index) = match stream {
        Stream::Weights => (1, 0),
        Stream::Order(epoch) => (2, epoch),
        Stream::Noise(logical_rank) => (3, logical_rank),
        Stream::Kills => (4, 0),
    };
    let mut state = [seed, kind, index].into_iter().fold(0, |mixed, word| mix(mixed ^ word));
    std::array::from_fn(|_| {
        state = mix(state);
        state
    })
}

/// One step of SplitMix64 by Sebastiano Vigna (2015), in the public domain: spreads a change of one
/// bit over all of them, so that neighbouring seeds give unrelated streams.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
