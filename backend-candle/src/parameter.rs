//! A weight with its gradient and the optimiser's state.

use candle_core::Tensor;
use sppo_kernels::bf16_matrix::Bf16Matrix;
use sppo_kernels::matrix::{Destination, Matrix, linear, multiply};
use sppo_kernels::optimizer::{AdamW, Momentum, RmsProp, sgd, square_sum};
use sppo_kernels::panels::{self, FEW_ROWS, PanelWeight, Panels};
use sppo_kernels::{elementwise, quantized_products};
use sppo_model::formats::QuantizedMatrix;
use sppo_model::ops::{Accumulation, GradientSlot, UpdateRule, ensure_state};
use sppo_model::{ModelError, Result};
use sppo_plugin::Optimizer;

use crate::tensors::{Values, dimensions, modify, tensor, zeros};

/// A weight, its gradient and the optimiser's state, f32, changed in place.
#[derive(Debug)]
pub struct Parameter {
    value: Weight,
    trainable: bool,
    gradient: GradientSlot<Tensor>,
    state: Vec<Tensor>,
    decoding: DecodingLayout,
}

/// The numbers of a weight.
#[derive(Debug)]
enum Weight {
    F32(Tensor),
    /// A matrix that is not trained and whose values bf16 holds exactly.
    Bf16(Bf16Matrix),
    /// A matrix that is not trained, in the blocks of its file.
    Quantized(QuantizedMatrix),
}

/// The layout from which products of few rows read a weight.
#[derive(Debug)]
enum DecodingLayout {
    /// Row-major: nothing is being decoded.
    Off,
    /// The panels or blocks that the weight itself is kept in.
    Own,
    /// A copy in panels.
    Copy(Tensor),
}

impl Weight {
    fn in_f32(&self) -> Result<&Tensor> {
        match self {
            Self::F32(value) => Ok(value),
            Self::Bf16(_) | Self::Quantized(_) => Err(ModelError::Backend(
                "this op takes no weight that is kept in another form than f32".into(),
            )),
        }
    }
}

impl Parameter {
    pub(crate) fn new(values: Vec<f32>, shape: &[usize], trainable: bool) -> Result<Self> {
        let bf16 = match *shape {
            [outputs, inputs] if !trainable => Bf16Matrix::new(&values, outputs, inputs),
            _ => None,
        };
        let value = match bf16 {
            Some(matrix) => Weight::Bf16(matrix),
            None => Weight::F32(tensor(values, shape)?),
        };
        Ok(Self::of(value, trainable))
    }

    /// A matrix that is not trained and stays in its blocks.
    pub(crate) fn quantized(matrix: QuantizedMatrix) -> Self {
        Self::of(Weight::Quantized(matrix), false)
    }

    fn of(value: Weight, trainable: bool) -> Self {
        let (gradient, decoding) = (GradientSlot::Absent, DecodingLayout::Off);
        Self { value, trainable, gradient, state: Vec::new(), decoding }
    }

    /// The weight itself, which must be in f32: a vector, or trained.
    pub(crate) fn value(&self) -> Result<&Tensor> {
        self.value.in_f32()
    }

    /// All values, row-major.
    pub(crate) fn values(&self) -> Result<Vec<f32>> {
        match &self.value {
            Weight::F32(value) => Ok(Values::of(value)?.to_vec()),
            Weight::Bf16(matrix) => Ok(matrix.values()),
            Weight::Quantized(matrix) => Ok(matrix.values()),
        }
    }

    /// The given rows of a table.
    pub(crate) fn select_rows(&self, rows: &[u32]) -> Result<Vec<f32>> {
        let (_, features) = self.dimensions()?;
        match &self.value {
            Weight::F32(value) => Ok(elementwise::select_rows(&Values::of(value)?, features, rows)),
            Weight::Bf16(matrix) => Ok(matrix.select_rows(rows)),
            Weight::Quantized(matrix) => Ok(quantized_products::select_rows(matrix, rows)),
        }
    }

