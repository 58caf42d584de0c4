//! Rotary position embedding (arXiv 2104.09864) in the Hugging Face layout.

use std::convert::Infallible;
use std::rc::Rc;

use rayon::prelude::*;
use sppo_model::ops::{Memo, Position, RotaryFrequencies};

use super::vector::{multiply_add, vectorised};
use super::{Uninitialised, produce, rows_per_task};

/// Tables of those rotations that were asked for last, by frequencies and number of positions. Clones share them.
#[derive(Clone, Default)]
pub struct RotaryTables(Rc<Memo<RotaryFrequencies, usize, RotaryTable>>);

impl RotaryTables {
    /// Fewest positions of a table, so that growing sequences rarely need another.
    const FEWEST_POSITIONS: usize = 1024;

    /// A table that has all these positions.
    #[must_use]
    pub fn table(
        &self,
        frequencies: &RotaryFrequencies,
        positions: &[Position],
    ) -> Rc<RotaryTable> {
        let indices = positions.iter().map(|position| position.index as usize + 1);
        let size = indices.max().unwrap_or(0).next_power_of_two().max(Self::FEWEST_POSITIONS);
        let key = std::slice::from_ref(frequencies);
        let make = || Ok::<_, Infallible>(RotaryTable::new(frequencies, size));
        let Ok(table) = self.0.get_or_insert_with(key, &size, make);
        table
    }
}

/// Cosines and sines of all positions up to some length, each `[positions, pairs]`; then those of long
/// sequences, where they differ.
pub struct RotaryTable {
    head_size: usize,
    pairs: usize,
    positions: usize,
    has_long: bool,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RotaryTable {
    /// A table for positions below `positions`.
    pub fn new(frequencies: &RotaryFrequencies, positions: usize) -> Self {
        let has_long = frequencies.long_frequencies.is_some();
        let place = |index, is_in_long_sequence| Position { index, is_in_long_sequence };
        let all = 0..positions as u32;
        let long = all.clone().filter(|_| has_long).map(|index| place(index, true));
        let places = all.map(|index| place(index, false)).chain(long);
        let (cosines, sines) = places.flat_map(|place| frequencies.turns(place)).unzip();
        let (head_size, pairs) = (frequencies.head_size, frequencies.frequencies.len());
        Self { head_size, pairs, positions, has_long, cosines, sines }
    }

    fn row(&self, position: Position) -> usize {
        let before = if self.has_long && position.is_in_long_sequence { self.positions } else { 0 };
        before + position.index as usize
    }
}

vectorised! {
    /// `x * cos + rotate_half(x) * sin` of every head of a row, where `rotate_half` maps the halves
    /// `(a, b)` of the rotated features to `(-b, a)`; a `sign` of -1 inverts the rotation.
    fn rotate_row(
        x: &[f32],
        head_size: usize,
        cosines: &[f32],
        sines: &[f32],
        sign: f32,
        out: &mut Uninitialised,
    ) {
        let half = cosines.len();
        for (x, out) in x.chunks_exact(head_size).zip(out.chunks_exact_mut(head_size)) {
            let (x, kept) = x.split_at(2 * half);
            let (out, kept_out) = out.split_at_mut(2 * half);
            kept_out.iter_mut().zip(kept).for_each(|(out, &kept)| {
                out.write(kept);
            });
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
/// them if `inverse`, which is the transpose and so the backward pass.
pub fn apply_rotary(
    x: &[f32],
    columns: usize,
    positions: &[Position],
    table: &RotaryTable,
    inverse: bool,
) -> Vec<f32> {
    produce(x.len(), |out| write_rotary(x, columns, positions, table, inverse, out))
}

/// [`apply_rotary`] to memory as long as `x`, all of which it writes.
pub fn write_rotary(
    x: &[f32],
    columns: usize,
    positions: &[Position],
    table: &RotaryTable,
    inverse: bool,
    out: &mut Uninitialised,
) {
    let (head_size, pairs) = (table.head_size, table.pairs);
    assert_eq!([x.len(); 2], [columns * positions.len(), out.len()], "each row has one position");
    assert_eq!(columns % head_size, 0, "rows are not whole heads");
    let sign = if inverse { -1.0 } else { 1.0 };
    let per_task = rows_per_task(columns);
    out.par_chunks_mut(per_task * columns)
        .zip(x.par_chunks(per_task * columns))
        .zip(positions.par_chunks(per_task))
        .for_each(|((out, x), positions)| {
            let rows = out.chunks_exact_mut(columns).zip(x.chunks_exact(columns));
            for ((out, x), &position) in rows.zip(positions) {
                let row = table.row(position) * pairs;
                let (cosines, sines) =
                    (&table.cosines[row..][..pairs], &table.sines[row..][..pairs]);
                rotate_row(x, head_size, cosines, sines, sign, out);
            }
        });
}
