//! Linear products of few rows, as in decoding, with the weight laid out for them once.
//!
//! ```text
//! weight [outputs, inputs]        panel p, [inputs, 16]: outputs 16 p to 16 p + 15
//!   w[0,0] w[0,1] ...              w[16p,0] w[16p+1,0] ... w[16p+15,0]
//!   w[1,0] w[1,1] ...              w[16p,1] w[16p+1,1] ... w[16p+15,1]
//!   ...                            ...                     (zeros after the last output)
//! ```

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Destination, Matrix};
use super::packing::{LeftRows, tile_height};
use super::produce;
use super::tile::{Ahead, Right, write_tile};
use super::tile_row::{TILE_COLUMNS, tiled};

/// Elements of one panel.
pub(crate) fn panel_elements(inputs: usize) -> usize {
    inputs * TILE_COLUMNS
}

/// A weight laid out as panels.
#[derive(Clone, Copy)]
pub(crate) enum Panels<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// The bits of bf16 numbers.
    Bf16(&'a [u16]),
}

impl<'a> Panels<'a> {
    /// One panel in f32, converted into `scratch` if need be.
    fn panel<'s>(self, index: usize, inputs: usize, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        let length = panel_elements(inputs);
        match self {
            Self::F32(values) => &values[index * length..][..length],
            Self::Bf16(bits) => {
                let panel = &bits[index * length..][..length];
                scratch.clear();
                scratch.extend(panel.iter().map(|&bits| bf16_to_f32(bits)));
                scratch
            }
        }
    }

    /// The memory of one panel; none after the last.
    fn bytes(self, index: usize, inputs: usize) -> &'a [u8] {
        let length = panel_elements(inputs);
        let range = index * length..(index + 1) * length;
        match self {
            Self::F32(values) => bytemuck::cast_slice(values.get(range).unwrap_or_default()),
            Self::Bf16(bits) => bytemuck::cast_slice(bits.get(range).unwrap_or_default()),
        }
    }
}

/// The number of these bits, exactly.
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Lays an `[outputs, inputs]` weight out as panels of 16 outputs, each `[inputs, 16]`, so that
/// products read it from beginning to end.
pub(crate) fn pack(weight: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let panels = outputs.div_ceil(TILE_COLUMNS);
    produce(panels * panel_elements(inputs), |out| {
        out.par_chunks_mut(panel_elements(inputs))
            .zip(weight.par_chunks(panel_elements(inputs)))
            .for_each(|(panel, weight)| {
                if weight.len() < panel.len() {
                    panel.fill(MaybeUninit::new(0.0));
                }
                for (output, weight) in weight.chunks_exact(inputs).enumerate() {
                    let column = panel.iter_mut().skip(output).step_by(TILE_COLUMNS);
                    for (out, &value) in column.zip(weight) {
                        out.write(value);
                    }
                }
            });
    })
}

/// `x weight^T (+ bias)` of `rows` rows. Each row is computed alike, however many there are.
pub(crate) fn linear(
    x: &[f32],
    rows: usize,
    panels: Panels,
    [inputs, outputs]: [usize; 2],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    /// Outputs of which each tile is read often enough to be packed.
    const MANY: usize = 512;
    if rows == 0 {
        return Vec::new();
    }
    let x = Matrix::new(x, rows, inputs);
    let x = if outputs < MANY { LeftRows::Rows(x) } else { LeftRows::new(x, inputs.max(1)) };
    let mut result = produce(rows * outputs, |out| {
        let out = Destination::write(out, rows, outputs);
        (0..outputs.div_ceil(TILE_COLUMNS)).into_par_iter().for_each_init(
            Vec::new,
            |scratch, index| {
                let next = panels.bytes(index + 1, inputs);
                let panel = panels.panel(index, inputs, scratch);
                let columns = index * TILE_COLUMNS..outputs.min((index + 1) * TILE_COLUMNS);
                multiply_panel(&x, rows, panel, next, &out, columns);
            },
        );
    });
    if let Some(bias) = bias {
        for row in result.chunks_exact_mut(outputs) {
            super::elementwise::add_to(bias, row);
        }
    }
    result
}

tiled! {
    /// Writes one panel's columns of a product; meanwhile fetches the next panel's bytes.
    fn multiply_panel<Row>(
        x: &LeftRows,
        rows: usize,
        panel: &[f32],
        next: &[u8],
        out: &Destination,
        columns: Range<usize>,
    ) {
        let right = Right { values: panel, stride: TILE_COLUMNS };
        let depth = panel.len() / TILE_COLUMNS;
        let height = tile_height(rows);
        // One line every few steps of each tile: in one go, the lines would wait for each other.
        let every = rows.div_ceil(height);
        for (first, row) in (0..rows).step_by(height).enumerate() {
            let tile = row..rows.min(row + height);
            let target = out.tile(tile.clone(), columns.clone(), false);
            let left = x.tile(tile.clone(), 0..depth);
            let ahead = Ahead { bytes: next, first, every };
            // SAFETY: each panel has columns of its own, and one task computes it.
            unsafe { write_tile::<Row>(left, right, 0..tile.len(), depth, ahead, target) };
        }
    }
}
