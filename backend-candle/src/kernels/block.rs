//! Products of small matrices on one thread, for attention: the `gemm` crate's packing and dispatch
//! cost too much at these sizes. Also the layouts that such products read fastest.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::produce;
use super::vector::{multiply_add, vectorised};

/// Columns that one tile of a product covers.
pub(crate) const TILE_COLUMNS: usize = 16;
/// Rows that one tile covers: 6 x 16 sums fill the vector registers of AVX2.
const TILE_ROWS: usize = 6;

/// The left operand of a product.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Row-major: rows are `stride` apart.
    Rows { values: &'a [f32], stride: usize },
    /// The transpose of a row-major matrix whose rows are `stride` apart.
    Columns { values: &'a [f32], stride: usize },
}

/// The right operand, row-major: rows are `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

/// `[rows, depth] [depth, columns]`.
#[derive(Clone, Copy)]
pub(crate) struct ProductSize {
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) columns: usize,
}

/// Destination of a product, row-major: rows are `stride` apart.
pub(crate) struct Target<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) stride: usize,
    /// Whether the product is added to the old values; otherwise it replaces them.
    pub(crate) adds: bool,
}

vectorised! {
    /// `target[rows, columns] (+)= left[rows, depth] right[depth, columns]`.
    pub(crate) fn multiply_block(
        target: Target,
        left: Left,
        right: Right,
        size: ProductSize,
    ) {
        let ProductSize { rows, depth, columns } = size;
        let mut column = 0;
        while column < columns {
            let right = Right { values: &right.values[column..], stride: right.stride };
            let target = Target { values: &mut target.values[column..], ..target };
            column += match columns - column {
                TILE_COLUMNS.. => multiply_columns::<FUSED, TILE_COLUMNS>(target, left, right, rows, depth),
                8.. => multiply_columns::<FUSED, 8>(target, left, right, rows, depth),
                _ => multiply_columns::<FUSED, 1>(target, left, right, rows, depth),
            };
        }
    }
}

/// The first `W` columns of a product; returns `W`.
#[inline(always)]
fn multiply_columns<const FUSED: bool, const W: usize>(
    target: Target,
    left: Left,
    right: Right,
    rows: usize,
    depth: usize,
) -> usize {
    let mut row = 0;
    while row < rows {
        let left_over = rows - row;
        let start = row * target.stride;
        let target = Target { values: &mut target.values[start..], ..target };
        // Tiles of nearly equal height: a low one has too few independent sums to be efficient.
        row += match left_over.div_ceil(left_over.div_ceil(TILE_ROWS)) {
            1 => multiply_tile::<FUSED, 1, W>(target, left, right, row, depth),
            2 => multiply_tile::<FUSED, 2, W>(target, left, right, row, depth),
            3 => multiply_tile::<FUSED, 3, W>(target, left, right, row, depth),
            4 => multiply_tile::<FUSED, 4, W>(target, left, right, row, depth),
            5 => multiply_tile::<FUSED, 5, W>(target, left, right, row, depth),
            _ => multiply_tile::<FUSED, TILE_ROWS, W>(target, left, right, row, depth),
        };
    }
    W
}

/// `R` rows and `W` columns of a product, from row `row` of the left operand; returns `R`.
#[inline(always)]
fn multiply_tile<const FUSED: bool, const R: usize, const W: usize>(
    target: Target,
    left: Left,
    right: Right,
    row: usize,
    depth: usize,
) -> usize {
    let sums = match left {
        Left::Rows { values, stride } => {
            let rows: [&[f32]; R] =
                std::array::from_fn(|index| &values[(row + index) * stride..][..depth]);
            tile_sums::<FUSED, R, W>(right, depth, |k| std::array::from_fn(|r| rows[r][k]))
        }
        Left::Columns { values, stride } => tile_sums::<FUSED, R, W>(right, depth, |k| {
            let mut factors = [0.0; R];
            factors.copy_from_slice(&values[k * stride + row..][..R]);
            factors
        }),
    };
    for (r, sums) in sums.iter().enumerate() {
        let out = &mut target.values[r * target.stride..][..W];
        for (out, &sum) in out.iter_mut().zip(sums) {
            *out = if target.adds { *out + sum } else { sum };
        }
    }
    R
}

