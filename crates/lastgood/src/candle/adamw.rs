//! AdamW whose state can be saved.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};
use lastgood_format::{Error, Result};
use serde::{Deserialize, Serialize};

use super::vars;
use crate::state::{Component, Part, Slots};

/// The AdamW of `candle-nn`, operation for operation and so bit for bit, with a state that can be saved:
/// candle-nn's keeps its moments and its count of steps private.
///
/// Ilya Loshchilov and Frank Hutter, "Decoupled Weight Decay Regularization", 2019.
#[derive(Debug)]
pub struct AdamW {
    vars: Vec<Moments>,
    steps: u64,
    params: ParamsAdamW,
}

#[derive(Debug)]
struct Moments {
    name: String,
    var: Var,
    first: Var,
    second: Var,
}

impl AdamW {
    /// An optimizer of the variables of `map`, under their names.
    ///
    /// # Errors
    /// candle's own, if there is no memory for the moments; none of lastgood's kinds (`Overloaded` and so on).
    pub fn of(map: &VarMap, params: ParamsAdamW) -> candle_core::Result<Self> {
        Self::named(vars::named(map), params)
    }

    /// An optimizer of `vars`, each with the name under which its moments are saved. Those that are no
    /// floats are left out, and a variable that has several names is optimized once.
    ///
    /// # Errors
    /// As [`AdamW::of`].
    pub fn named(named: BTreeMap<String, Var>, params: ParamsAdamW) -> candle_core::Result<Self> {
        let mut all: Vec<Moments> = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, var) in named {
            if !var.dtype().is_float() || !seen.insert(vars::identity(&var)) {
                continue;
            }
            let zeros = || Var::zeros(var.shape(), var.dtype(), var.device());
            let (first, second) = (zeros()?, zeros()?);
            all.push(Moments { name, var, first, second });
        }
        Ok(Self { vars: all, steps: 0, params })
    }

    /// The number of steps so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The parameters.
    #[must_use]
    pub fn params(&self) -> &ParamsAdamW {
        &self.params
    }

    /// Takes other parameters for the steps to come.
    pub fn set_params(&mut self, params: ParamsAdamW) {
        self.params = params;
    }
}

impl Optimizer for AdamW {
    type Config = ParamsAdamW;

    /// Takes no variables: without their names, moments could come to the wrong ones after a restart, since
    /// [`VarMap::all_vars`] gives them in another order each time. [`AdamW::of`] takes them.
    fn new(vars: Vec<Var>, params: ParamsAdamW) -> candle_core::Result<Self> {
        if !vars.is_empty() {
            candle_core::bail!(
                "AdamW must know the names of its variables: use AdamW::of(&var_map, …)"
            );
        }
        Self::named(BTreeMap::new(), params)
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        self.steps += 1;
        let step = Step::new(&self.params, self.steps);
        for var in &self.vars {
            if let Some(grad) = grads.get(&var.var) {
                var.step(grad, &step)?;
            }
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.params.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.params.lr = lr;
    }
}

/// The numbers of one step, computed as candle-nn computes them.
struct Step<'p> {
    params: &'p ParamsAdamW,
    decay: f64,
    scale_first: f64,
    scale_second: f64,
}

impl<'p> Step<'p> {
    fn new(params: &'p ParamsAdamW, steps: u64) -> Self {
        let exponent = i32::try_from(steps).unwrap_or(i32::MAX);
        Self {
            params,
            decay: params.lr * params.weight_decay,
            scale_first: 1f64 / (1f64 - params.beta1.powi(exponent)),
            scale_second: 1f64 / (1f64 - params.beta2.powi(exponent)),
        }
    }
}

impl Moments {
    /// The operations and their order are those of candle-nn 0.11; the tests compare the bits.
    fn step(&self, grad: &Tensor, step: &Step<'_>) -> candle_core::Result<()> {
        let ParamsAdamW { lr, beta1, beta2, eps, .. } = *step.params;
        let first = ((self.first.as_tensor() * beta1)? + (grad * (1.0 - beta1))?)?;
        let second = ((self.second.as_tensor() * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
        let first_hat = (&first * step.scale_first)?;
        let second_hat = (&second * step.scale_second)?;
        let decayed = (self.var.as_tensor() * (1f64 - step.decay))?;
        let adjusted = (first_hat / (second_hat.sqrt()? + eps)?)?;
        let next = (decayed - (adjusted * lr)?)?;
        self.first.set(&first)?;
        self.second.set(&second)?;
        self.var.set(&next)
    }
}

/// What is no tensor. Numbers as their bits: a decimal may come back as its neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Numbers {
    steps: u64,
    lr: u64,
    beta1: u64,
    beta2: u64,
    eps: u64,
    weight_decay: u64,
}

impl AdamW {
    fn numbers(&self) -> Numbers {
        let ParamsAdamW { lr, beta1, beta2, eps, weight_decay } = self.params;
        Numbers {
            steps: self.steps,
            lr: lr.to_bits(),
            beta1: beta1.to_bits(),
            beta2: beta2.to_bits(),
            eps: eps.to_bits(),
            weight_decay: weight_decay.to_bits(),
        }
    }

    fn set_numbers(steps: &mut u64, params: &mut ParamsAdamW, numbers: &Numbers) {
        *steps = numbers.steps;
        *params = ParamsAdamW {
            lr: f64::from_bits(numbers.lr),
            beta1: f64::from_bits(numbers.beta1),
            beta2: f64::from_bits(numbers.beta2),
            eps: f64::from_bits(numbers.eps),
            weight_decay: f64::from_bits(numbers.weight_decay),
        };
    }
}

impl Component for AdamW {
    fn capture<'a>(&'a self, part: &mut Part<'_, 'a>) -> Result<()> {
        part.value("adamw", &self.numbers())?;
        for var in &self.vars {
            vars::capture_tensor(&format!("{}.first", var.name), &var.first, part)?;
            vars::capture_tensor(&format!("{}.second", var.name), &var.second, part)?;
        }
        Ok(())
    }

    fn restore<'a>(&'a mut self, slots: &mut Slots<'_, 'a>) -> Result<()> {
        let Self { vars, steps, params } = self;
        slots.blob("adamw", |json| {
            let numbers = serde_json::from_slice(&json).map_err(|e| {
                Error::incompatible(format!("the state of AdamW cannot be read: {e}"))
            })?;
            Self::set_numbers(steps, params, &numbers);
            Ok(())
        })?;
        for var in vars {
            vars::restore_var(&format!("{}.first", var.name), &var.first, slots)?;
            vars::restore_var(&format!("{}.second", var.name), &var.second, slots)?;
        }
        Ok(())
    }
}
