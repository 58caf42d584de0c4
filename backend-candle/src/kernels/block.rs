//! Products of small matrices on one thread, for attention: the `gemm` crate's packing and dispatch
//! cost too much at these sizes. Also the layouts that such products read fastest.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::lanes::{LANES, Lanes, with_lanes};
use super::produce;
use super::vector::{multiply_add, vectorised};

/// Columns that one tile of a product covers.
pub(crate) const TILE_COLUMNS: usize = 2 * LANES;
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
                TILE_COLUMNS.. => multiply_columns::<FUSED, 2>(left, right, size, &[], store),
                8.. => multiply_columns::<FUSED, 1>(left, right, size, &[], store),
                _ => multiply_column::<FUSED>(left, right, size, store),
            };
        }
    }
}

/// Hands each row of the first `8 N` columns of a product to `store`, with its index, and returns their number.
/// Meanwhile fetches into the cache what will be needed `next`, a line for each number of the depth.
#[inline(always)]
pub(crate) fn multiply_columns<const FUSED: bool, const N: usize>(
    left: Left,
    right: Right,
    size: ProductSize,
    next: &[u8],
    mut store: impl FnMut(usize, &[f32]),
) -> usize {
    let tiles = size.rows.div_ceil(TILE_ROWS);
    let (mut row, mut tile) = (0, 0);
    while row < size.rows {
        let left_over = size.rows - row;
        let height = left_over.div_ceil(left_over.div_ceil(TILE_ROWS));
        let operands = TileOperands::new(left, right, row..row + height, size.depth, N * LANES);
        // One line every few steps of each tile: in one go, the lines would wait for each other.
        let ahead = Ahead { bytes: next, first: tile, every: tiles };
        // Tiles of nearly equal height: a low one has too few independent sums to be efficient.
        let sums = match height {
            1 => with_lanes!(FUSED, tile_sums::<_, 1, N>(operands, ahead)),
            2 => with_lanes!(FUSED, tile_sums::<_, 2, N>(operands, ahead)),
            3 => with_lanes!(FUSED, tile_sums::<_, 3, N>(operands, ahead)),
            4 => with_lanes!(FUSED, tile_sums::<_, 4, N>(operands, ahead)),
            5 => with_lanes!(FUSED, tile_sums::<_, 5, N>(operands, ahead)),
            _ => with_lanes!(FUSED, tile_sums::<_, TILE_ROWS, N>(operands, ahead)),
        };
        for sums in &sums[..height] {
            store(row, &sums[..N * LANES]);
            row += 1;
        }
        tile += 1;
    }
    N * LANES
}

/// The same of one column.
#[inline(always)]
fn multiply_column<const FUSED: bool>(
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
            sum = multiply_add::<FUSED>(factor, right.values[k * right.stride], sum);
        }
        store(row, &[sum]);
    }
    1
}

/// The operands of a tile, from its first number on: `left(r, k)` lies at `r row_stride + k depth_stride`.
/// All that a tile reads lies within the slices that it was made of.
#[derive(Clone, Copy)]
struct TileOperands<'a> {
    left: *const f32,
    row_stride: usize,
    depth_stride: usize,
    right: *const f32,
    right_stride: usize,
    depth: usize,
    rows: usize,
    columns: usize,
    borrow: PhantomData<&'a [f32]>,
}

impl<'a> TileOperands<'a> {
    #[inline(always)]
    fn new(
        left: Left<'a>,
        right: Right<'a>,
        rows: Range<usize>,
        depth: usize,
        columns: usize,
    ) -> Self {
        let (values, row_stride, depth_stride) = match left {
            Left::Rows { values, stride } => (values, stride, 1),
            Left::Columns { values, stride } => (values, 1, stride),
        };
        let values = &values[rows.start * row_stride..];
        let last = depth.saturating_sub(1);
        let left_end = (rows.len() - 1) * row_stride + last * depth_stride;
        let right_end = last * right.stride + columns;
        assert!(
            depth == 0 || left_end < values.len() && right_end <= right.values.len(),
            "operands are smaller than their product"
        );
        Self {
            left: values.as_ptr(),
            row_stride,
            depth_stride,
            right: right.values.as_ptr(),
            right_stride: right.stride,
            depth,
            rows: rows.len(),
            columns,
            borrow: PhantomData,
        }
    }
}

/// Sums of `R` rows and `8 N` columns, each added up in the order of the depth.
#[inline(always)]
fn tile_sums<L: Lanes, const R: usize, const N: usize>(
    operands: TileOperands,
    ahead: Ahead,
) -> [[f32; TILE_COLUMNS]; TILE_ROWS] {
    let TileOperands { mut left, row_stride, depth_stride, mut right, right_stride, depth, .. } =
        operands;
    assert!(R == operands.rows && N * LANES == operands.columns, "a tile of another size");
    let mut sums = [[L::zero(); N]; R];
    let step = if ahead.bytes.is_empty() { depth.max(1) } else { ahead.every };
    for start in (0..depth).step_by(step) {
        ahead.fetch(start);
        for _ in start..(start + step).min(depth) {
            // SAFETY: the operands were made for tiles of this size, which reach up to the depth.
            let row: [L; N] = std::array::from_fn(|n| unsafe { L::load(right.add(n * LANES)) });
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let factor = L::splat(unsafe { *left.add(r * row_stride) });
                for (sum, row) in sums.iter_mut().zip(row) {
                    *sum = factor.multiply_add(row, *sum);
                }
            }
            left = left.wrapping_add(depth_stride);
            right = right.wrapping_add(right_stride);
        }
    }
    let mut stored = [[0.0; TILE_COLUMNS]; TILE_ROWS];
    for (stored, sums) in stored.iter_mut().zip(sums) {
        for (stored, sum) in stored.chunks_exact_mut(LANES).zip(sums) {
            // SAFETY: each part of the array has room for eight numbers.
            unsafe { sum.store(stored.as_mut_ptr()) };
        }
    }
    stored
}

/// Memory that will be read soon: of its cache lines those that one tile fetches, every few from the first.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    bytes: &'a [u8],
    first: usize,
    every: usize,
}

impl Ahead<'_> {
    /// Asks for the tile's line after `start`, if there is one.
    #[inline(always)]
    fn fetch(self, start: usize) {
        const LINE: usize = 64;
        if let Some(_line) = self.bytes.get((start + self.first) * LINE) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: every x86-64 processor has the instruction, and it changes no memory.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
                _mm_prefetch(std::ptr::from_ref(_line).cast(), _MM_HINT_T1);
            }
        }
    }
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
