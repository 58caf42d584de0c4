//! Matrices within slices, and their products.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::tile::TileTarget;
use super::{Uninitialised, copy, produce, product, rows_per_task};

/// A read-only matrix within a slice, with any strides.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major and contiguous.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Row-major, each row `row_stride` after the one before.
    pub(crate) fn strided(
        values: &'a [f32],
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> Self {
        assert!(fits(values.len(), rows, columns, row_stride), "matrix exceeds its slice");
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// Some of its columns.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.columns, "a matrix has not that many columns");
        let first = columns.start * self.column_stride;
        let values = self.values.get(first..).unwrap_or_default();
        Self { values, columns: columns.len(), ..self }
    }

    /// Some of its rows and columns.
    pub(super) fn part(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.end <= self.rows, "a matrix has not that many rows");
        let first = rows.start * self.row_stride;
        let values = self.values.get(first..).unwrap_or_default();
        Self { values, rows: rows.len(), ..self }.columns(columns)
    }

    /// Rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Destination of a product: a row-major part of a mutable slice.
pub struct Destination<'a> {
    pointer: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    accumulate: bool,
    borrow: PhantomData<&'a mut [f32]>,
}

impl<'a> Destination<'a> {
    /// Overwrites a contiguous row-major matrix.
    pub(crate) fn write(values: &'a mut Uninitialised, rows: usize, columns: usize) -> Self {
        assert!(fits(values.len(), rows, columns, columns), "matrix exceeds its slice");
        Self::from_pointer(values.as_mut_ptr().cast(), rows, columns, columns, false)
    }

    /// Overwrites a contiguous row-major matrix that holds values already.
    pub fn replace(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self { accumulate: false, ..Self::add(values, rows, columns) }
    }

    /// Adds to a contiguous row-major matrix.
    pub fn add(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert!(fits(values.len(), rows, columns, columns), "matrix exceeds its slice");
        Self::from_pointer(values.as_mut_ptr(), rows, columns, columns, true)
    }

    /// Some of its columns.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.columns, "a matrix has not that many columns");
        Self { pointer: self.pointer.wrapping_add(columns.start), columns: columns.len(), ..self }
    }

    /// Whether the product is added to the old values; otherwise it replaces them.
    pub(super) fn adds(&self) -> bool {
        self.accumulate
    }

    /// The place of a tile.
    pub(super) fn tile(&self, rows: Range<usize>, columns: Range<usize>, adds: bool) -> TileTarget {
        assert!(rows.end <= self.rows && columns.end <= self.columns, "beyond the matrix");
        let first = self.pointer.wrapping_add(rows.start * self.row_stride + columns.start);
        TileTarget { pointer: first, stride: self.row_stride, columns: columns.len(), adds }
    }

    fn from_pointer(
        pointer: *mut f32,
        rows: usize,
        columns: usize,
        row_stride: usize,
        accumulate: bool,
    ) -> Self {
        Self { pointer, rows, columns, row_stride, accumulate, borrow: PhantomData }
    }
}

// SAFETY: the memory is borrowed mutably as a whole, and who writes a tile promises to be the only one.
unsafe impl Sync for Destination<'_> {}

fn fits(length: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= length
}

/// `destination (+)= left right`, on the threads of the current pool. Each element is summed in an order that depends
/// on the shared dimension alone.
#[expect(clippy::needless_pass_by_value, reason = "a destination is borrowed for one product")]
pub fn multiply(destination: Destination, left: Matrix, right: Matrix) {
    assert_eq!(left.columns, right.rows, "matrices do not fit each other");
    assert_eq!(
        (destination.rows, destination.columns),
        (left.rows, right.columns),
        "the product does not fit its destination"
    );
    product::multiply(&destination, left, right);
}

/// `x weight^T (+ bias)` of `rows` rows, where `weight` is given as `[inputs, outputs]`.
pub fn linear(x: &[f32], rows: usize, weight: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    let (inputs, outputs) = (weight.rows, weight.columns);
    let x = Matrix::new(x, rows, inputs);
    match bias {
        None => produce(rows * outputs, |out| {
            multiply(Destination::write(out, rows, outputs), x, weight);
        }),
        Some(bias) => {
            assert_eq!(bias.len(), outputs, "each output has one bias");
            let mut result = repeated(bias, rows);
            multiply(Destination::add(&mut result, rows, outputs), x, weight);
            result
        }
    }
}

/// A matrix whose rows are all the same.
pub(crate) fn repeated(row: &[f32], rows: usize) -> Vec<f32> {
    produce(row.len() * rows, |out: &mut Uninitialised| {
        out.par_chunks_mut(row.len() * rows_per_task(row.len())).for_each(|rows| {
            for out in rows.chunks_exact_mut(row.len()) {
                copy(row, out);
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, random};

    fn exact(x: &[f32], rows: usize, weight: &[f32], inputs: usize, bias: &[f32]) -> Vec<f64> {
        let dot = |row: usize, output: usize| {
            let (x, w) = (&x[row * inputs..][..inputs], &weight[output * inputs..][..inputs]);
            let products = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
            products.sum::<f64>() + f64::from(bias[output])
        };
        (0..rows).flat_map(|row| (0..bias.len()).map(move |output| dot(row, output))).collect()
    }

    #[test]
    fn a_linear_row_does_not_depend_on_the_others_or_on_threads() {
        for (inputs, outputs) in [(40, 12), (600, 70), (576, 192)] {
            let rows = 37;
            let (x, weight) = (random(rows * inputs, 1), random(outputs * inputs, 2));
            let bias = random(outputs, 3);
            let by_output = Matrix::new(&weight, outputs, inputs).transposed();
            let all = linear(&x, rows, by_output, Some(&bias));
            // A sum of 600 products of size 1 is rounded by up to 600 / 2^24, in an order that the CPU decides.
            assert_close(&all, &exact(&x, rows, &weight, inputs, &bias), 4e-5);
            let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(all, alone.install(|| linear(&x, rows, by_output, Some(&bias))));
            for row in 0..rows {
                let one = linear(&x[row * inputs..][..inputs], 1, by_output, Some(&bias));
                assert_eq!(one, all[row * outputs..][..outputs], "row {row}");
            }
        }
    }
}
