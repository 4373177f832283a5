//! AdamW on one rank's share of the parameters, and the learning rate over time.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The learning rate of each step: a linear warm-up, then half a cosine down to the last step
/// (Loshchilov and Hutter, 2017).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Schedule {
    /// The rate after the warm-up.
    pub(crate) peak: f32,
    /// The steps of the warm-up.
    pub(crate) warmup: u64,
    /// The step at which the rate is 0.
    pub(crate) steps: u64,
}

impl Schedule {
    /// The rate of the step that follows `step` finished ones.
    pub(crate) fn rate(&self, step: u64) -> f32 {
        if step < self.warmup {
            return self.peak * (step + 1) as f32 / (self.warmup + 1) as f32;
        }
        let length = self.steps.saturating_sub(self.warmup).max(1);
        let progress = (step - self.warmup).min(length) as f64 / length as f64;
        (f64::from(self.peak) * 0.5 * (1.0 + (PI * progress).cos())) as f32
    }
}

/// How far the moments look back (Kingma and Ba, 2015), and the bound below the second root.
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.99;
const EPSILON: f32 = 1e-8;

/// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
#[derive(Debug)]
pub(crate) struct AdamW {
    /// Running means of the gradient.
    pub(crate) m: Vec<f32>,
    /// Running means of its square.
    pub(crate) v: Vec<f32>,
    /// The weight decay of each of them.
    decay: Vec<f32>,
}

impl AdamW {
    /// For as many parameters as `decay` has numbers, each the weight decay of one.
    pub(crate) fn new(decay: Vec<f32>) -> Self {
        Self { m: vec![0.0; decay.len()], v: vec![0.0; decay.len()], decay }
    }

    /// Moves `weights` against `gradient`, as the step after `step` finished ones.
    pub(crate) fn update(&mut self, step: u64, rate: f32, gradient: &[f32], weights: &mut [f32]) {
        // The means begin at 0: without a correction they are too small at first.
        let exponent = i32::try_from(step + 1).unwrap_or(i32::MAX);
        let correction1 = 1.0 - f64::from(BETA1).powi(exponent) as f32;
        let correction2 = 1.0 - f64::from(BETA2).powi(exponent) as f32;
        let moments = self.m.iter_mut().zip(&mut self.v).zip(&self.decay);
        for ((((m, v), decay), g), w) in moments.zip(gradient).zip(weights) {
            *m = BETA1 * *m + (1.0 - BETA1) * g;
            *v = BETA2 * *v + (1.0 - BETA2) * g * g;
            let direction = (*m / correction1) / ((*v / correction2).sqrt() + EPSILON);
            *w -= rate * (direction + decay * *w);
        }
    }
}

#[cfg(test)]
mod tests;
