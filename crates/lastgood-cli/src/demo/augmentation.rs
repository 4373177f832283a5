//! The disturbance of the images that are learned from: what makes the training depend on random
//! numbers, so that a restore which forgets their generator shows.

use super::digits::PIXELS;
use super::rng::Rng;

const SIDE: usize = 8;

/// How much images are disturbed, so that the network learns neither where a digit stands to the
/// pixel nor how dark its ink is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Augmentation {
    /// How far they are moved at most, in pixels and in each direction.
    pub(crate) shift: f32,
    /// How much each pixel is lightened or darkened at most.
    pub(crate) noise: f32,
}

impl Augmentation {
    /// Writes `image`, disturbed, to `target`. It takes the same count of numbers from `rng` for every
    /// image.
    pub(crate) fn apply(&self, image: &[f32], rng: &mut Rng<'_>, target: &mut [f32; PIXELS]) {
        let mut distance = || self.shift * (2.0 * rng.unit() - 1.0);
        let (down, right) = (distance(), distance());
        for (index, target) in target.iter_mut().enumerate() {
            // Between four pixels each has a weight by how near it is.
            let (y, x) = ((index / SIDE) as f32 - down, (index % SIDE) as f32 - right);
            let (top, left) = (y.floor(), x.floor());
            let (low, far) = (y - top, x - left);
            let row = |row| (1.0 - far) * ink(image, row, left) + far * ink(image, row, left + 1.0);
            let moved = (1.0 - low) * row(top) + low * row(top + 1.0);
            // The difference of two even distributions: small changes are likelier than large ones.
            *target = moved + self.noise * (rng.unit() - rng.unit());
        }
    }
}

/// The pixel at a place, or paper outside of the image.
fn ink(image: &[f32], row: f32, column: f32) -> f32 {
    let inside = |at: f32| (0.0..SIDE as f32).contains(&at);
    if inside(row) && inside(column) { image[row as usize * SIDE + column as usize] } else { 0.0 }
}

#[cfg(test)]
mod tests;
