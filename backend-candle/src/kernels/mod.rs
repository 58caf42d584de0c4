//! Kernels over plain slices. Each divides its work into parts of a fixed size, whatever the number
//! of threads, and adds partial results in a fixed order, so results are bitwise reproducible.

pub(crate) mod attention;
pub(crate) mod attention_backward;
pub(crate) mod attention_layout;
pub(crate) mod bf16_matrix;
pub(crate) mod block;
pub(crate) mod cached_attention;
pub(crate) mod disentangled_attention;
pub(crate) mod elementwise;
pub(crate) mod lanes;
pub(crate) mod log_probs;
pub(crate) mod matrix;
pub(crate) mod norm;
pub(crate) mod optimizer;
mod packing;
pub(crate) mod panels;
pub(crate) mod parts;
mod product;
pub(crate) mod quantized_products;
pub(crate) mod rotary;
pub(crate) mod tile;
pub(crate) mod tile_row;
pub(crate) mod vector;

use std::mem::MaybeUninit;

/// Memory that a kernel fills.
pub(crate) type Uninitialised = [MaybeUninit<f32>];

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
    let mut values: Vec<f32> = Vec::with_capacity(length);
    let spare = values.spare_capacity_mut().get_mut(..length).unwrap_or_default();
    if cfg!(debug_assertions) {
        spare.fill(MaybeUninit::new(f32::NAN));
    }
    fill(spare);
    // SAFETY: the capacity is at least `length`, and every kernel of this crate that takes
    // `Uninitialised` memory writes all of it: elementwise kernels by zipping slices whose lengths were
    // asserted to be equal, matrix products by covering the destination, whose shape was asserted.
    // (Debug builds start from NaN, which tests see.)
    unsafe { values.set_len(length) };
    values
}
