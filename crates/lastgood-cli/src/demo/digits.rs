//! The handwritten digits that the job learns. `DIGITS.md` says where they come from.

use anyhow::{Context, Result, ensure};

/// The pixels of one image, 8 rows of 8.
pub(crate) const PIXELS: usize = 64;

/// The labels are `0 .. CLASSES`.
pub(crate) const CLASSES: usize = 10;

const SAMPLES: usize = 1797;

/// The first ones are learned from. The others come from other writers, so that they tell whether the
/// network has learned digits or handwritings.
const TRAINING_SAMPLES: usize = 1437;

/// A sample is its pixels, 0 to 16, and its label, a byte each.
const SAMPLE_BYTES: usize = PIXELS + 1;

const COMPRESSED: &[u8] = include_bytes!("digits.u8.zst");

/// The BLAKE3 hash of the samples.
const HASH: &str = "871a762edb23c6d138f1434d0b23e9fe94a1a2ee79328e095347ab9f62740139";

/// Images and what they show.
#[derive(Debug)]
pub(crate) struct Digits {
    pixels: Vec<f32>,
    labels: Vec<u8>,
}

impl Digits {
    /// The samples to learn from and those to test with.
    pub(crate) fn load() -> Result<(Self, Self)> {
        let samples = zstd::bulk::decompress(COMPRESSED, SAMPLES * SAMPLE_BYTES)
            .context("the digits in this program cannot be decompressed")?;
        ensure!(
            samples.len() == SAMPLES * SAMPLE_BYTES
                && blake3::hash(&samples).to_hex().as_str() == HASH,
            "the digits in this program are damaged: build or install it again"
        );
        let (training, test) = samples.split_at(TRAINING_SAMPLES * SAMPLE_BYTES);
        Ok((Self::decode(training), Self::decode(test)))
    }

    fn decode(samples: &[u8]) -> Self {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for sample in samples.as_chunks::<SAMPLE_BYTES>().0 {
            let [image @ .., label] = sample;
            pixels.extend(image.iter().map(|pixel| f32::from(*pixel) / 16.0));
            labels.push(*label);
        }
        Self { pixels, labels }
    }

    /// The number of samples.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The [`PIXELS`] of sample `index`, row by row, from 0 (paper) to 1 (ink), and its label.
    pub(crate) fn sample(&self, index: usize) -> (&[f32], usize) {
        let image = &self.pixels[index * PIXELS..(index + 1) * PIXELS];
        (image, usize::from(self.labels[index]))
    }
}

#[cfg(test)]
mod tests;
