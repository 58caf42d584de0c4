//! Products of large matrices, `destination [m, n] (+)= left [m, k] right [k, n]`.
//!
//! `k` is cut into chunks of nearly equal length, of each of which both operands are [packed](super::packing). An
//! element is the sum of its chunks' sums, in order. That order depends on `k` alone: not on the other elements, the
//! number of threads, the width of registers or the size of caches.

use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Destination, Matrix};
use super::packing::{LeftRows, pack_right, tile_height, tile_size};
use super::tile::{Ahead, Right, write_tile};
use super::tile_row::{TILE_COLUMNS, TileRow, tiled};

/// Numbers of a chunk at most: of each chunk, a tile and a panel stay in the fastest cache.
const CHUNK: usize = 512;
/// Chunks that are packed together.
const CHUNKS: usize = 4;
/// Columns that are packed together: with as many chunks, 4 MiB.
const BLOCK_COLUMNS: usize = 512;
/// Rows of a task, about.
const TASK_ROWS: usize = 84;
/// Columns of a task: some hundred microseconds of work.
const TASK_COLUMNS: usize = 128;

/// `destination (+)= left right`, on the threads of the current pool. The matrices fit each other.
pub(super) fn multiply(destination: &Destination, left: Matrix, right: Matrix) {
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    if rows == 0 || columns == 0 {
        return;
    }
    let chunk = depth.div_ceil(depth.div_ceil(CHUNK).max(1)).max(1);
    let width = if columns > TILE_COLUMNS { tile_size()[1] } else { TILE_COLUMNS };
    // Without any depth there is one chunk of nothing, whose sums are zeros.
    for start in (0..depth.max(1)).step_by(chunk * CHUNKS) {
        let depths = start..depth.min(start + chunk * CHUNKS);
        let left = LeftRows::new(left.part(0..rows, depths.clone()), chunk);
        for first in (0..columns).step_by(BLOCK_COLUMNS) {
            let columns = first..columns.min(first + BLOCK_COLUMNS);
            let right = pack_right(right.part(depths.clone(), columns.clone()), chunk, width);
            let adds = destination.adds() || start > 0;
            let (left, right, depth) = (&left, &*right, depths.len());
            Block { destination, columns, adds, left, right, depth, chunk, width }.multiply(rows);
        }
    }
}

/// The product of packed operands: all rows of the left one, some columns of the right one, and some of the depth.
struct Block<'a> {
    destination: &'a Destination<'a>,
    columns: Range<usize>,
    adds: bool,
    left: &'a LeftRows<'a>,
    right: &'a [f32],
    depth: usize,
    chunk: usize,
    /// Columns of a panel.
    width: usize,
}

impl Block<'_> {
    fn multiply(&self, rows: usize) {
        let height = tile_height(rows);
        let rows_per_task = (TASK_ROWS / height).max(1) * height;
        let column_tasks = self.columns.len().div_ceil(TASK_COLUMNS);
        let tasks = rows.div_ceil(rows_per_task) * column_tasks;
        (0..tasks).into_par_iter().for_each(|task| {
            let row = task / column_tasks * rows_per_task;
            let column = task % column_tasks * TASK_COLUMNS;
            let rows = row..rows.min(row + rows_per_task);
            let columns = column..self.columns.len().min(column + TASK_COLUMNS);
            multiply_part(self, rows, columns, height);
        });
    }
}

tiled! {
    /// Computes some rows, in tiles of a height, and some columns of a block.
    fn multiply_part<Row>(block: &Block, rows: Range<usize>, columns: Range<usize>, height: usize) {
        if block.width == Row::COLUMNS {
            multiply_tiles::<Row>(block, rows, columns, height);
        } else {
            multiply_tiles::<Row::Wide>(block, rows, columns, height);
        }
    }
}

#[inline(always)]
fn multiply_tiles<T: TileRow>(
    block: &Block,
    rows: Range<usize>,
    columns: Range<usize>,
    height: usize,
) {
    let &Block { destination, left, right, depth, chunk, width, .. } = block;
    let padded = block.columns.len().next_multiple_of(width);
    for column in columns.clone().step_by(width) {
        let place =
            block.columns.start + column..block.columns.start + columns.end.min(column + width);
        for start in (0..depth.max(1)).step_by(chunk) {
            let chunk = start..depth.min(start + chunk);
            let panel = &right[start * padded + column * chunk.len()..];
            let panel = Right { values: panel, stride: width };
            for row in rows.clone().step_by(height) {
                let tile = row..rows.end.min(row + height);
                let left = left.tile(tile.clone(), chunk.clone());
                let adds = block.adds || start > 0;
                let target = destination.tile(tile.clone(), place.clone(), adds);
                // SAFETY: each tile of each panel is the work of one task.
                unsafe {
                    write_tile::<T>(
                        left,
                        panel,
                        0..tile.len(),
                        chunk.len(),
                        Ahead::NOTHING,
                        target,
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix;
    use crate::test_support::random;
    use crate::vector::{multiply_add, vectorised};

    vectorised! {
        /// The sums as the module's head defines them, of numbers in order of the depth.
        fn defined(start: Option<f32>, left: &[f32], right: &[f32]) -> f32 {
            let chunk = left.len().div_ceil(left.len().div_ceil(CHUNK).max(1)).max(1);
            let mut total = start;
            for (left, right) in left.chunks(chunk).zip(right.chunks(chunk)) {
                let mut sum = 0.0;
                for (&left, &right) in left.iter().zip(right) {
                    sum = multiply_add::<FUSED>(left, right, sum);
                }
                total = Some(total.map_or(sum, |total| total + sum));
            }
            total.unwrap_or(0.0)
        }
    }

    /// Processors, shapes and layouts make no difference to a bit.
    #[test]
    fn an_element_is_summed_in_an_order_that_depends_on_the_depth_alone() {
        for (rows, depth, columns) in
            [(1, 1, 1), (3, 0, 5), (1, 600, 70), (29, 64, 33), (100, 513, 15), (7, 2100, 530)]
        {
            let (a, b) = (random(rows * depth, 1), random(depth * columns, 2));
            let transposed = |values: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect()
            };
            let a_by_column = transposed(&a, rows, depth);
            let b_by_column = transposed(&b, depth, columns);
            let lefts =
                [Matrix::new(&a, rows, depth), Matrix::new(&a_by_column, depth, rows).transposed()];
            let rights = [
                Matrix::new(&b, depth, columns),
                Matrix::new(&b_by_column, columns, depth).transposed(),
            ];
            let old = random(rows * columns, 3);
            for adds in [false, true] {
                let expected: Vec<f32> = (0..rows * columns)
                    .map(|index| {
                        let left = &a[index / columns * depth..][..depth];
                        let right = &b_by_column[index % columns * depth..][..depth];
                        defined(adds.then_some(old[index]), left, right)
                    })
                    .collect();
                for (left, right) in
                    lefts.iter().flat_map(|left| rights.map(|right| (*left, right)))
                {
                    let mut product = old.clone();
                    let destination = if adds {
                        Destination::add(&mut product, rows, columns)
                    } else {
                        Destination::replace(&mut product, rows, columns)
                    };
                    matrix::multiply(destination, left, right);
                    assert!(product == expected, "{rows} x {depth} x {columns}, adds {adds}");
                }
            }
        }
    }
}
