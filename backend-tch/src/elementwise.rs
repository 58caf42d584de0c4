//! Rotary position embedding (arXiv 2104.09864) in the Hugging Face layout, gated activations, and
//! selections and sums of rows.

use sppo_model::ops::{
    Activation as ActivationFunction, ExpertRows, Position, RotaryFrequencies, Routes,
};
use tch::{Device, Kind, Tensor};

use crate::tensors::{TorchResult, dimensions, download, index, upload};

/// Cosines and sines of a batch's positions, each `[rows, 1, rotated features]`; the sines of the first
/// half are negated.
pub(crate) struct RotaryTable {
    head_size: i64,
    cosines: Tensor,
    sines: Tensor,
}

impl RotaryTable {
    /// A table for rows at these positions.
    pub(crate) fn new(
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        device: Device,
    ) -> TorchResult<Self> {
        let size = 2 * frequencies.frequencies.len();
        let mut cosines = Vec::with_capacity(positions.len() * size);
        let mut sines = Vec::with_capacity(positions.len() * size);
        for &position in positions {
            for sign in [-1.0, 1.0] {
                cosines.extend(frequencies.turns(position).map(|(cosine, _)| cosine));
                sines.extend(frequencies.turns(position).map(|(_, sine)| sign * sine));
            }
        }
        let shape = [positions.len() as i64, 1, size as i64];
        Ok(Self {
            head_size: frequencies.head_size as i64,
            cosines: upload(&cosines, &shape, device)?,
            sines: upload(&sines, &shape, device)?,
        })
    }
}

/// Rotates every head of every row of `x` by its position's angles, or back by them if `inverse`.
///
/// `x * cos + swap_halves(x) * sin`, where the table stores -sin for the first half; so the inverse only
/// swaps the two halves of the table.
pub(crate) fn apply_rotary(x: &Tensor, table: &RotaryTable, inverse: bool) -> TorchResult<Tensor> {
    let (rows, columns) = dimensions(x)?;
    let size = table.cosines.size()[2];
    let (half, kept) = (size / 2, table.head_size - size);
    let heads = x.f_view([rows, columns / table.head_size, table.head_size])?;
    let turned = heads.f_narrow(2, 0, size)?;
    let result = turned.f_mul(&table.cosines)?;
    for (to, from) in [(0, half), (half, 0)] {
        let sine = table.sines.f_narrow(2, if inverse { from } else { to }, half)?;
        let other = turned.f_narrow(2, from, half)?;
        let _ = result.f_narrow(2, to, half)?.f_addcmul_(&other, &sine)?;
    }
    let result = match kept {
        0 => result,
        _ => Tensor::f_cat(&[result, heads.f_narrow(2, size, kept)?], 2)?,
    };
    Ok(result.f_view([rows, columns])?)
}

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

/// Adds gradients of rows of a table to `sum`, at the rows that `tokens` name. Rows that several gradients go to
/// are summed in f32 before they are added, so that a narrower `sum` rounds once.
pub(crate) fn add_to_table(
    sum: &mut Tensor,
    tokens: &Tensor,
    gradient: &Tensor,
) -> TorchResult<()> {
    let gradient = gradient.f_to_kind(Kind::Float)?;
    if sum.f_kind()? == Kind::Float {
        let _ = sum.f_index_add_(0, tokens, &gradient)?;
        return Ok(());
    }
    let (rows, places, _) = tokens.f_internal_unique2(true, true, false)?;
    let shape = [rows.numel() as i64, dimensions(&gradient)?.1];
    let mut of_rows = Tensor::f_zeros(shape, (Kind::Float, sum.device()))?;
    let _ = of_rows.f_index_add_(0, &places, &gradient)?;
    let _ = of_rows.f_add_(&sum.f_index_select(0, &rows)?)?;
    let _ = sum.f_index_copy_(0, &rows, &of_rows.f_to_kind(sum.f_kind()?)?)?;
    Ok(())
}

/// Sums over all rows, in f32.
pub(crate) fn column_sums(x: &Tensor) -> TorchResult<Tensor> {
    Ok(x.f_sum_dim_intlist([0].as_slice(), false, Kind::Float)?)
}

/// The weights of an expert's rows as a column, in the number format of `like`.
fn row_weights(expert: &ExpertRows, like: &Tensor) -> TorchResult<Tensor> {
    let weights = upload(&expert.weights, &[expert.weights.len() as i64, 1], like.device())?;
    Ok(weights.f_to_kind(like.f_kind()?)?)
}

/// The sum of experts' outputs, each at the rows that chose it and with their weights.
pub(crate) fn mixture(parts: &[&Tensor], routes: &Routes) -> TorchResult<Tensor> {
    let columns =
        parts.first().map_or(Ok(0), |part| dimensions(part).map(|(_, columns)| columns))?;
    let options = match parts.first() {
        Some(part) => (part.f_kind()?, part.device()),
        None => (Kind::Float, Device::Cpu),
    };
    let mut sum = Tensor::f_zeros([routes.row_count as i64, columns], options)?;
    for (part, expert) in parts.iter().zip(&routes.experts) {
        let weighted = part.f_mul(&row_weights(expert, part)?)?;
        let _ = sum.f_index_add_(0, &index(&expert.rows, part.device())?, &weighted)?;
    }
    Ok(sum)
}

/// Gradients of an expert's output and of the weights of its rows.
pub(crate) fn mixture_backward(
    part: &Tensor,
    expert: &ExpertRows,
    gradient: &Tensor,
) -> TorchResult<(Tensor, Vec<f32>)> {
    let of_rows = select_rows(gradient, &expert.rows)?;
    let products = of_rows.f_mul(part)?;
    let of_weights = products.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?;
    Ok((of_rows.f_mul(&row_weights(expert, part)?)?, download(&of_weights)?))
}
