//! Matrix products on the `gemm` crate.
//!
//! Each element of a product is one sum over the shared dimension in an order that depends on that
//! dimension alone, so the result is the same for any number of threads. Only products of very few
//! elements take another path inside `gemm`; [`linear`] avoids that path, which makes each of its rows
//! independent of the others.

use std::marker::PhantomData;
use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::{Uninitialised, copy, produce, rows_per_task};

/// A read-only matrix within a slice, with any strides.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major and contiguous.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
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

    /// Rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
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
pub(crate) struct Destination<'a> {
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
    pub(crate) fn replace(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self { accumulate: false, ..Self::add(values, rows, columns) }
    }

    /// Adds to a contiguous row-major matrix.
    pub(crate) fn add(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert!(fits(values.len(), rows, columns, columns), "matrix exceeds its slice");
        Self::from_pointer(values.as_mut_ptr(), rows, columns, columns, true)
    }

    /// Some of its columns.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.columns, "a matrix has not that many columns");
        Self { pointer: self.pointer.wrapping_add(columns.start), columns: columns.len(), ..self }
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

fn fits(length: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= length
}

/// `destination (+)= left right`, on `threads` threads of the current pool.
#[expect(clippy::needless_pass_by_value, reason = "a destination is borrowed for one product")]
pub(crate) fn multiply(destination: Destination, left: Matrix, right: Matrix, threads: usize) {
    assert_eq!(left.columns, right.rows, "matrices do not fit each other");
    assert_eq!(
        (destination.rows, destination.columns),
        (left.rows, right.columns),
        "the product does not fit its destination"
    );
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: constructors checked that every element lies within the borrowed slices, the
    // destination is borrowed mutably and so overlaps neither operand, and it is not read unless it
    // accumulates, which only the constructors over initialised slices allow.
    unsafe {
        gemm::gemm(
            destination.rows,
            destination.columns,
            left.columns,
            destination.pointer,
            1,
            destination.row_stride as isize,
            destination.accumulate,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Products with fewer rows than this are padded: `gemm` sums products of one row, or of at most
/// 16 * 16 elements, in another order.
pub(crate) fn minimal_rows(outputs: usize) -> usize {
    (256 / outputs.max(1) + 1).max(2)
}

/// `x weight^T (+ bias)` of `rows` rows, where `weight` is given as `[inputs, outputs]`.
pub(crate) fn linear(
    x: &[f32],
    rows: usize,
    weight: Matrix,
    bias: Option<&[f32]>,
    threads: usize,
) -> Vec<f32> {
    let (inputs, outputs) = (weight.rows, weight.columns);
    let padded = minimal_rows(outputs);
    if rows > 0 && rows < padded {
        let padded_x = padded_to(padded, &x[..rows * inputs], inputs);
        let mut result = linear(&padded_x, padded, weight, bias, threads);
        result.truncate(rows * outputs);
        return result;
    }
    let x = Matrix::new(x, rows, inputs);
    match bias {
        None => produce(rows * outputs, |out| {
            multiply(Destination::write(out, rows, outputs), x, weight, threads);
        }),
        Some(bias) => {
            assert_eq!(bias.len(), outputs, "each output has one bias");
            let mut result = repeated(bias, rows);
            multiply(Destination::add(&mut result, rows, outputs), x, weight, threads);
            result
        }
    }
}

/// Rows of `inputs` values, with zeros after them up to `rows` rows.
pub(crate) fn padded_to(rows: usize, x: &[f32], inputs: usize) -> Vec<f32> {
    let mut padded = vec![0.0; rows * inputs];
    padded[..x.len()].copy_from_slice(x);
    padded
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
            let all = linear(&x, rows, by_output, Some(&bias), 2);
            // A sum of 600 products of size 1 is rounded by up to 600 / 2^24, in an order that the CPU decides.
            assert_close(&all, &exact(&x, rows, &weight, inputs, &bias), 4e-5);
            assert_eq!(all, linear(&x, rows, by_output, Some(&bias), 1));
            for row in 0..rows {
                let one = linear(&x[row * inputs..][..inputs], 1, by_output, Some(&bias), 1);
                assert_eq!(one, all[row * outputs..][..outputs], "row {row}");
            }
        }
    }
}
