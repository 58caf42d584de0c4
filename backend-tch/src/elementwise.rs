//! Gated activations, and selections and sums of rows.

use sppo_model::ops::Activation as ActivationFunction;
use tch::{Kind, Tensor};

use crate::tensors::{TorchResult, dimensions, index};

fn activate(gate: &Tensor, activation: ActivationFunction) -> TorchResult<Tensor> {
    Ok(match activation {
        ActivationFunction::Silu => gate.f_silu()?,
        ActivationFunction::GeluTanh => gate.f_gelu("tanh")?,
    })
}

/// `activation(gate) * up`.
pub(crate) fn gated(
    gate: &Tensor,
    up: &Tensor,
    activation: ActivationFunction,
) -> TorchResult<Tensor> {
    let mut output = activate(gate, activation)?;
    let _ = output.f_mul_(up)?;
    Ok(output)
}

/// Gradients of the gate and of `up`.
pub(crate) fn gated_backward(
    gate: &Tensor,
    up: &Tensor,
    activation: ActivationFunction,
    gradient: &Tensor,
) -> TorchResult<[Tensor; 2]> {
    let mut of_up = activate(gate, activation)?;
    let _ = of_up.f_mul_(gradient)?;
    let of_activated = gradient.f_mul(up)?;
    let of_gate = match activation {
        ActivationFunction::Silu => gate.f_silu_backward(&of_activated)?,
        ActivationFunction::GeluTanh => gate.f_gelu_backward(&of_activated, "tanh")?,
    };
    Ok([of_gate, of_up])
}

/// The given rows of `x`.
pub(crate) fn select_rows(x: &Tensor, rows: &[u32]) -> TorchResult<Tensor> {
    Ok(x.f_index_select(0, &index(rows, x.device())?)?)
}

/// Sums of `gradient` by the row, of `row_count`, that each of its rows was selected from.
pub(crate) fn add_to_rows(
    rows: &[u32],
    row_count: usize,
    gradient: &Tensor,
) -> TorchResult<Tensor> {
    let (_, columns) = dimensions(gradient)?;
    let options = (gradient.f_kind()?, gradient.device());
    let mut sum = Tensor::f_zeros([row_count as i64, columns], options)?;
    let _ = sum.f_index_add_(0, &index(rows, gradient.device())?, gradient)?;
    Ok(sum)
}

/// Sums over all rows, in f32.
pub(crate) fn column_sums(x: &Tensor) -> TorchResult<Tensor> {
    Ok(x.f_sum_dim_intlist([0].as_slice(), false, Kind::Float)?)
}