    /// `gradient weight` of `rows` rows: the gradient of a linear op's input.
    pub(crate) fn input_gradient(&self, gradient: &[f32], rows: usize) -> Result<Vec<f32>> {
        let (outputs, inputs) = self.dimensions()?;
        match &self.value {
            Weight::F32(value) => {
                let weight = Values::of(value)?;
                Ok(linear(gradient, rows, Matrix::new(&weight, outputs, inputs), None))
            }
            Weight::Bf16(matrix) => Ok(matrix.input_gradient(gradient, rows)),
            Weight::Quantized(matrix) => {
                Ok(quantized_products::input_gradient(matrix, gradient, rows))
            }
        }
    }

    /// `[output, input]` of a linear weight, `[rows, features]` of a table.
    pub(crate) fn dimensions(&self) -> Result<(usize, usize)> {
        match &self.value {
            Weight::F32(value) => dimensions(value),
            Weight::Bf16(matrix) => Ok(matrix.dimensions()),
            Weight::Quantized(matrix) => Ok(matrix.dimensions().into()),
        }
    }

    /// The accumulated gradient, if any.
    pub(crate) fn gradient(&self) -> Option<&Tensor> {
        self.gradient.get()
    }

    /// Lets a backward pass add to the gradient of a trained weight.
    pub(crate) fn accumulate(
        &mut self,
        add: impl FnOnce(&mut [f32], Accumulation) + Send,
    ) -> Result<()> {
        if !self.trainable {
            return Ok(());
        }
        let value = self.value.in_f32()?;
        self.gradient.accumulate(
            || tensor(zeros(value.elem_count())?, value.dims()),
            |gradient, accumulation| modify(gradient, |values| add(values, accumulation)),
        )
    }

    /// Adds `output_gradient^T x` of `rows` rows: the gradient of a linear weight.
    pub(crate) fn accumulate_product(
        &mut self,
        output_gradient: &[f32],
        x: &[f32],
        rows: usize,
    ) -> Result<()> {
        let (outputs, inputs) = self.dimensions()?;
        let output_gradient = Matrix::new(output_gradient, rows, outputs);
        let x = Matrix::new(x, rows, inputs);
        self.accumulate(|sum, accumulation| {
            let destination = match accumulation {
                Accumulation::Overwrite => Destination::replace(sum, outputs, inputs),
                Accumulation::Add => Destination::add(sum, outputs, inputs),
            };
            multiply(destination, output_gradient.transposed(), x);
        })
    }

    /// Adds the sum of the rows of `output_gradient`: the gradient of a bias.
    pub(crate) fn accumulate_row_sums(&mut self, output_gradient: &[f32]) -> Result<()> {
        self.accumulate(|sum, accumulation| {
            if accumulation == Accumulation::Overwrite {
                sum.fill(0.0);
            }
            elementwise::add_row_sums(output_gradient, sum);
        })
    }

    /// Sum of squares of the gradient; 0 when there is none.
    pub(crate) fn gradient_square_sum(&self) -> Result<f64> {
        self.gradient().map_or(Ok(0.0), |gradient| Ok(square_sum(&Values::of(gradient)?)))
    }

    /// Forgets the gradient and keeps its memory.
    pub(crate) fn clear_gradient(&mut self) {
        self.gradient.clear();
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
        let Some(gradient) = self.gradient.get().filter(|_| self.trainable) else {
            return Ok(());
        };
        self.decoding = DecodingLayout::Off;
        let value = self.value.in_f32()?;
        ensure_state(&mut self.state, &rule.optimizer, || {
            tensor(zeros(value.elem_count())?, value.dims())
        })?;
        let gradients = Values::of(gradient)?;
        let gradients: &[f32] = &gradients;
        modify(value, |values| apply(rule, values, gradients, &self.state))?
    }

