//! Linear products of few rows, as in decoding, with the weight laid out for them once.
//!
//! ```text
//! weight [outputs, inputs]        panel p, [inputs, 16]: outputs 16 p to 16 p + 15
//!   w[0,0] w[0,1] ...              w[16p,0] w[16p+1,0] ... w[16p+15,0]
//!   w[1,0] w[1,1] ...              w[16p,1] w[16p+1,1] ... w[16p+15,1]
//!   ...                            ...                     (zeros after the last output)
//! ```

use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Destination, Matrix};
use super::packing::{LeftRows, pack_right, tile_height};
use super::tile::{Ahead, Right, write_tile};
use super::tile_row::{TILE_COLUMNS, tiled};
use super::{Uninitialised, produce_all};

/// Elements of one panel.
pub(crate) fn panel_elements(inputs: usize) -> usize {
    inputs * TILE_COLUMNS
}

/// A weight laid out as panels, or to be laid out panel by panel.
#[derive(Clone, Copy)]
pub enum Panels<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// The bits of bf16 numbers.
    Bf16(&'a [u16]),
    /// The weight itself in f32, row-major: no copy is needed, and each product lays it out anew.
    Rows(&'a [f32]),
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
            Self::Rows(weight) => {
                let last = weight.len().min((index + 1) * length);
                let rows = &weight[index * length..last];
                let rows = Matrix::new(rows, rows.len() / inputs, inputs);
                *scratch = pack_right(rows.transposed(), inputs, TILE_COLUMNS);
                scratch
            }
        }
    }

    /// The memory of one panel; none after the last.
    fn bytes(self, index: usize, inputs: usize) -> &'a [u8] {
        let length = panel_elements(inputs);
        let range = index * length..(index + 1) * length;
        match self {
            Self::F32(values) | Self::Rows(values) => {
                bytemuck::cast_slice(values.get(range).unwrap_or_default())
            }
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
#[must_use]
pub fn pack(weight: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    pack_right(Matrix::new(weight, outputs, inputs).transposed(), inputs.max(1), TILE_COLUMNS)
}

/// Most rows for which products with panels are the faster ones.
pub const FEW_ROWS: usize = 64;

/// A weight `[outputs, inputs]` in panels.
#[derive(Clone, Copy)]
pub struct PanelWeight<'a> {
    /// Its layout.
    pub panels: Panels<'a>,
    /// Its rows.
    pub outputs: usize,
}

/// `x weight^T (+ bias)` of `rows` rows with each weight. Each row is computed alike, however many there are, and
/// however many weights.
#[must_use]
pub fn linears(
    x: &[f32],
    [rows, inputs]: [usize; 2],
    weights: &[(PanelWeight, Option<&[f32]>)],
) -> Vec<Vec<f32>> {
    let lengths: Vec<usize> = weights.iter().map(|(weight, _)| rows * weight.outputs).collect();
    let mut results = produce_all(&lengths, |outs| {
        let products = weights.iter().map(|&(weight, _)| weight).zip(outs).collect();
        write_linears(x, [rows, inputs], products);
    });
    for (result, &(_, bias)) in results.iter_mut().zip(weights) {
        let Some(bias) = bias else { continue };
        for row in result.chunks_exact_mut(bias.len().max(1)) {
            super::elementwise::add_to(bias, row);
        }
    }
    results
}

/// [`linears`] with one weight.
#[must_use]
pub fn linear(x: &[f32], size: [usize; 2], weight: PanelWeight, bias: Option<&[f32]>) -> Vec<f32> {
    linears(x, size, &[(weight, bias)]).pop().unwrap_or_default()
}

/// A product to be written, and its place among the panels of all.
struct Product<'a> {
    weight: PanelWeight<'a>,
    first_panel: usize,
    out: Destination<'a>,
}

