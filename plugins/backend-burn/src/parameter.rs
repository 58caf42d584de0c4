//! A weight with its gradient and the optimiser's state, and the optimisers' steps.

use burn_tensor::{Device, IndexingUpdateOp, Int, Tensor};
use sppo_model::ops::{UpdateRule, ensure_state};
use sppo_model::{ModelError, Result};
use sppo_plugin::Optimizer;

use crate::tensors::{download, upload};

/// A weight, its gradient and the optimiser's state, all f32. A vector is kept as a matrix of one row.
#[derive(Debug)]
pub struct Parameter {
    value: Tensor<2>,
    trainable: bool,
    /// Operations make new tensors, so a cleared gradient's memory could not be used again.
    gradient: Option<Tensor<2>>,
    state: Vec<Tensor<2>>,
}

impl Parameter {
    pub(crate) fn new(
        values: Vec<f32>,
        shape: &[usize],
        trainable: bool,
        device: &Device,
    ) -> Result<Self> {
        let shape = match *shape {
            [length] => [1, length],
            [rows, columns] => [rows, columns],
            _ => {
                return Err(ModelError::Backend(format!(
                    "a weight has rank 1 or 2, not the shape {shape:?}"
                )));
            }
        };
        let value = upload(values, shape, device)?;
        Ok(Self { value, trainable, gradient: None, state: Vec::new() })
    }

    /// The weight itself.
    pub(crate) fn value(&self) -> Tensor<2> {
        self.value.clone()
    }

    /// The accumulated gradient, if any.
    pub(crate) fn gradient(&self) -> Option<&Tensor<2>> {
        self.gradient.as_ref()
    }

    /// Adds to the gradient of a trained weight.
    pub(crate) fn accumulate(&mut self, addend: impl FnOnce() -> Tensor<2>) {
        if self.trainable {
            self.gradient = Some(match self.gradient.take() {
                Some(sum) => sum + addend(),
                None => addend(),
            });
        }
    }

    /// Adds to some rows of the gradient; a row may repeat.
    pub(crate) fn accumulate_rows(&mut self, rows: Tensor<1, Int>, addends: Tensor<2>) {
        if self.trainable {
            let sum = self.gradient.take().unwrap_or_else(|| self.value.zeros_like());
            self.gradient = Some(sum.select_assign(0, rows, addends, IndexingUpdateOp::Add));
        }
    }

    /// Sum of squares of the gradient; 0 when there is none. Rows are summed up in f64.
    pub(crate) fn gradient_square_sum(&self) -> Result<f64> {
        let Some(gradient) = &self.gradient else { return Ok(0.0) };
        let of_rows = download(&gradient.clone().square().sum_dim(1))?;
        Ok(of_rows.into_iter().map(f64::from).sum())
    }

    /// Forgets the gradient.
    pub(crate) fn clear_gradient(&mut self) {
        self.gradient = None;
    }

    /// The optimiser's state.
    pub(crate) fn state(&self) -> &[Tensor<2>] {
        &self.state
    }

    /// Replaces the optimiser's state.
    pub(crate) fn set_state(&mut self, state: Vec<Vec<f32>>) -> Result<()> {
        let (shape, device) = (self.value.dims(), self.value.device());
        self.state = state
            .into_iter()
            .map(|values| upload(values, shape, &device))
            .collect::<Result<_>>()?;
        Ok(())
    }

    /// Applies the gradient; nothing happens without one.
    pub(crate) fn update(&mut self, rule: &UpdateRule) -> Result<()> {
        let Some(gradient) = self.gradient.clone().filter(|_| self.trainable) else {
            return Ok(());
        };
        let zeros = || Ok::<_, ModelError>(self.value.zeros_like());
        ensure_state(&mut self.state, &rule.optimizer, zeros)?;
        apply(rule, &mut self.value, gradient, &mut self.state);
        Ok(())
    }
}

/// Applies a gradient to a weight; `state` has as many tensors as the optimiser keeps.
fn apply(rule: &UpdateRule, value: &mut Tensor<2>, gradient: Tensor<2>, state: &mut [Tensor<2>]) {
    let rate = rule.learning_rate;
    let gradient = gradient * rule.gradient_scale;
    match (&rule.optimizer, state) {
        (Optimizer::RmsProp { alpha, epsilon }, [averages]) => {
            let squares = gradient.clone().square() * (1.0 - alpha);
            averages.inplace(|averages| averages * *alpha + squares);
            let divisors = averages.clone().sqrt() + *epsilon;
            value.inplace(|value| value - gradient / divisors * rate);
        }
        (Optimizer::AdamW { beta1, beta2, epsilon, weight_decay }, [first, second]) => {
            let steps = rule.step.min(i32::MAX as u64) as i32;
            let (correction1, correction2) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
            let squares = gradient.clone().square() * (1.0 - beta2);
            first.inplace(|first| first * *beta1 + gradient * (1.0 - beta1));
            second.inplace(|second| second * *beta2 + squares);
            let divisors = second.clone().sqrt() / correction2.sqrt() + *epsilon;
            let change = first.clone() / divisors * (rate / correction1);
            value.inplace(|value| value * (1.0 - rate * weight_decay) - change);
        }
        (Optimizer::Sgd { momentum }, [velocities]) => {
            velocities.inplace(|velocities| velocities * *momentum + gradient);
            value.inplace(|value| value - velocities.clone() * rate);
        }
        _ => value.inplace(|value| value - gradient * rate),
    }
}