#[inline(always)]
fn tile_sums<const FUSED: bool, const R: usize, const W: usize>(
    right: Right,
    depth: usize,
    factors: impl Fn(usize) -> [f32; R],
) -> [[f32; W]; R] {
    let mut sums = [[0.0; W]; R];
    for k in 0..depth {
        let row = &right.values[k * right.stride..][..W];
        let factors = factors(k);
        for r in 0..R {
            for c in 0..W {
                sums[r][c] = multiply_add::<FUSED>(factors[r], row[c], sums[r][c]);
            }
        }
    }
    sums
}

/// The transpose of a row-major matrix, with padded rows.
pub(crate) struct Transposed {
    values: Vec<f32>,
    stride: usize,
}

impl Transposed {
    /// Transposes `[rows, columns]`. At least [`TILE_COLUMNS`] zeros follow each row of the result, so
    /// that whole tiles can be read from any column, and rows do not all fall on the same cache sets.
    pub(crate) fn new(matrix: &[f32], rows: usize, columns: usize) -> Self {
        assert_eq!(matrix.len(), rows * columns, "matrix differs from its shape");
        let tiles = rows.div_ceil(TILE_COLUMNS) + 1;
        let stride = (tiles + 1 - tiles % 2) * TILE_COLUMNS;
        let values = produce(columns * stride, |out| {
            out.par_chunks_mut(TILE_COLUMNS * stride).enumerate().for_each(|(tile, out)| {
                for (row, source) in matrix.chunks_exact(columns).enumerate() {
                    let source = &source[tile * TILE_COLUMNS..];
                    for (column, &value) in out.chunks_exact_mut(stride).zip(source) {
                        column[row] = MaybeUninit::new(value);
                    }
                }
                for column in out.chunks_exact_mut(stride) {
                    column[rows..].fill(MaybeUninit::new(0.0));
                }
            });
        });
        Self { values, stride }
    }

    /// The part that begins at a row and a column of the transpose.
    pub(crate) fn from(&self, row: usize, column: usize) -> Right<'_> {
        Right { values: &self.values[row * self.stride + column..], stride: self.stride }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, random};

    #[test]
    fn products_of_all_shapes_and_layouts_add_to_old_values() {
        for (rows, depth, columns) in [(1, 1, 1), (6, 5, 16), (17, 64, 43), (96, 70, 250)] {
            let (a, b) = (random(rows * depth, 1), random(depth * columns, 2));
            let start = random(rows * columns, 3);
            let exact: Vec<f64> = (0..rows * columns)
                .map(|index| {
                    let (row, column) = (index / columns, index % columns);
                    let product = |k: usize| {
                        f64::from(a[row * depth + k]) * f64::from(b[k * columns + column])
                    };
                    f64::from(start[index]) + (0..depth).map(product).sum::<f64>()
                })
                .collect();
            let transposed_a = Transposed::new(&a, rows, depth);
            let transposed_a = transposed_a.from(0, 0);
            let transposed_b: Vec<f32> = (0..columns * depth)
                .map(|index| b[index % depth * columns + index / depth])
                .collect();
            let back = Transposed::new(&transposed_b, columns, depth);
            let by_columns =
                Left::Columns { values: transposed_a.values, stride: transposed_a.stride };
            for left in [Left::Rows { values: &a, stride: depth }, by_columns] {
                for right in [Right { values: &b, stride: columns }, back.from(0, 0)] {
                    let mut values = start.clone();
                    let target = Target { values: &mut values, stride: columns, adds: true };
                    let size = ProductSize { rows, depth, columns };
                    multiply_block(target, left, right, size);
                    assert_close(&values, &exact, 1e-5);
                }
            }
        }
    }
}
