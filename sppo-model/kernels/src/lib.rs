//! Kernels of the op vocabulary ([`sppo_model::ops::Ops`]) over plain slices of f32, with AVX2 or AVX-512 where the
//! processor has them. The backend candle computes with nothing else; the backend tch, in f32 on the CPU, does so
//! for all but products of many rows.
//!
//! Each kernel divides its work into parts of a fixed size, whatever the number of threads, and adds partial
//! results in a fixed order, so results are bitwise reproducible. Kernels run on the threads of the current pool
//! ([`threads`]).

pub mod attention;
pub mod attention_backward;
mod attention_layout;
pub mod bf16_matrix;
mod block;
pub mod cached_attention;
pub mod disentangled_attention;
pub mod elementwise;
mod lanes;
pub mod log_probs;
pub mod matrix;
pub mod norm;
pub mod optimizer;
mod packing;
pub mod panels;
pub mod parts;
mod product;
pub mod quantized_products;
pub mod rotary;
#[cfg(test)]
mod test_support;
pub mod threads;
mod tile;
mod tile_row;
mod vector;

use std::mem::MaybeUninit;

/// Memory that a kernel fills.
pub type Uninitialised = [MaybeUninit<f32>];

/// Elements that one task of an elementwise kernel handles: some ten microseconds of work, below which
/// waking another thread does not pay.
pub(crate) const TASK_ELEMENTS: usize = 64 * 1024;

/// Whole rows of `features` numbers that one task handles.
pub(crate) fn rows_per_task(features: usize) -> usize {
    (TASK_ELEMENTS / features.max(1)).max(1)
}

/// Writes a copy of `source`, which is as long as `out`.
pub(crate) fn copy(source: &[f32], out: &mut Uninitialised) {
    for (out, &value) in out.iter_mut().zip(source) {
        out.write(value);
    }
}

/// A vector of `length` numbers, all written by `fill`. Large results are made many times a second;
/// zeroing them first would cost a good part of a memory-bound kernel.
pub(crate) fn produce(length: usize, fill: impl FnOnce(&mut Uninitialised)) -> Vec<f32> {
    let mut values = Vec::new();
    fill(reserve(&mut values, length));
    // SAFETY: `fill` is a kernel, see `reserve`.
    unsafe { values.set_len(length) };
    values
}

/// Vectors of these lengths, all written by `fill`.
pub(crate) fn produce_all(
    lengths: &[usize],
    fill: impl FnOnce(Vec<&mut Uninitialised>),
) -> Vec<Vec<f32>> {
    let mut vectors = vec![Vec::new(); lengths.len()];
    fill(
        vectors.iter_mut().zip(lengths).map(|(vector, &length)| reserve(vector, length)).collect(),
    );
    for (vector, &length) in vectors.iter_mut().zip(lengths) {
        // SAFETY: `fill` is a kernel, see `reserve`.
        unsafe { vector.set_len(length) };
    }
    vectors
}

/// Room for `length` numbers in an empty vector.
///
/// Every kernel of this crate that takes `Uninitialised` memory writes all of it: elementwise kernels by zipping
/// slices whose lengths were asserted to be equal, matrix products by covering the destination, whose shape was
/// asserted. (Debug builds start from NaN, which tests see.)
fn reserve(values: &mut Vec<f32>, length: usize) -> &mut Uninitialised {
    values.reserve_exact(length);
    let spare = &mut values.spare_capacity_mut()[..length];
    if cfg!(debug_assertions) {
        spare.fill(MaybeUninit::new(f32::NAN));
    }
    spare
}
