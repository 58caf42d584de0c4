//! Rotary position embedding (arXiv 2104.09864) in the Hugging Face layout, and gated activations.

use std::f64::consts::PI;

use burn_tensor::activation::{sigmoid, silu};
use burn_tensor::{Device, Tensor};
use sppo_model::Result;
use sppo_model::ops::{Activation, Position, RotaryFrequencies};

use crate::tensors::upload;

/// Cosines and sines of a batch's positions, each `[rows, 1, pairs]`.
pub(crate) struct RotaryTable {
    head_size: usize,
    cosines: Tensor<3>,
    sines: Tensor<3>,
}

impl RotaryTable {
    /// A table for rows at these positions.
    pub(crate) fn new(
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        device: &Device,
    ) -> Result<Self> {
        let shape = [positions.len(), 1, frequencies.frequencies.len()];
        let turns = positions.iter().flat_map(|&position| frequencies.turns(position));
        let (cosines, sines): (Vec<f32>, Vec<f32>) = turns.unzip();
        Ok(Self {
            head_size: frequencies.head_size,
            cosines: upload(cosines, shape, device)?,
            sines: upload(sines, shape, device)?,
        })
    }
}

/// Rotates every head of every row of `x` by its position's angles, or back by them if `inverse`.
///
/// The halves `(a, b)` of the rotated features become `(a cos - b sin, b cos + a sin)`.
pub(crate) fn apply_rotary(x: &Tensor<2>, table: &RotaryTable, inverse: bool) -> Tensor<2> {
    let [rows, columns] = x.dims();
    let half = table.cosines.dims()[2];
    let (cosines, sines) = (table.cosines.clone(), table.sines.clone());
    let sines = if inverse { sines.neg() } else { sines };
    let size = table.head_size;
    let heads = x.clone().reshape([rows, columns / size, size]);
    let first = heads.clone().narrow(2, 0, half);
    let second = heads.clone().narrow(2, half, half);
    let mut rotated = vec![
        first.clone() * cosines.clone() - second.clone() * sines.clone(),
        second * cosines + first * sines,
    ];
    if size > 2 * half {
        rotated.push(heads.narrow(2, 2 * half, size - 2 * half));
    }
    Tensor::cat(rotated, 2).reshape([rows, columns])
}

const GELU_CUBIC: f64 = 0.044_715;

fn gelu_root() -> f64 {
    (2.0 / PI).sqrt()
}

/// Factor `(1 + tanh(..)) / 2` by which the tanh approximation of GELU multiplies its input.
fn gelu_factor(x: Tensor<2>) -> Tensor<2> {
    let inner = x.clone() * (x.square() * GELU_CUBIC + 1.0) * gelu_root();
    (inner.tanh() + 1.0) * 0.5
}

/// `activation(gate) * up`.
pub(crate) fn gated(gate: &Tensor<2>, up: &Tensor<2>, activation: Activation) -> Tensor<2> {
    let activated = match activation {
        Activation::Silu => silu(gate.clone()),
        Activation::GeluTanh => gate.clone() * gelu_factor(gate.clone()),
    };
    activated * up.clone()
}

/// Gradients of the gate and of `up`.
///
/// Both activations are `gate * factor(gate)`, with the slope `factor + gate * factor'`.
pub(crate) fn gated_backward(
    gate: &Tensor<2>,
    up: &Tensor<2>,
    activation: Activation,
    gradient: &Tensor<2>,
) -> [Tensor<2>; 2] {
    let gate = gate.clone();
    let (factor, slope) = match activation {
        Activation::Silu => {
            let factor = sigmoid(gate.clone());
            let slope = factor.clone() * (gate.clone() * (factor.clone().neg() + 1.0) + 1.0);
            (factor, slope)
        }
        Activation::GeluTanh => {
            let factor = gelu_factor(gate.clone());
            // The factor is (1 + tanh) / 2, so 4 factor (1 - factor) is the slope of tanh.
            let of_tanh = factor.clone() * (factor.clone().neg() + 1.0) * 4.0;
            let inner = gate.clone().square() * (3.0 * GELU_CUBIC) + 1.0;
            let slope = gate.clone() * of_tanh * inner * (0.5 * gelu_root()) + factor.clone();
            (factor, slope)
        }
    };
    let of_up = gate * factor * gradient.clone();
    [slope * up.clone() * gradient.clone(), of_up]
}
