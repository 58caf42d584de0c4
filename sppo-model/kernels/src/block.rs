//! Products of small matrices on one thread, for attention. Also the layouts that such products read fastest.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::lanes::LANES;
use super::produce;
use super::tile::{Left, Right, tile_sums, tiles};
use super::tile_row::{NO_SUMS, TILE_COLUMNS, TileRow, tiled};

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

tiled! {
    /// `target[rows, columns] (+)= left[rows, depth] right[depth, columns]`.
    pub(crate) fn multiply_block<Row>(
        target: Target,
        left: Left,
        right: Right,
        size: ProductSize,
    ) {
        let mut column = 0;
        while column < size.columns {
            let right = Right { values: &right.values[column..], stride: right.stride };
            let out = &mut target.values[column..];
            let store = |row: usize, sums: &[f32]| {
                let out = &mut out[row * target.stride..][..sums.len()];
                for (out, &sum) in out.iter_mut().zip(sums) {
                    *out = if target.adds { *out + sum } else { sum };
                }
            };
            column += match size.columns - column {
                TILE_COLUMNS.. => multiply_columns::<Row>(left, right, size, store),
                LANES.. => multiply_columns::<Row::Half>(left, right, size, store),
                _ => multiply_column::<Row>(left, right, size, store),
            };
        }
    }
}

/// Hands each row of the first `T::COLUMNS` columns of a product to `store`, with its index, and returns their
/// number.
#[inline(always)]
fn multiply_columns<T: TileRow>(
    left: Left,
    right: Right,
    size: ProductSize,
    mut store: impl FnMut(usize, &[f32]),
) -> usize {
    let mut sums = NO_SUMS;
    for rows in tiles::<T>(size.rows) {
        tile_sums::<T>(left, right, rows.clone(), size.depth, &mut sums);
        for (row, sums) in rows.zip(&sums) {
            store(row, &sums[..T::COLUMNS]);
        }
    }
    T::COLUMNS
}

/// The same of one column.
#[inline(always)]
fn multiply_column<T: TileRow>(
    left: Left,
    right: Right,
    size: ProductSize,
    mut store: impl FnMut(usize, &[f32]),
) -> usize {
    for row in 0..size.rows {
        let mut sum = 0.0;
        for k in 0..size.depth {
            let factor = match left {
                Left::Rows { values, stride } => values[row * stride + k],
                Left::Columns { values, stride } => values[k * stride + row],
            };
            let value = right.values[k * right.stride];
            sum = if T::FUSED { factor.mul_add(value, sum) } else { factor * value + sum };
        }
        store(row, &[sum]);
    }
    1
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
