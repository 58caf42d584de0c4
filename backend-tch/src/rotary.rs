//! Rotary position embedding (arXiv 2104.09864) in the Hugging Face layout.

use sppo_model::ops::RotaryFrequencies;
use tch::{Device, Tensor};

use crate::tensors::{TorchResult, dimensions, upload};

/// Cosines and sines of a batch's positions, each `[rows, 1, head_size]`; the sines of the first half
/// of a head are negated.
pub(crate) struct RotaryTable {
    cosines: Tensor,
    sines: Tensor,
}

impl RotaryTable {
    /// A table for rows at these positions.
    pub(crate) fn new(
        positions: &[u32],
        frequencies: &RotaryFrequencies,
        device: Device,
    ) -> TorchResult<Self> {
        let size = 2 * frequencies.frequencies.len();
        let mut cosines = Vec::with_capacity(positions.len() * size);
        let mut sines = Vec::with_capacity(positions.len() * size);
        for &position in positions {
            for sign in [-1.0, 1.0] {
                cosines.extend(frequencies.angles(position).map(|angle| angle.cos() as f32));
                sines.extend(frequencies.angles(position).map(|angle| (sign * angle.sin()) as f32));
            }
        }
        let shape = [positions.len() as i64, 1, size as i64];
        Ok(Self {
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
    let half = size / 2;
    let heads = x.f_view([rows, columns / size, size])?;
    let result = heads.f_mul(&table.cosines)?;
    for (to, from) in [(0, half), (half, 0)] {
        let sine = table.sines.f_narrow(2, if inverse { from } else { to }, half)?;
        let other = heads.f_narrow(2, from, half)?;
        let _ = result.f_narrow(2, to, half)?.f_addcmul_(&other, &sine)?;
    }
    Ok(result.f_view([rows, columns])?)
}
