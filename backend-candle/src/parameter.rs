//! A weight with its gradient and the optimiser's state.

use candle_core::Tensor;
use sppo_core::plugin::Optimizer;
use sppo_model::ops::UpdateRule;
use sppo_model::{ModelError, Result};

use crate::kernels::matrix::{Matrix, linear};
use crate::kernels::optimizer::{AdamW, Momentum, RmsProp, sgd, square_sum};
use crate::kernels::panels;
use crate::tensors::{Values, modify, tensor, zeros};

/// A weight, its gradient and the optimiser's state, f32, changed in place.
#[derive(Debug)]
pub struct Parameter {
    value: Tensor,
    trainable: bool,
    gradient: Gradient,
    state: Vec<Tensor>,
    /// The weight's copy for small batches, while decoding.
    panels: Option<Tensor>,
}

/// Memory of a cleared gradient is kept and overwritten by the next pass, which saves zeroing it.
#[derive(Debug)]
enum Gradient {
    Absent,
    Cleared(Tensor),
    Accumulated(Tensor),
}

/// How a backward pass meets the gradient's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accumulation {
    /// What is there is old and must be overwritten.
    Overwrite,
    /// What is there must be added to.
    Add,
}

impl Parameter {
    pub(crate) fn new(values: Vec<f32>, shape: &[usize], trainable: bool) -> Result<Self> {
        let value = tensor(values, shape)?;
        Ok(Self { value, trainable, gradient: Gradient::Absent, state: Vec::new(), panels: None })
    }

    /// The weight itself.
    pub(crate) fn value(&self) -> &Tensor {
        &self.value
    }

    /// `[output, input]` of a linear weight, `[rows, features]` of a table.
    pub(crate) fn dimensions(&self) -> Result<(usize, usize)> {
        self.value.dims2().map_err(crate::tensors::candle_error)
    }

    /// The accumulated gradient, if any.
    pub(crate) fn gradient(&self) -> Option<&Tensor> {
        match &self.gradient {
            Gradient::Accumulated(gradient) => Some(gradient),
            Gradient::Absent | Gradient::Cleared(_) => None,
        }
    }

    /// Lets a backward pass add to the gradient, where one is wanted.
    pub(crate) fn accumulate(
        &mut self,
        add: impl FnOnce(&mut [f32], Accumulation) + Send,
    ) -> Result<()> {
        if !self.trainable {
            return Ok(());
        }
        let (gradient, accumulation) = match std::mem::replace(&mut self.gradient, Gradient::Absent)
        {
            Gradient::Absent => {
                let shape = self.value.dims();
                (tensor(zeros(self.value.elem_count())?, shape)?, Accumulation::Overwrite)
            }
            Gradient::Cleared(gradient) => (gradient, Accumulation::Overwrite),
            Gradient::Accumulated(gradient) => (gradient, Accumulation::Add),
        };
        modify(&gradient, |values| add(values, accumulation))?;
        self.gradient = Gradient::Accumulated(gradient);
        Ok(())
    }

    /// Sum of squares of the gradient; 0 when there is none.
    pub(crate) fn gradient_square_sum(&self) -> Result<f64> {
        self.gradient().map_or(Ok(0.0), |gradient| Ok(square_sum(&Values::of(gradient)?)))
    }

    /// Forgets the gradient, keeping its memory.
    pub(crate) fn clear_gradient(&mut self) {
        self.gradient = match std::mem::replace(&mut self.gradient, Gradient::Absent) {
            Gradient::Accumulated(memory) => Gradient::Cleared(memory),
            other => other,
        };
    }

    /// The optimiser's state.
    pub(crate) fn state(&self) -> &[Tensor] {
        &self.state
    }

    /// Replaces the optimiser's state.
    pub(crate) fn set_state(&mut self, state: Vec<Vec<f32>>) -> Result<()> {
        let shape = self.value.dims();
        self.state =
            state.into_iter().map(|values| tensor(values, shape)).collect::<Result<_>>()?;
        Ok(())
    }

