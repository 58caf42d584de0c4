//! Rotary position embedding (arXiv 2104.09864) in the Hugging Face layout.

use rayon::prelude::*;
use sppo_model::ops::RotaryFrequencies;

use super::vector::{multiply_add, vectorised};
use super::{Uninitialised, produce, rows_per_task};

/// Cosines and sines of all positions up to some length, each `[positions, head_size / 2]`.
pub(crate) struct RotaryTable {
    half: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RotaryTable {
    /// A table for positions below `positions`.
    pub(crate) fn new(frequencies: &RotaryFrequencies, positions: usize) -> Self {
        let angles = (0..positions).flat_map(|position| frequencies.angles(position as u32));
        let (cosines, sines) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { half: frequencies.frequencies.len(), cosines, sines }
    }
}

vectorised! {
    /// `x * cos + rotate_half(x) * sin` of every head of a row, where `rotate_half` maps the halves
    /// `(a, b)` of a head to `(-b, a)`; a `sign` of -1 inverts the rotation.
    fn rotate_row(x: &[f32], cosines: &[f32], sines: &[f32], sign: f32, out: &mut Uninitialised) {
        let half = cosines.len();
        for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
            let (first, second) = x.split_at(half);
            let (first_out, second_out) = out.split_at_mut(half);
            let pairs = cosines.iter().zip(sines).zip(first.iter().zip(second));
            let outs = first_out.iter_mut().zip(second_out);
            for ((first_out, second_out), ((&cosine, &sine), (&first, &second))) in outs.zip(pairs) {
                let sine = sign * sine;
                first_out.write(multiply_add::<FUSED>(first, cosine, -second * sine));
                second_out.write(multiply_add::<FUSED>(second, cosine, first * sine));
            }
        }
    }
}

/// Rotates every head of every row of `x` (`columns` features) by its position's angles, or back by
/// them if `inverse`: the inverse is also the transpose, and so the backward pass.
pub(crate) fn apply_rotary(
    x: &[f32],
    columns: usize,
    positions: &[u32],
    table: &RotaryTable,
    inverse: bool,
) -> Vec<f32> {
    let half = table.half;
    assert_eq!(x.len(), columns * positions.len(), "each row has one position");
    assert_eq!(columns % (2 * half), 0, "rows are not whole heads");
    let sign = if inverse { -1.0 } else { 1.0 };
    let per_task = rows_per_task(columns);
    produce(x.len(), |out| {
        out.par_chunks_mut(per_task * columns)
            .zip(x.par_chunks(per_task * columns))
            .zip(positions.par_chunks(per_task))
            .for_each(|((out, x), positions)| {
                let rows = out.chunks_exact_mut(columns).zip(x.chunks_exact(columns));
                for ((out, x), &position) in rows.zip(positions) {
                    let angles = position as usize * half..(position as usize + 1) * half;
                    let (cosines, sines) = (&table.cosines[angles.clone()], &table.sines[angles]);
                    rotate_row(x, cosines, sines, sign, out);
                }
            });
    })
}
