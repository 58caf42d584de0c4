//! Linear products of few rows, as in decoding, with the weight laid out for them once.
//!
//! ```text
//! weight [outputs, inputs]        panel p, [inputs, 16]: outputs 16 p to 16 p + 15
//!   w[0,0] w[0,1] ...              w[16p,0] w[16p+1,0] ... w[16p+15,0]
//!   w[1,0] w[1,1] ...              w[16p,1] w[16p+1,1] ... w[16p+15,1]
//!   ...                            ...                     (zeros after the last output)
//! ```

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::block::{Left, ProductSize, Right, TILE_COLUMNS, Target, multiply_block};
use super::{copy, produce, rows_per_task};

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
    let mut by_panel = vec![0.0; outputs.div_ceil(TILE_COLUMNS) * rows * TILE_COLUMNS];
    by_panel.par_chunks_mut(rows * TILE_COLUMNS).enumerate().for_each_init(
        Vec::new,
        |scratch, (index, values)| {
            let panel = panels.panel(index, inputs, scratch);
            let target = Target { values, stride: TILE_COLUMNS, adds: false };
            let left = Left::Rows { values: x, stride: inputs };
            let right = Right { values: panel, stride: TILE_COLUMNS };
            let size = ProductSize { rows, depth: inputs, columns: TILE_COLUMNS };
            multiply_block(target, left, right, size);
        },
    );
    let mut result = produce(rows * outputs, |out| {
        let rows_out = out.par_chunks_mut(outputs).enumerate();
        rows_out.with_min_len(rows_per_task(outputs)).for_each(|(row, out)| {
            let pieces = by_panel.chunks_exact(rows * TILE_COLUMNS);
            for (out, panel) in out.chunks_mut(TILE_COLUMNS).zip(pieces) {
                copy(&panel[row * TILE_COLUMNS..][..out.len()], out);
            }
        });
    });
    if let Some(bias) = bias {
        for row in result.chunks_exact_mut(outputs) {
            super::elementwise::add_to(bias, row);
        }
    }
    result
}
