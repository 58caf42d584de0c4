//! Products with a matrix that is kept in the blocks of its file, and dequantised part by part where it is used.

use std::ops::Range;

use rayon::prelude::*;
use sppo_model::formats::QuantizedMatrix;

use super::block::{ProductSize, Target, multiply_block};
use super::matrix::{Destination, Matrix, multiply};
use super::panels::{self, panel_elements};
use super::parts::{self, PART_ELEMENTS, parts};
use super::tile::{Left, Right};
use super::tile_row::TILE_COLUMNS;
use super::{copy, elementwise, produce, rows_per_task};

/// Numbers of a part in decoding: they stay in the cache of one core.
const DECODING_ELEMENTS: usize = 64 << 10;
/// Rows of the weight that a tile of a product covers.
const TILE_ROWS: usize = 6;

/// The given rows, in order.
pub fn select_rows(matrix: &QuantizedMatrix, rows: &[u32]) -> Vec<f32> {
    let [_, features] = matrix.dimensions();
    let mut selected = vec![0.0; rows.len() * features];
    let pairs = selected.par_chunks_mut(features.max(1)).zip(rows);
    pairs.for_each(|(out, &row)| matrix.read_row(row as usize, out));
    selected
}

/// `x weight^T (+ bias)` of `rows` rows: bit for bit that of the matrix in f32.
pub fn linear(matrix: &QuantizedMatrix, x: &[f32], rows: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let [outputs, inputs] = matrix.dimensions();
    let part = &mut |part: Range<usize>| dequantized(matrix, part);
    parts::linear(x, rows, [inputs, outputs], rows_per_part(inputs), bias, part)
}

/// `gradient weight` of `rows` rows. Its sums over outputs are made part by part.
pub fn input_gradient(matrix: &QuantizedMatrix, gradient: &[f32], rows: usize) -> Vec<f32> {
    let [outputs, inputs] = matrix.dimensions();
    let mut sum = vec![0.0; rows * inputs];
    for part in parts(outputs, rows_per_part(inputs)) {
        let weight = dequantized(matrix, part.clone());
        let weight = Matrix::new(&weight, part.len(), inputs);
        let gradient = Matrix::new(gradient, rows, outputs).columns(part);
        multiply(Destination::add(&mut sum, rows, inputs), gradient, weight);
    }
    sum
}

/// `x weight^T (+ bias)` of a few rows, as decoding computes it: each row alike, however many there are.
pub fn decoding_linear(
    matrix: &QuantizedMatrix,
    x: &[f32],
    rows: usize,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [outputs, inputs] = matrix.dimensions();
    // the weight's rows stand on the left, so that they need no other layout
    let x = panels::pack(x, rows, inputs);
    let stride = rows.next_multiple_of(TILE_COLUMNS);
    let outputs_per_task = (DECODING_ELEMENTS / inputs.max(1) / TILE_ROWS).max(1) * TILE_ROWS;
    let mut by_output = vec![0.0; outputs * stride];
    by_output.par_chunks_mut(outputs_per_task * stride).enumerate().for_each_init(
        || vec![0.0; outputs_per_task * inputs],
        |weight, (task, out)| {
            let count = out.len() / stride;
            let first = task * outputs_per_task;
            let weight = &mut weight[..count * inputs];
            for (row, weight) in (first..).zip(weight.chunks_exact_mut(inputs)) {
                matrix.read_row(row, weight);
            }
            let left = Left::Rows { values: weight, stride: inputs };
            for (panel, x) in x.chunks_exact(panel_elements(inputs)).enumerate() {
                let values = &mut out[panel * TILE_COLUMNS..];
                let target = Target { values, stride, adds: false };
                let right = Right { values: x, stride: TILE_COLUMNS };
                let size = ProductSize { rows: count, depth: inputs, columns: TILE_COLUMNS };
                multiply_block(target, left, right, size);
            }
        },
    );
    let mut result = by_row(&by_output, rows, outputs, stride);
    if let Some(bias) = bias {
        result.chunks_exact_mut(outputs).for_each(|row| elementwise::add_to(bias, row));
    }
    result
}

/// The first `rows` columns of a matrix `[outputs, stride]`, as rows.
fn by_row(by_output: &[f32], rows: usize, outputs: usize, stride: usize) -> Vec<f32> {
    produce(rows * outputs, |out| {
        let rows_out = out.par_chunks_mut(outputs.max(1)).enumerate();
        rows_out.with_min_len(rows_per_task(outputs)).for_each(|(row, out)| {
            for (out, values) in out.iter_mut().zip(by_output.chunks_exact(stride)) {
                copy(&values[row..=row], std::slice::from_mut(out));
            }
        });
    })
}

fn rows_per_part(inputs: usize) -> usize {
    (PART_ELEMENTS / inputs.max(1)).max(1)
}

fn dequantized(matrix: &QuantizedMatrix, rows: Range<usize>) -> Vec<f32> {
    let [_, columns] = matrix.dimensions();
    let mut values = vec![0.0; rows.len() * columns];
    matrix.read_rows(rows.start, &mut values);
    values
}

#[cfg(test)]
mod tests {
    use sppo_model::formats::GgufType;

    use super::*;
    use crate::matrix;
    use crate::panels::Panels;
    use crate::test_support::{assert_close, random};

    /// Blocks with random integers and scales near 1 / 1000.
    fn q8_0(rows: usize, columns: usize) -> QuantizedMatrix {
        let block = |number: usize| {
            let integers =
                random(32, number as u64).into_iter().map(|value| (value * 60.0) as i8 as u8);
            [(number % 200) as u8, 0x14].into_iter().chain(integers)
        };
        let bytes: Vec<u8> = (0..rows * columns / 32).flat_map(block).collect();
        QuantizedMatrix::of_blocks(GgufType::Q8_0, bytes, [rows, columns]).unwrap()
    }

    #[test]
    fn products_are_those_of_the_matrix_in_f32() {
        // The last is cut into parts.
        for (outputs, inputs) in [(5, 32), (48, 96), (2100, 2048)] {
            let matrix = q8_0(outputs, inputs);
            let weight = matrix.values();
            assert!(weight.iter().any(|value| value.abs() > 1e-3));
            let full = Matrix::new(&weight, outputs, inputs);
            let bias = random(outputs, 2);
            for rows in [1, 3, 20, 64] {
                let x = random(rows * inputs, 3);
                for bias in [None, Some(bias.as_slice())] {
                    let expected = matrix::linear(&x, rows, full.transposed(), bias);
                    assert_eq!(linear(&matrix, &x, rows, bias), expected, "{rows} x {outputs}");
                    let packed = panels::pack(&weight, outputs, inputs);
                    let packed = panels::PanelWeight { panels: Panels::F32(&packed), outputs };
                    let expected = panels::linear(&x, [rows, inputs], packed, bias);
                    assert_eq!(decoding_linear(&matrix, &x, rows, bias), expected);
                }
                let gradient = random(rows * outputs, 4);
                let mut expected = vec![0.0; rows * inputs];
                let destination = Destination::replace(&mut expected, rows, inputs);
                multiply(destination, Matrix::new(&gradient, rows, outputs), full);
                let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
                assert_close(&input_gradient(&matrix, &gradient, rows), &expected, 1e-5);
            }
            let last = outputs as u32 - 1;
            let selected = select_rows(&matrix, &[last, 0]);
            assert_eq!(selected[..inputs], weight[(outputs - 1) * inputs..]);
            assert_eq!(selected[inputs..], weight[..inputs]);
        }
    }
}
