//! A matrix that is not trained, kept in bf16 and converted to f32 part by part where it is used.
//!
//! Products are those of the matrix in f32, bit for bit: parts are cut along outputs (or, backward,
//! inputs), so that no sum is divided.

use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Destination, Matrix, multiply};
use super::panels::{PanelWeight, Panels, bf16_to_f32, panel_elements};
use super::parts::{self, PART_ELEMENTS, parts};
use super::produce;
use super::tile_row::TILE_COLUMNS;

/// `[outputs, inputs]` as panels of 16 outputs, each `[inputs, 16]`: what decoding reads.
#[derive(Debug)]
pub struct Bf16Matrix {
    /// The bits of bf16 numbers: the upper halves of f32.
    panels: Vec<u16>,
    outputs: usize,
    inputs: usize,
}

impl Bf16Matrix {
    /// Packs a row-major matrix; `None` if bf16 cannot hold some value exactly.
    pub fn new(values: &[f32], outputs: usize, inputs: usize) -> Option<Self> {
        let is_exact = |value: &f32| value.to_bits().trailing_zeros() >= 16;
        if inputs == 0 || !values.par_iter().with_min_len(1 << 16).all(is_exact) {
            return None;
        }
        let mut panels = vec![0; outputs.div_ceil(TILE_COLUMNS) * panel_elements(inputs)];
        panels
            .par_chunks_mut(panel_elements(inputs))
            .zip(values.par_chunks(panel_elements(inputs)))
            .for_each(|(panel, values)| {
                for (output, row) in values.chunks_exact(inputs).enumerate() {
                    let column = panel.iter_mut().skip(output).step_by(TILE_COLUMNS);
                    column
                        .zip(row)
                        .for_each(|(bits, value)| *bits = (value.to_bits() >> 16) as u16);
                }
            });
        Some(Self { panels, outputs, inputs })
    }

    /// `[outputs, inputs]`.
    pub fn dimensions(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    /// All values, row-major.
    pub fn values(&self) -> Vec<f32> {
        self.part(0..self.outputs, 0..self.inputs)
    }

    /// The given rows, in order.
    pub fn select_rows(&self, rows: &[u32]) -> Vec<f32> {
        let mut selected = vec![0.0; rows.len() * self.inputs];
        for (out, &row) in selected.chunks_exact_mut(self.inputs).zip(rows) {
            self.read_row(row as usize, 0, out);
        }
        selected
    }

    /// The layout that products of few rows read.
    pub fn panels(&self) -> PanelWeight<'_> {
        PanelWeight { panels: Panels::Bf16(&self.panels), outputs: self.outputs }
    }

    /// `x weight^T (+ bias)`.
    pub fn linear(&self, x: &[f32], rows: usize, bias: Option<&[f32]>) -> Vec<f32> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let panels_per_part = (PART_ELEMENTS / panel_elements(inputs)).max(1);
        let outputs_per_part = panels_per_part * TILE_COLUMNS;
        let part = &mut |part: Range<usize>| self.part(part, 0..inputs);
        parts::linear(x, rows, [inputs, outputs], outputs_per_part, bias, part)
    }

    /// `gradient weight`.
    pub fn input_gradient(&self, gradient: &[f32], rows: usize) -> Vec<f32> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let gradient = Matrix::new(gradient, rows, outputs);
        let columns_per_part = (PART_ELEMENTS / outputs.max(1)).max(TILE_COLUMNS);
        produce(rows * inputs, |out| {
            for part in parts(inputs, columns_per_part) {
                let weight = self.part(0..outputs, part.clone());
                let weight = Matrix::new(&weight, outputs, part.len());
                let destination = Destination::write(out, rows, inputs).columns(part);
                multiply(destination, gradient, weight);
            }
        })
    }

    /// Some rows and columns, in f32, row-major.
    fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
        let mut values = vec![0.0; rows.len() * columns.len()];
        let read = |(row, out): (usize, &mut [f32])| {
            self.read_row(rows.start + row, columns.start, out);
        };
        values.par_chunks_mut(columns.len()).enumerate().with_min_len(16).for_each(read);
        values
    }

    /// Fills `out` with a row from a column on.
    fn read_row(&self, row: usize, column: usize, out: &mut [f32]) {
        let panel = &self.panels[row / TILE_COLUMNS * panel_elements(self.inputs)..];
        let numbers = panel[column * TILE_COLUMNS..].iter().skip(row % TILE_COLUMNS);
        let numbers = numbers.step_by(TILE_COLUMNS);
        out.iter_mut().zip(numbers).for_each(|(out, &bits)| *out = bf16_to_f32(bits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::linear;
    use crate::panels;
    use crate::test_support::random;

    /// Random numbers that bf16 holds exactly.
    fn bf16_values(count: usize, seed: u64) -> Vec<f32> {
        let values = random(count, seed);
        values.iter().map(|value| f32::from_bits(value.to_bits() >> 16 << 16)).collect()
    }

    #[test]
    fn products_are_those_of_the_matrix_in_f32() {
        // The last is cut into parts.
        for (outputs, inputs) in [(5, 12), (48, 70), (2100, 2050)] {
            let weight = bf16_values(outputs * inputs, 1);
            let matrix = Bf16Matrix::new(&weight, outputs, inputs).unwrap();
            assert_eq!(matrix.values(), weight);
            let full = Matrix::new(&weight, outputs, inputs);
            let bias = random(outputs, 2);
            for rows in [1, 3, 20, 70] {
                let x = random(rows * inputs, 3);
                for bias in [None, Some(bias.as_slice())] {
                    let expected = linear(&x, rows, full.transposed(), bias);
                    assert_eq!(matrix.linear(&x, rows, bias), expected, "{rows} x {outputs}");
                    let packed = panels::pack(&weight, outputs, inputs);
                    let in_f32 = PanelWeight { panels: Panels::F32(&packed), outputs };
                    let decoding = |weight| panels::linear(&x, [rows, inputs], weight, bias);
                    assert_eq!(decoding(matrix.panels()), decoding(in_f32));
                }
                let gradient = random(rows * outputs, 4);
                let mut expected = vec![0.0; rows * inputs];
                let destination = Destination::replace(&mut expected, rows, inputs);
                multiply(destination, Matrix::new(&gradient, rows, outputs), full);
                assert_eq!(matrix.input_gradient(&gradient, rows), expected);
            }
            let last = outputs as u32 - 1;
            let selected = matrix.select_rows(&[last, 0]);
            assert_eq!(selected[..inputs], weight[(outputs - 1) * inputs..]);
            assert_eq!(selected[inputs..], weight[..inputs]);
        }
    }

    #[test]
    fn values_that_bf16_does_not_have_are_left_alone() {
        assert!(Bf16Matrix::new(&[1.0, 0.1], 1, 2).is_none());
    }
}
