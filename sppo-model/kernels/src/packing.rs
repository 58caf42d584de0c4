//! Operands of products, laid out so that a tile reads each of them from beginning to end.
//!
//! ```text
//! left [rows, depth]      in tiles of up to 14 rows, each [depth, rows]
//! right [depth, columns]  in panels of 16 or 32 columns, each [depth, columns], zeros after the last column
//! ```
//!
//! Tiles or panels of one chunk of the depth follow those of another.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::lanes::{LANES, Lanes, with_lanes};
use super::matrix::Matrix;
use super::tile::{Left, prefetch};
use super::tile_row::{TileRow, tiled};
use super::vector::vectorised;
use super::{TASK_ELEMENTS, Uninitialised, produce};

/// Rows of a tile that are read about as fast where they lie.
const FEW_ROWS: usize = 6;
/// Numbers of a cache line.
const LINE: usize = 16;

tiled! {
    /// Rows and columns of a large tile on this processor.
    pub(super) fn tile_size<Row>() -> [usize; 2] {
        [Row::Wide::ROWS, Row::Wide::COLUMNS]
    }
}

/// The height of the tiles of so many rows; the last may be lower.
pub(super) fn tile_height(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(tile_size()[0]).max(1))
}

/// Rows of a left operand.
pub(super) enum LeftRows<'a> {
    /// Packed, chunk by chunk.
    Tiles { values: Vec<f32>, rows: usize },
    /// As they were, row-major.
    Rows(Matrix<'a>),
}

impl<'a> LeftRows<'a> {
    /// Packs a matrix `[rows, depth]` where that makes tiles faster.
    pub(super) fn new(matrix: Matrix<'a>, chunk: usize) -> Self {
        if matrix.column_stride == 1 && tile_size()[0] <= FEW_ROWS {
            return Self::Rows(matrix);
        }
        let rows = matrix.rows;
        Self::Tiles { values: pack(matrix.transposed(), chunk, tile_height(rows), rows), rows }
    }

    /// A tile of a chunk of the depth.
    #[inline(always)]
    pub(super) fn tile(&self, tile: Range<usize>, chunk: Range<usize>) -> Left<'_> {
        match self {
            Self::Tiles { values, rows } => Left::Columns {
                values: &values[chunk.start * rows + tile.start * chunk.len()..],
                stride: tile.len(),
            },
            Self::Rows(matrix) => Left::Rows {
                values: &matrix.values[tile.start * matrix.row_stride + chunk.start..],
                stride: matrix.row_stride,
            },
        }
    }
}

/// Packs a right operand in panels of `width` columns.
pub(super) fn pack_right(matrix: Matrix, chunk: usize, width: usize) -> Vec<f32> {
    pack(matrix, chunk, width, matrix.columns.next_multiple_of(width))
}

/// A matrix `[depth, columns]`, chunk by chunk, columns in pieces of `width`, each `[chunk, width]`. The last piece is
/// narrower, or filled up with zeros to `padded` columns in all.
fn pack(matrix: Matrix, chunk: usize, width: usize, padded: usize) -> Vec<f32> {
    produce(matrix.rows * padded, |out| {
        let chunks = (0..matrix.rows).step_by(chunk).zip(out.chunks_mut(chunk * padded));
        for (start, out) in chunks {
            let length = out.len() / padded;
            let pieces = out.par_chunks_mut(length * width).enumerate();
            let pieces_per_task = TASK_ELEMENTS / (length * width) + 1;
            pieces.with_min_len(pieces_per_task).for_each(|(piece, out)| {
                let columns = piece * width..matrix.columns.min((piece + 1) * width);
                pack_piece(matrix.part(start..start + length, columns), out);
            });
        }
    })
}

vectorised! {
    /// Copies a piece into `out`, whose rows may be longer, and are then filled up with zeros.
    fn pack_piece(piece: Matrix, out: &mut Uninitialised) {
        let width = out.len() / piece.rows;
        if piece.columns < width {
            out.fill(MaybeUninit::new(0.0));
        }
        if piece.columns >= LANES && (piece.column_stride == 1 || piece.row_stride == 1) {
            return with_lanes!(FUSED, pack_registers::<_>(piece, width, out));
        }
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            for (column, out) in out[..piece.columns].iter_mut().enumerate() {
                let number = piece.values[row * piece.row_stride + column * piece.column_stride];
                *out = MaybeUninit::new(number);
            }
        }
    }
}

/// The same of at least eight columns, which are contiguous, or rows are.
#[inline(always)]
fn pack_registers<L: Lanes>(piece: Matrix, width: usize, out: &mut Uninitialised) {
    let Matrix { values, rows, columns, row_stride, column_stride } = piece;
    let last = (rows - 1) * row_stride + (columns - 1) * column_stride;
    assert!(last < values.len() && rows * width == out.len() && columns <= width, "beyond a piece");
    let (source, target) = (values.as_ptr(), out.as_mut_ptr().cast::<f32>());
    // The last eight overlap those before where columns are not a multiple.
    for first in (0..columns - LANES).step_by(LANES).chain([columns - LANES]) {
        if column_stride == 1 {
            for row in 0..rows {
                // SAFETY: eight columns from `first` on are in the row, here and there.
                unsafe {
                    L::load(source.add(row * row_stride + first))
                        .store(target.add(row * width + first));
                }
            }
            continue;
        }
        for row in (0..rows - rows % LANES).step_by(LANES) {
            if row % LINE == 0 {
                // Runs of a chunk are too short for the processor to foresee the next ones.
                for column in first + LANES..first + 2 * LANES {
                    prefetch(source.wrapping_add(column * column_stride + row));
                }
            }
            // SAFETY: eight rows from `row` on are in each of eight columns from `first` on, here and there.
            unsafe {
                let square = std::array::from_fn(|column| {
                    L::load(source.add((first + column) * column_stride + row))
                });
                for (offset, numbers) in L::transpose(square).into_iter().enumerate() {
                    numbers.store(target.add((row + offset) * width + first));
                }
            }
        }
        for row in rows - rows % LANES..rows {
            for column in first..first + LANES {
                out[row * width + column] = MaybeUninit::new(values[column * column_stride + row]);
            }
        }
    }
}
