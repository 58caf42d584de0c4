//! Matrices that stay in the blocks in which a file stores them, and become f32 row by row where they are used.

use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use rayon::prelude::*;

use super::GgufType;
use super::nf4::Nf4Blocks;
use crate::error::{ModelError, Result};

/// Values that one task dequantises.
const TASK_VALUES: usize = 1 << 16;

/// A matrix in a quantised number format. Clones share their bytes, which are those of the mapped file where the
/// matrix comes from one.
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    blocks: Blocks,
    /// The stored row that is the first one.
    first: usize,
    rows: usize,
    columns: usize,
    /// The stored row of each row, where that is another.
    order: Option<Arc<[u32]>>,
}

/// Blocks of a stored matrix, row-major.
#[derive(Clone, Debug)]
enum Blocks {
    Gguf(GgufType, SharedBytes),
    Nf4(Nf4Blocks),
}

impl QuantizedMatrix {
    /// Row-major blocks of a matrix `[rows, columns]`.
    ///
    /// # Errors
    /// When a row is no whole number of blocks, or the bytes are not as many as the blocks take.
    pub fn of_blocks(
        format: GgufType,
        bytes: impl Into<SharedBytes>,
        [rows, columns]: [usize; 2],
    ) -> Result<Self> {
        let bytes = bytes.into();
        let blocks = rows.checked_mul(columns / format.block_values());
        let expected = blocks.and_then(|blocks| blocks.checked_mul(format.block_bytes()));
        let is_whole = columns.is_multiple_of(format.block_values());
        if !is_whole || expected != Some(bytes.as_slice().len()) {
            return Err(ModelError::Input(format!(
                "{} bytes are no {format:?} blocks of a matrix of {rows} rows and {columns} columns",
                bytes.as_slice().len()
            )));
        }
        Ok(Self::of(Blocks::Gguf(format, bytes), [rows, columns]))
    }

    /// A matrix in NF4; `None` where the blocks are not those of this shape.
    pub(crate) fn of_nf4(blocks: Nf4Blocks, [rows, columns]: [usize; 2]) -> Option<Self> {
        let count = rows.checked_mul(columns)?;
        blocks.are_whole(count).then(|| Self::of(Blocks::Nf4(blocks), [rows, columns]))
    }

    fn of(blocks: Blocks, [rows, columns]: [usize; 2]) -> Self {
        Self { blocks, first: 0, rows, columns, order: None }
    }

    /// Some of its rows; `None` if it has fewer.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Option<Self> {
        if rows.start > rows.end || rows.end > self.rows || self.order.is_some() {
            return None;
        }
        Some(Self { first: self.first + rows.start, rows: rows.len(), ..self.clone() })
    }

    /// The matrix whose row `r` is row `source(r)` of this one, below the number of its rows.
    #[must_use]
    pub fn reordered(self, source: impl Fn(usize) -> usize) -> Self {
        let order: Arc<[u32]> = (0..self.rows).map(|row| source(row) as u32).collect();
        let is_same = order.iter().enumerate().all(|(row, &source)| row == source as usize);
        Self { order: (!is_same).then_some(order), ..self }
    }

    /// `[rows, columns]`.
    #[must_use]
    pub fn dimensions(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The name of the number format.
    #[must_use]
    pub fn format_name(&self) -> String {
        match &self.blocks {
            Blocks::Gguf(format, _) => format!("{format:?}"),
            Blocks::Nf4(_) => "NF4".into(),
        }
    }

    /// The blocks row by row, and their format, of a matrix in a format of GGUF files.
    #[must_use]
    pub fn gguf_blocks(&self) -> Option<(GgufType, Vec<u8>)> {
        let Blocks::Gguf(format, bytes) = &self.blocks else { return None };
        let row_bytes = self.columns / format.block_values() * format.block_bytes();
        let mut blocks = Vec::with_capacity(self.rows * row_bytes);
        for row in 0..self.rows {
            let stored = self.stored(row) * row_bytes;
            blocks.extend_from_slice(&bytes.as_slice()[stored..][..row_bytes]);
        }
        Some((*format, blocks))
    }

    /// Size of all stored blocks in bytes.
    pub(crate) fn byte_size(&self) -> usize {
        match &self.blocks {
            Blocks::Gguf(_, bytes) => bytes.as_slice().len(),
            Blocks::Nf4(blocks) => blocks.byte_size(),
        }
    }

    fn stored(&self, row: usize) -> usize {
        self.first + self.order.as_ref().map_or(row, |order| order[row] as usize)
    }

    /// Fills `out` with a row, which must be there, on this thread.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let first = self.stored(row) * self.columns;
        match &self.blocks {
            Blocks::Gguf(format, bytes) => {
                let first = first / format.block_values() * format.block_bytes();
                format.dequantize_to(&bytes.as_slice()[first..], out);
            }
            Blocks::Nf4(blocks) => blocks.read(first, out),
        }
    }

    /// Fills `out` with rows from `first` on, as many as it has room for, on all threads.
    pub fn read_rows(&self, first: usize, out: &mut [f32]) {
        if self.columns == 0 {
            return;
        }
        let rows_per_task = (TASK_VALUES / self.columns).max(1);
        let tasks = out.par_chunks_mut(rows_per_task * self.columns).enumerate();
        tasks.for_each(|(task, out)| {
            let rows = first + task * rows_per_task..;
            rows.zip(out.chunks_exact_mut(self.columns)).for_each(|(row, out)| {
                self.read_row(row, out);
            });
        });
    }

    /// All values, row-major.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        self.read_rows(0, &mut values);
        values
    }

    /// Whether no value is infinite or not a number.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let rows = (0..self.rows).into_par_iter().with_min_len(TASK_VALUES / self.columns.max(1));
        let is_finite = |values: &mut Vec<f32>, row| {
            self.read_row(row, values);
            // without an early end, which would keep the loop from being vectorised
            values.iter().fold(true, |finite, value| finite & value.is_finite())
        };
        rows.map_init(|| vec![0.0; self.columns], is_finite).all(|finite| finite)
    }
}

