//! A multilayer perceptron: its forward pass, its loss, and its gradient by hand.
//!
//! All parameters stand in one flat vector, tensor after tensor, so that a reduction over ranks is
//! one message. Every sum has one order, in plain loops of additions and multiplications that the
//! compiler may not reorder: the same bytes come out on every run. Only `exp` and `ln` come from the
//! platform, so two machines agree to the bit if their mathematical libraries do.

use std::ops::Range;

use super::rng::{Rng, Stream, seeded};

/// One tensor among the parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    /// For example `layer0.weight`.
    pub(crate) name: String,
    /// `[inputs, outputs]` for a weight, `[outputs]` for a bias; row-major.
    pub(crate) shape: Vec<u64>,
    /// Its place in the flat vector.
    pub(crate) range: Range<usize>,
}

impl Parameter {
    /// The size of the first dimension.
    pub(crate) fn rows(&self) -> usize {
        self.shape[0] as usize
    }

    /// The place of some of its rows in the flat vector.
    pub(crate) fn rows_range(&self, rows: &Range<usize>) -> Range<usize> {
        let columns = self.range.len() / self.rows();
        self.range.start + rows.start * columns..self.range.start + rows.end * columns
    }
}

/// Fully connected layers with ReLU between them and the softmax cross-entropy as loss.
#[derive(Debug)]
pub(crate) struct Network {
    layers: Vec<Layer>,
    parameters: Vec<Parameter>,
}

/// `y = x W + b`.
#[derive(Debug)]
struct Layer {
    weight: Range<usize>,
    bias: Range<usize>,
}

/// What the passes over one sample leave behind: reused memory, no state.
#[derive(Debug)]
pub(crate) struct Activations {
    /// The input of each layer, and the logits.
    values: Vec<Vec<f32>>,
    /// The derivatives of the loss by `values`; by the input they are not computed.
    slopes: Vec<Vec<f32>>,
}

impl Activations {
    /// The logits of the last forward pass.
    pub(crate) fn logits(&self) -> &[f32] {
        self.values.last().map_or(&[], Vec::as_slice)
    }

    /// The class that the last forward pass finds likeliest.
    pub(crate) fn likeliest(&self) -> usize {
        let best = self.logits().iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
        best.map_or(0, |(class, _)| class)
    }
}

impl Network {
    /// A network whose layers have these widths, from the inputs to the classes.
    pub(crate) fn new(widths: &[usize]) -> Self {
        let (mut layers, mut parameters) = (Vec::new(), Vec::new());
        let mut end = 0;
        let mut place = |name: String, shape: &[usize]| {
            let range = end..end + shape.iter().product::<usize>();
            end = range.end;
            let shape = shape.iter().map(|size| *size as u64).collect();
            parameters.push(Parameter { name, shape, range: range.clone() });
            range
        };
        for (index, pair) in widths.windows(2).enumerate() {
            layers.push(Layer {
                weight: place(format!("layer{index}.weight"), pair),
                bias: place(format!("layer{index}.bias"), &pair[1..]),
            });
        }
        Self { layers, parameters }
    }

    /// The tensors in the order of the flat vector.
    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The length of the flat vector.
    pub(crate) fn len(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.range.end)
    }

    /// The parameters to begin with: biases of 0, and weights that keep the variance from layer to
    /// layer (He et al., 2015).
    pub(crate) fn initial(&self, seed: u64) -> Vec<f32> {
        let mut state = seeded(seed, Stream::Weights);
        let mut rng = Rng(&mut state);
        let mut flat = vec![0.0; self.len()];
        for layer in &self.layers {
            let inputs = layer.weight.len() / layer.bias.len();
            let bound = (6.0 / inputs as f32).sqrt();
            for weight in &mut flat[layer.weight.clone()] {
                *weight = (2.0 * rng.unit() - 1.0) * bound;
            }
        }
        flat
    }

    /// Memory for the passes over one sample at a time.
    pub(crate) fn activations(&self) -> Activations {
        let inputs = self.layers.first().map(|layer| layer.weight.len() / layer.bias.len());
        let widths = inputs.into_iter().chain(self.layers.iter().map(|layer| layer.bias.len()));
        let values: Vec<Vec<f32>> = widths.map(|width| vec![0.0; width]).collect();
        Activations { slopes: values.clone(), values }
    }

    /// Computes the logits of one sample.
    pub(crate) fn forward(&self, flat: &[f32], input: &[f32], activations: &mut Activations) {
        activations.values[0].copy_from_slice(input);
        for (index, layer) in self.layers.iter().enumerate() {
            let (below, above) = activations.values.split_at_mut(index + 1);
            let (x, y) = (&below[index], &mut above[0]);
            y.copy_from_slice(&flat[layer.bias.clone()]);
            for (x, row) in x.iter().zip(flat[layer.weight.clone()].chunks_exact(y.len())) {
                // Half of the values are 0, by ReLU or as paper, and add nothing.
                if *x != 0.0 {
                    add_scaled(y, *x, row);
                }
            }
            if index + 1 < self.layers.len() {
                y.iter_mut().for_each(|y| *y = y.max(0.0));
            }
        }
    }

    /// Adds the gradient of the loss of one sample to `gradient` and gives the loss.
    pub(crate) fn add_gradient(
        &self,
        flat: &[f32],
        (input, label): (&[f32], usize),
        activations: &mut Activations,
        gradient: &mut [f32],
    ) -> f32 {
        self.forward(flat, input, activations);
        let Activations { values, slopes } = activations;
        let depth = self.layers.len();
        let loss = cross_entropy(&values[depth], label, &mut slopes[depth]);
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let (below, above) = slopes.split_at_mut(index + 1);
            let (x, dx, dy) = (&values[index], &mut below[index], &above[0]);
            add_scaled(&mut gradient[layer.bias.clone()], 1.0, dy);
            let rows = gradient[layer.weight.clone()].chunks_exact_mut(dy.len());
            for (x, row) in x.iter().zip(rows) {
                if *x != 0.0 {
                    add_scaled(row, *x, dy);
                }
            }
            if index > 0 {
                let rows = flat[layer.weight.clone()].chunks_exact(dy.len());
                for ((dx, x), row) in dx.iter_mut().zip(x).zip(rows) {
                    // ReLU lets the slope through where it let the value through.
                    *dx = if *x > 0.0 { dot(row, dy) } else { 0.0 };
                }
            }
        }
        loss
    }
}

/// The loss of `logits` for `label`, and its derivatives by them.
fn cross_entropy(logits: &[f32], label: usize, slopes: &mut [f32]) -> f32 {
    // Without the largest one taken off, exp would overflow.
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (slope, logit) in slopes.iter_mut().zip(logits) {
        *slope = (logit - largest).exp();
    }
    let sum: f32 = slopes.iter().sum();
    slopes.iter_mut().for_each(|slope| *slope /= sum);
    slopes[label] -= 1.0;
    sum.ln() + largest - logits[label]
}

/// `y += a x`, element by element.
fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// The sum of `a[i] b[i]`, in eight partial sums that a vector register holds: a single one would
/// have to wait for every addition.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests;
