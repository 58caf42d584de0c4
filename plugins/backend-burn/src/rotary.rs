//! Rotary position embedding (arXiv 2104.09864) in the Hugging Face layout.

use burn_tensor::{Device, Tensor};
use sppo_model::Result;
use sppo_model::ops::RotaryFrequencies;

use crate::tensors::upload;

/// Cosines and sines of a batch's positions, each `[rows, 1, head_size / 2]`.
pub(crate) struct RotaryTable {
    cosines: Tensor<3>,
    sines: Tensor<3>,
}

impl RotaryTable {
    /// A table for rows at these positions.
    pub(crate) fn new(
        positions: &[u32],
        frequencies: &RotaryFrequencies,
        device: &Device,
    ) -> Result<Self> {
        let shape = [positions.len(), 1, frequencies.frequencies.len()];
        let table = |function: fn(f64) -> f64| {
            let of_position = |&position: &u32| {
                frequencies.angles(position).map(move |angle| function(angle) as f32)
            };
            let values = positions.iter().flat_map(of_position).collect();
            upload(values, shape, device)
        };
        Ok(Self { cosines: table(f64::cos)?, sines: table(f64::sin)? })
    }
}

/// Rotates every head of every row of `x` by its position's angles, or back by them if `inverse`.
///
/// The halves `(a, b)` of a head become `(a cos - b sin, b cos + a sin)`.
pub(crate) fn apply_rotary(x: &Tensor<2>, table: &RotaryTable, inverse: bool) -> Tensor<2> {
    let [rows, columns] = x.dims();
    let half = table.cosines.dims()[2];
    let (cosines, sines) = (table.cosines.clone(), table.sines.clone());
    let sines = if inverse { sines.neg() } else { sines };
    let heads = x.clone().reshape([rows, columns / (2 * half), 2 * half]);
    let first = heads.clone().narrow(2, 0, half);
    let second = heads.narrow(2, half, half);
    let rotated = vec![
        first.clone() * cosines.clone() - second.clone() * sines.clone(),
        second * cosines + first * sines,
    ];
    Tensor::cat(rotated, 2).reshape([rows, columns])
}