    /// Keeps a copy of a matrix in panels, in the memory that a gradient left; a matrix in bf16 is in
    /// panels already, and one in blocks stays so.
    pub(crate) fn prepare_for_decoding(&mut self) -> Result<()> {
        self.gradient.free_cleared();
        self.decoding = match &self.value {
            Weight::F32(value) if value.rank() == 2 => {
                let (outputs, inputs) = self.dimensions()?;
                let packed = panels::pack(&Values::of(value)?, outputs, inputs);
                let length = packed.len();
                DecodingLayout::Copy(tensor(packed, &[length])?)
            }
            Weight::F32(_) => DecodingLayout::Off,
            Weight::Bf16(_) | Weight::Quantized(_) => DecodingLayout::Own,
        };
        Ok(())
    }

    /// Frees the copy.
    pub(crate) fn end_decoding(&mut self) {
        self.decoding = DecodingLayout::Off;
    }

    /// `x weight^T (+ bias)` of `rows` rows, in whichever layout is faster.
    pub(crate) fn linear(&self, x: &[f32], rows: usize, bias: Option<&[f32]>) -> Result<Vec<f32>> {
        let (outputs, inputs) = self.dimensions()?;
        if let Some(panels) = self.decoding_panels(rows)? {
            return Ok(panels::linear(x, [rows, inputs], panels.weight(), bias));
        }
        match &self.value {
            Weight::F32(value) => {
                let weight = Values::of(value)?;
                let weight = Matrix::new(&weight, outputs, inputs).transposed();
                Ok(linear(x, rows, weight, bias))
            }
            Weight::Bf16(matrix) => Ok(matrix.linear(x, rows, bias)),
            Weight::Quantized(matrix) => match self.decoding {
                DecodingLayout::Own if is_small(rows) => {
                    Ok(quantized_products::decoding_linear(matrix, x, rows, bias))
                }
                _ => Ok(quantized_products::linear(matrix, x, rows, bias)),
            },
        }
    }

    /// [`linear`](Self::linear) with each of these weights, and its bias.
    pub(crate) fn linears(
        x: &[f32],
        rows: usize,
        weights: &[(&Self, Option<&[f32]>)],
    ) -> Result<Vec<Vec<f32>>> {
        let panels = weights.iter().map(|(weight, _)| weight.decoding_panels(rows));
        let panels: Vec<_> = panels.collect::<Result<_>>()?;
        let in_panels: Option<Vec<_>> = panels
            .iter()
            .zip(weights)
            .map(|(panels, &(_, bias))| Some((panels.as_ref()?.weight(), bias)))
            .collect();
        match (in_panels, weights) {
            (Some(in_panels), [(first, _), ..]) => {
                let (_, inputs) = first.dimensions()?;
                Ok(panels::linears(x, [rows, inputs], &in_panels))
            }
            _ => weights.iter().map(|(weight, bias)| weight.linear(x, rows, *bias)).collect(),
        }
    }

    /// The panels that a product of so many rows reads, if it does.
    fn decoding_panels(&self, rows: usize) -> Result<Option<DecodingPanels<'_>>> {
        Ok(match (&self.value, &self.decoding) {
            (_, DecodingLayout::Copy(packed)) if is_small(rows) => {
                let (outputs, _) = self.dimensions()?;
                Some(DecodingPanels::Copy(Values::of(packed)?, outputs))
            }
            (Weight::Bf16(matrix), DecodingLayout::Own) if is_small(rows) => {
                Some(DecodingPanels::Own(matrix))
            }
            _ => None,
        })
    }
}

/// Whether products of so many rows read another layout than those of many.
fn is_small(rows: usize) -> bool {
    (1..=FEW_ROWS).contains(&rows)
}

/// Panels of a weight, borrowed.
enum DecodingPanels<'a> {
    /// A copy in f32, of so many outputs.
    Copy(Values<'a>, usize),
    Own(&'a Bf16Matrix),
}

impl DecodingPanels<'_> {
    fn weight(&self) -> PanelWeight<'_> {
        match self {
            Self::Copy(packed, outputs) => {
                PanelWeight { panels: Panels::F32(packed), outputs: *outputs }
            }
            Self::Own(matrix) => matrix.panels(),
        }
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