    /// Applies the gradient; nothing happens without one.
    pub(crate) fn update(&mut self, rule: &UpdateRule) -> Result<()> {
        let Gradient::Accumulated(gradient) = &self.gradient else { return Ok(()) };
        if !self.trainable {
            return Ok(());
        }
        self.panels = None;
        let wanted = state_count(&rule.optimizer);
        if self.state.is_empty() {
            for _ in 0..wanted {
                self.state.push(tensor(zeros(self.value.elem_count())?, self.value.dims())?);
            }
        } else if self.state.len() != wanted {
            return Err(ModelError::Backend(format!(
                "the optimiser keeps {wanted} state tensors per weight, {} were loaded",
                self.state.len()
            )));
        }
        let gradients = Values::of(gradient)?;
        let gradients: &[f32] = &gradients;
        modify(&self.value, |values| apply(rule, values, gradients, &self.state))?
    }

    /// Keeps a copy of a matrix that suits small batches, in the memory that a gradient left.
    pub(crate) fn prepare_for_decoding(&mut self) -> Result<()> {
        if let Gradient::Cleared(_) = self.gradient {
            self.gradient = Gradient::Absent;
        }
        if self.panels.is_none() && self.value.rank() == 2 {
            let (outputs, inputs) = self.dimensions()?;
            let packed = panels::pack(&Values::of(&self.value)?, outputs, inputs);
            let length = packed.len();
            self.panels = Some(tensor(packed, &[length])?);
        }
        Ok(())
    }

    /// Frees the copy.
    pub(crate) fn end_decoding(&mut self) {
        self.panels = None;
    }

    /// `x weight^T (+ bias)` of `rows` rows, in whichever layout is faster.
    pub(crate) fn linear(
        &self,
        x: &[f32],
        rows: usize,
        bias: Option<&[f32]>,
        threads: usize,
    ) -> Result<Vec<f32>> {
        let (outputs, inputs) = self.dimensions()?;
        if let Some(packed) = &self.panels
            && (1..=DECODING_ROWS).contains(&rows)
        {
            return Ok(panels::linear(x, rows, &Values::of(packed)?, [inputs, outputs], bias));
        }
        let weight = Values::of(&self.value)?;
        let weight = Matrix::new(&weight, outputs, inputs).transposed();
        Ok(linear(x, rows, weight, bias, threads))
    }
}

/// Most rows for which the decoding layout is the faster one.
const DECODING_ROWS: usize = 64;

/// State tensors per weight: the mean square; both moments; the velocity.
fn state_count(optimizer: &Optimizer) -> usize {
    match optimizer {
        Optimizer::RmsProp { .. } => 1,
        Optimizer::AdamW { .. } => 2,
        Optimizer::Sgd { momentum } => usize::from(*momentum != 0.0),
    }
}

fn apply(rule: &UpdateRule, values: &mut [f32], gradients: &[f32], state: &[Tensor]) -> Result<()> {
    let (learning_rate, gradient_scale) = (rule.learning_rate as f32, rule.gradient_scale as f32);
    match (&rule.optimizer, state) {
        (Optimizer::RmsProp { alpha, epsilon }, [averages]) => {
            let step = RmsProp {
                learning_rate,
                gradient_scale,
                alpha: *alpha as f32,
                complement: (1.0 - alpha) as f32,
                epsilon: *epsilon as f32,
            };
            modify(averages, |averages| step.apply(values, gradients, averages))
        }
        (Optimizer::AdamW { beta1, beta2, epsilon, weight_decay }, [first, second]) => {
            let constants = [*beta1, *beta2, *epsilon, *weight_decay];
            let step = AdamW::new(constants, rule.learning_rate, rule.gradient_scale, rule.step);
            modify(first, |first| {
                modify(second, |second| step.apply(values, gradients, first, second))
            })?
        }
        (Optimizer::Sgd { momentum }, [velocities]) => {
            let step = Momentum { learning_rate, gradient_scale, momentum: *momentum as f32 };
            modify(velocities, |velocities| step.apply(values, gradients, velocities))
        }
        _ => {
            sgd(values, gradients, learning_rate, gradient_scale);
            Ok(())
        }
    }
}
