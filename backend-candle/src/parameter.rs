//! A weight with its gradient and the optimiser's state.

use candle_core::Tensor;
use sppo_model::ops::UpdateRule;
use sppo_model::{ModelError, Result};
use sppo_plugin::Optimizer;

use crate::half_matrix::HalfMatrix;
use crate::kernels::matrix::{Destination, Matrix, linear, multiply};
use crate::kernels::optimizer::{AdamW, Momentum, RmsProp, sgd, square_sum};
use crate::kernels::panels::{self, Panels};
use crate::kernels::{elementwise, produce};
use crate::tensors::{Values, modify, tensor, zeros};

/// A weight, its gradient and the optimiser's state, f32, changed in place.
#[derive(Debug)]
pub struct Parameter {
    value: Weight,
    trainable: bool,
    gradient: Gradient,
    state: Vec<Tensor>,
    /// The layout for small batches, while decoding.
    decoding: Decoding,
}

/// The numbers of a weight.
#[derive(Debug)]
enum Weight {
    Full(Tensor),
    /// A matrix that is not trained and whose values bf16 has.
    Half(HalfMatrix),
}

/// In which layout products of few rows read a weight.
#[derive(Debug)]
enum Decoding {
    /// The weight's own; nothing is being decoded.
    Off,
    /// The weight's own, in panels.
    Own,
    /// A copy.
    Copy(Tensor),
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
        let half = match *shape {
            [outputs, inputs] if !trainable => HalfMatrix::new(&values, outputs, inputs),
            _ => None,
        };
        let value = match half {
            Some(half) => Weight::Half(half),
            None => Weight::Full(tensor(values, shape)?),
        };
        let (gradient, decoding) = (Gradient::Absent, Decoding::Off);
        Ok(Self { value, trainable, gradient, state: Vec::new(), decoding })
    }

    /// The weight itself, which must be in f32: a vector, or trained.
    pub(crate) fn value(&self) -> Result<&Tensor> {
        match &self.value {
            Weight::Full(value) => Ok(value),
            Weight::Half(_) => {
                Err(ModelError::Backend("a weight in bf16 stands where it cannot".into()))
            }
        }
    }

    /// All values, row-major.
    pub(crate) fn values(&self) -> Result<Vec<f32>> {
        match &self.value {
            Weight::Full(value) => Ok(Values::of(value)?.to_vec()),
            Weight::Half(half) => Ok(half.values()),
        }
    }

    /// The given rows of a table.
    pub(crate) fn select_rows(&self, rows: &[u32]) -> Result<Vec<f32>> {
        let (_, features) = self.dimensions()?;
        match &self.value {
            Weight::Full(value) => {
                Ok(elementwise::select_rows(&Values::of(value)?, features, rows))
            }
            Weight::Half(half) => Ok(half.select_rows(rows)),
        }
    }

    /// `gradient weight` of `rows` rows: the gradient of a linear op's input.
    pub(crate) fn input_gradient(
        &self,
        gradient: &[f32],
        rows: usize,
        threads: usize,
    ) -> Result<Vec<f32>> {
        let (outputs, inputs) = self.dimensions()?;
        match &self.value {
            Weight::Full(value) => {
                let weight = Values::of(value)?;
                Ok(produce(rows * inputs, |out| {
                    let gradient = Matrix::new(gradient, rows, outputs);
                    let weight = Matrix::new(&weight, outputs, inputs);
                    let destination = Destination::write(out, rows, inputs);
                    multiply(destination, gradient, weight, threads);
                }))
            }
            Weight::Half(half) => Ok(half.input_gradient(gradient, rows, threads)),
        }
    }

    /// `[output, input]` of a linear weight, `[rows, features]` of a table.
    pub(crate) fn dimensions(&self) -> Result<(usize, usize)> {
        match &self.value {
            Weight::Full(value) => value.dims2().map_err(crate::tensors::candle_error),
            Weight::Half(half) => Ok(half.dimensions()),
        }
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
                let value = self.value()?;
                (tensor(zeros(value.elem_count())?, value.dims())?, Accumulation::Overwrite)
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
        let tensors = state.into_iter().map(|values| tensor(values, self.value()?.dims()));
        self.state = tensors.collect::<Result<_>>()?;
        Ok(())
    }

    /// Applies the gradient; nothing happens without one.
    pub(crate) fn update(&mut self, rule: &UpdateRule) -> Result<()> {
        let Gradient::Accumulated(gradient) = &self.gradient else { return Ok(()) };
        if !self.trainable {
            return Ok(());
        }
        self.decoding = Decoding::Off;
        let value = self.value()?.clone();
        let wanted = state_count(&rule.optimizer);
        if self.state.is_empty() {
            for _ in 0..wanted {
                self.state.push(tensor(zeros(value.elem_count())?, value.dims())?);
            }
        } else if self.state.len() != wanted {
            return Err(ModelError::Backend(format!(
                "the optimiser keeps {wanted} state tensors per weight, {} were loaded",
                self.state.len()
            )));
        }
        let gradients = Values::of(gradient)?;
        let gradients: &[f32] = &gradients;
        modify(&value, |values| apply(rule, values, gradients, &self.state))?
    }

    /// Keeps a copy of a matrix that suits small batches, in the memory that a gradient left; a matrix
    /// in bf16 suits them as it is.
    pub(crate) fn prepare_for_decoding(&mut self) -> Result<()> {
        if let Gradient::Cleared(_) = self.gradient {
            self.gradient = Gradient::Absent;
        }
        self.decoding = match &self.value {
            Weight::Full(value) if value.rank() == 2 => {
                let (outputs, inputs) = self.dimensions()?;
                let packed = panels::pack(&Values::of(value)?, outputs, inputs);
                let length = packed.len();
                Decoding::Copy(tensor(packed, &[length])?)
            }
            Weight::Full(_) => Decoding::Off,
            Weight::Half(_) => Decoding::Own,
        };
        Ok(())
    }

    /// Frees the copy.
    pub(crate) fn end_decoding(&mut self) {
        self.decoding = Decoding::Off;
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
        let is_small = (1..=DECODING_ROWS).contains(&rows);
        match (&self.value, &self.decoding) {
            (Weight::Full(_), Decoding::Copy(packed)) if is_small => {
                let packed = Values::of(packed)?;
                Ok(panels::linear(x, rows, Panels::Full(&packed), [inputs, outputs], bias))
            }
            (Weight::Full(value), _) => {
                let weight = Values::of(value)?;
                let weight = Matrix::new(&weight, outputs, inputs).transposed();
                Ok(linear(x, rows, weight, bias, threads))
            }
            (Weight::Half(half), Decoding::Own) if is_small => {
                Ok(half.decoding_linear(x, rows, bias))
            }
            (Weight::Half(half), _) => Ok(half.linear(x, rows, bias, threads)),
        }
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
