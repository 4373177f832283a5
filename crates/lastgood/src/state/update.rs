//! What an optimizer did in its last step: with that, saves predict what it has left behind.

use lastgood_format::delta::{Prediction, Rule};

/// A tensor by the names of its component and itself.
pub type Name = (String, String);

/// How an optimizer has changed one tensor of numbers of binary32 in its last step. Saves with deltas store its numbers
/// smaller if it is right, and the same bytes come back if it is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The optimizer with the numbers of that step.
    pub optimizer: Optimizer,
    /// How many steps it has taken: only the state of the step before predicts this one.
    pub steps: u64,
    /// The tensor.
    pub weight: Name,
    /// Its average of gradients, or its momentum.
    pub first: Name,
    /// Its average of squares of gradients, if the optimizer has one.
    pub second: Option<Name>,
}

/// An optimizer with the numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Optimizer {
    /// Adam, and `AdamW` with a decay.
    Adam {
        /// The learning rate.
        lr: f64,
        /// What is kept of the average of gradients, and of that of squares.
        betas: (f64, f64),
        /// What is added to the root.
        eps: f64,
        /// The decay that is apart from the gradients; 0 for Adam.
        decay: f64,
    },
    /// Gradient descent with momentum.
    Momentum {
        /// The learning rate.
        lr: f64,
        /// What is kept of the momentum.
        momentum: f64,
        /// With the gradient once more.
        nesterov: bool,
    },
    /// Lion.
    Lion {
        /// The learning rate.
        lr: f64,
        /// The shares of the average in the step, and in the next average.
        betas: (f64, f64),
        /// The decay that is apart from the gradients.
        decay: f64,
    },
}

/// Which tensor of an [`Update`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Weight,
    First,
    Second,
}

/// A tensor of an [`Update`] in a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// As it was a step before.
    Before(Role),
    /// As it is.
    Now(Role),
}

impl Optimizer {
    /// From what `role` can be predicted after so many steps, and in which ways.
    pub(crate) fn predictions(self, role: Role, steps: u64) -> (Vec<Origin>, Vec<Prediction>) {
        use Origin::{Before, Now};
        use Role::{First, Second, Weight};
        let (from, rule, constants) = match (self, role) {
            (
                Self::Adam { betas: (kept, _), .. } | Self::Momentum { momentum: kept, .. },
                First,
            )
            | (Self::Lion { betas: (_, kept), .. }, First) => {
                (vec![Before(First)], Rule::Scaled, vec![kept])
            }
            (Self::Adam { betas: (first, second), .. }, Second) => {
                let from = vec![Before(Second), Before(First), Now(First)];
                (from, Rule::Squares, vec![second, 1.0 - second, 1.0 - first])
            }
            (Self::Adam { lr, betas, eps, decay }, Weight) => {
                let correction = |beta: f64| 1.0 - beta.powf(steps as f64);
                let step = -lr / correction(betas.0);
                let constants = vec![1.0 - lr * decay, step, correction(betas.1).sqrt(), eps];
                (vec![Before(Weight), Now(First), Now(Second)], Rule::Adam, constants)
            }
            (Self::Momentum { lr, nesterov: false, .. }, Weight) => {
                (vec![Before(Weight), Now(First)], Rule::Momentum, vec![1.0, -lr])
            }
            (Self::Momentum { lr, momentum, nesterov: true }, Weight) => {
                let from = vec![Before(Weight), Before(First), Now(First)];
                (from, Rule::Nesterov, vec![1.0, -lr, momentum])
            }
            (Self::Lion { lr, betas, decay }, Weight) => {
                let constants = vec![1.0 - lr * decay, -lr, betas.0, 1.0 - betas.0, 1.0 - betas.1];
                (vec![Before(Weight), Before(First), Now(First)], Rule::Sign, constants)
            }
            (Self::Momentum { .. } | Self::Lion { .. }, Second) => return (vec![], vec![]),
        };
        // Libraries compute with numbers of binary32.
        let constants: Vec<f64> = constants.into_iter().map(|c| f64::from(c as f32)).collect();
        let ways: &[bool] = if rule == Rule::Scaled { &[false] } else { &[true, false] };
        let way = |fused: &bool| Prediction { rule, fused: *fused, constants: constants.clone() };
        (from, ways.iter().map(way).collect())
    }
}