/// Writes `x weight^T` of `rows` rows with each weight, `[rows, outputs]`. All panels are shared out among the threads
/// at once, so that these wait for each other once.
pub fn write_linears<'a>(
    x: &[f32],
    [rows, inputs]: [usize; 2],
    products: Vec<(PanelWeight<'a>, &'a mut Uninitialised)>,
) {
    /// Panels that one task computes: few, so that threads end at about the same time, also where something else
    /// takes the time of one.
    const PANELS_PER_TASK: usize = 3;
    /// Outputs of which each tile is read often enough to be packed.
    const MANY: usize = 512;
    if rows == 0 {
        return;
    }
    let (mut outputs, mut panels) = (0, 0);
    let place = |(weight, out): (PanelWeight<'a>, _)| {
        let out = Destination::write(out, rows, weight.outputs);
        let product = Product { weight, first_panel: panels, out };
        outputs += weight.outputs;
        panels += weight.outputs.div_ceil(TILE_COLUMNS);
        product
    };
    let products: Vec<_> = products.into_iter().map(place).collect();
    let find = |panel: usize| {
        let product = products.iter().rfind(|product| product.first_panel <= panel);
        product.map(|product| (product, panel - product.first_panel))
    };
    let x = Matrix::new(x, rows, inputs);
    let x = if outputs < MANY { LeftRows::Rows(x) } else { LeftRows::new(x, inputs.max(1)) };
    let panels = (0..panels).into_par_iter().with_max_len(PANELS_PER_TASK);
    panels.for_each_init(Vec::new, |scratch, panel| {
        let Some((Product { weight, out, .. }, index)) = find(panel) else { return };
        let next = find(panel + 1).map(|(next, index)| next.weight.panels.bytes(index, inputs));
        let panel = weight.panels.panel(index, inputs, scratch);
        let columns = index * TILE_COLUMNS..weight.outputs.min((index + 1) * TILE_COLUMNS);
        multiply_panel(&x, rows, panel, next.unwrap_or_default(), out, columns);
    });
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
        let tiles = rows.div_ceil(height);
        for (index, row) in (0..rows).step_by(height).enumerate() {
            let tile = row..rows.min(row + height);
            let target = out.tile(tile.clone(), columns.clone(), false);
            let left = x.tile(tile.clone(), 0..depth);
            let ahead = Ahead::share(next, index, tiles);
            // SAFETY: each panel has columns of its own, and one task computes it.
            unsafe { write_tile::<Row>(left, right, 0..tile.len(), depth, ahead, target) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::random;

    #[test]
    fn a_weight_that_is_laid_out_as_it_is_read_gives_the_same_bits() {
        for (rows, inputs, outputs) in [(1, 24, 16), (5, 40, 37), (40, 100, 600)] {
            let (x, weight) = (random(rows * inputs, 1), random(outputs * inputs, 2));
            let packed = pack(&weight, outputs, inputs);
            let product =
                |panels| linear(&x, [rows, inputs], PanelWeight { panels, outputs }, None);
            let expected = product(Panels::F32(&packed));
            assert_eq!(product(Panels::Rows(&weight)), expected, "{rows} x {inputs} x {outputs}");
            let dot = |row: usize, output: usize| {
                let (x, w) = (&x[row * inputs..][..inputs], &weight[output * inputs..][..inputs]);
                x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
            };
            let exact: Vec<f64> =
                (0..rows * outputs).map(|i| dot(i / outputs, i % outputs)).collect();
            crate::test_support::assert_close(&expected, &exact, 1e-5);
        }
    }

    #[test]
    fn products_of_several_weights_are_those_of_each() {
        for (rows, inputs) in [(1, 24), (5, 40), (40, 100)] {
            let x = random(rows * inputs, 1);
            for outputs in [vec![48, 16, 16], vec![37, 0, 5], vec![0], vec![600, 24, 0], vec![]] {
                let weights: Vec<_> =
                    outputs.iter().map(|outputs| random(outputs * inputs, 2)).collect();
                let bias = random(600, 3);
                let all: Vec<_> = weights
                    .iter()
                    .zip(&outputs)
                    .map(|(weight, &outputs)| {
                        let weight = PanelWeight { panels: Panels::Rows(weight), outputs };
                        (weight, Some(&bias[..outputs]).filter(|_| outputs != 37))
                    })
                    .collect();
                let alone: Vec<_> = all
                    .iter()
                    .map(|&(weight, bias)| linear(&x, [rows, inputs], weight, bias))
                    .collect();
                assert_eq!(linears(&x, [rows, inputs], &all), alone, "{rows} x {outputs:?}");
            }
        }
    }
}
