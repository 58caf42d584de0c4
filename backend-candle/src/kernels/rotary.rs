//! Rotary position embedding (arXiv 2104.09864) in the Hugging Face layout.

use rayon::prelude::*;
use sppo_model::ops::RotaryFrequencies;

use super::vector::{multiply_add, vectorised};
use super::{Uninitialised, produce, rows_per_task};

/// Cosines and sines of every position up to some length.
pub(crate) struct RotaryTable {
    frequencies: RotaryFrequencies,
    positions: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RotaryTable {
    /// A table for positions below `positions`.
    pub(crate) fn new(frequencies: &RotaryFrequencies, positions: usize) -> Self {
        let angles = (0..positions).flat_map(|position| frequencies.angles(position as u32));
        let (cosines, sines) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { frequencies: frequencies.clone(), positions, cosines, sines }
    }

    /// Whether the table has these frequencies.
    pub(crate) fn is_for(&self, frequencies: &RotaryFrequencies) -> bool {
        self.frequencies == *frequencies
    }

    /// Number of positions in the table.
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }
}

/// Which way to turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    /// The inverse, which is also the transpose: the backward pass.
    Backward,
}

vectorised! {
    fn turn_row(x: &[f32], cosines: &[f32], sines: &[f32], sign: f32, out: &mut Uninitialised) {
        let half = cosines.len();
        for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
            let (first, second) = x.split_at(half);
            let (first_out, second_out) = out.split_at_mut(half);
            let turns = cosines.iter().zip(sines).zip(first.iter().zip(second));
            let outs = first_out.iter_mut().zip(second_out);
            for ((first_out, second_out), ((&cosine, &sine), (&first, &second))) in outs.zip(turns) {
                let sine = sign * sine;
                first_out.write(multiply_add::<FUSED>(first, cosine, -second * sine));
                second_out.write(multiply_add::<FUSED>(second, cosine, first * sine));
            }
        }
    }
}

/// Turns every head of every row of `x` (`columns` features) by its position's angles.
pub(crate) fn rotary(
    x: &[f32],
    columns: usize,
    positions: &[u32],
    table: &RotaryTable,
    direction: Direction,
) -> Vec<f32> {
    let half = table.frequencies.frequencies.len();
    assert_eq!(x.len(), columns * positions.len(), "each row has one position");
    assert_eq!(columns % (2 * half), 0, "rows are not whole heads");
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
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
                    turn_row(x, cosines, sines, sign, out);
                }
            });
    })
}
