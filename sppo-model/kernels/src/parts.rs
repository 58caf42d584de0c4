//! Products with a matrix that is kept in another form than f32, and converted part by part.
//!
//! Parts are cut along outputs, so that no sum of `x weight^T` is divided: it is that of the matrix in f32, bit
//! for bit.

use std::ops::Range;

use super::matrix::{Destination, Matrix, multiply, repeated};
use super::produce;

/// Numbers that are converted together: small enough to stay in the processor's cache, large enough for
/// an efficient product.
pub(crate) const PART_ELEMENTS: usize = 4 << 20;

/// Bytes of a part in f32, and of the copy that a product makes of it.
pub const DEQUANTIZED_BYTES: u64 = 2 * (PART_ELEMENTS * size_of::<f32>()) as u64;

/// `0..length` in parts of at most `most`.
pub(crate) fn parts(length: usize, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    (0..length).step_by(most).map(move |start| start..(start + most).min(length))
}

/// `x weight^T (+ bias)` of `rows` rows, at most `outputs_per_part` outputs at a time, of which `part` gives the
/// weight's rows in f32.
pub(crate) fn linear(
    x: &[f32],
    rows: usize,
    [inputs, outputs]: [usize; 2],
    outputs_per_part: usize,
    bias: Option<&[f32]>,
    part: &mut dyn FnMut(Range<usize>) -> Vec<f32>,
) -> Vec<f32> {
    let parts = parts(outputs, outputs_per_part);
    let x = Matrix::new(x, rows, inputs);
    let mut product = |destination: Destination, range: Range<usize>| {
        let weight = part(range.clone());
        let weight = Matrix::new(&weight, range.len(), inputs).transposed();
        multiply(destination.columns(range), x, weight);
    };
    match bias {
        None => produce(rows * outputs, |out| {
            parts.for_each(|part| product(Destination::write(out, rows, outputs), part));
        }),
        Some(bias) => {
            let mut result = repeated(bias, rows);
            parts.for_each(|part| product(Destination::add(&mut result, rows, outputs), part));
            result
        }
    }
}
