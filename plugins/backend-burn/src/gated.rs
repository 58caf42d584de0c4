//! Gated activations of the feed-forward block.

use std::f64::consts::PI;

use burn_tensor::Tensor;
use burn_tensor::activation::{sigmoid, silu};
use sppo_model::ops::Activation;

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