/// Bytes of a mapped file or of memory, shared.
#[derive(Clone, Debug)]
pub struct SharedBytes {
    source: Source,
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum Source {
    File(Arc<Mmap>),
    Memory(Arc<[u8]>),
}

impl SharedBytes {
    /// A part of a mapped file, which has as many bytes.
    pub(crate) fn mapped(file: Arc<Mmap>, range: Range<usize>) -> Self {
        Self { source: Source::File(file), range }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        let all: &[u8] = match &self.source {
            Source::File(map) => map,
            Source::Memory(bytes) => bytes,
        };
        all.get(self.range.clone()).unwrap_or_default()
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), source: Source::Memory(bytes.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Q8_0 blocks of scale 1 whose integers count rows and columns.
    fn counting(rows: usize, columns: usize) -> QuantizedMatrix {
        let one = [0x00, 0x3c];
        let block = |row: usize, first: usize| {
            let integers = (first..first + 32).map(move |column| ((row * 7 + column) % 128) as u8);
            one.into_iter().chain(integers)
        };
        let bytes: Vec<u8> = (0..rows)
            .flat_map(|row| (0..columns).step_by(32).flat_map(move |first| block(row, first)))
            .collect();
        QuantizedMatrix::of_blocks(GgufType::Q8_0, bytes, [rows, columns]).unwrap()
    }

    fn row(row: usize, columns: usize) -> Vec<f32> {
        (0..columns).map(|column| ((row * 7 + column) % 128) as f32).collect()
    }

    #[test]
    fn rows_are_read_alone_together_and_in_another_order() {
        // Several tasks.
        let matrix = counting(900, 128);
        let all = matrix.values();
        assert_eq!(all, (0..900).flat_map(|r| row(r, 128)).collect::<Vec<_>>());
        let part = matrix.rows(3..7).unwrap();
        assert_eq!(part.dimensions(), [4, 128]);
        assert_eq!(part.gguf_blocks().unwrap().1.len(), 4 * 4 * 34);
        let reversed = part.reordered(|row| 3 - row);
        let mut rows = vec![0.0; 2 * 128];
        reversed.read_rows(1, &mut rows);
        assert_eq!(rows, [row(5, 128), row(4, 128)].concat());
        let mut last = vec![0.0; 128];
        reversed.read_row(3, &mut last);
        assert_eq!(last, row(3, 128));
    }

    #[test]
    fn blocks_that_are_no_matrix_are_refused() {
        let refused = |bytes: usize, shape| {
            QuantizedMatrix::of_blocks(GgufType::Q8_0, vec![0; bytes], shape).unwrap_err()
        };
        for (bytes, shape) in [(34, [1, 31]), (33, [1, 32]), (34, [2, 32]), (34, [usize::MAX, 64])]
        {
            assert!(refused(bytes, shape).to_string().contains("Q8_0 blocks"));
        }
        assert!(counting(2, 32).rows(1..3).is_none());
    }

    #[test]
    fn an_infinite_scale_is_found() {
        assert!(counting(5, 64).is_finite());
        let mut bytes = vec![1; 5 * 34];
        bytes[34 * 3..][..2].copy_from_slice(&[0x00, 0x7c]);
        let matrix = QuantizedMatrix::of_blocks(GgufType::Q8_0, bytes, [5, 32]).unwrap();
        assert!(!matrix.is_finite());
    }
}
