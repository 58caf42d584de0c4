//! Attention of single query rows over a cache of keys and values.

use rayon::prelude::*;
use sppo_model::ops::{AttentionShape, CachedRow};

use super::attention_layout::group_size;
use super::log_probs::cap_slice;
use super::vector::{exponentials, maximum_of, multiply_add, vectorised};

/// One layer's cache, as rows of all key-value heads.
#[derive(Clone, Copy)]
pub(crate) struct LayerCache<'a> {
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
}

/// Independent sums of a dot product.
const LANES: usize = 8;

/// One output row per entry of `rows`.
pub(crate) fn cached_attention(
    queries: &[f32],
    cache: LayerCache,
    shape: &AttentionShape,
    rows: &[CachedRow],
) -> Vec<f32> {
    let features = shape.query_heads * shape.head_size;
    let width = group_size(shape) * shape.head_size;
    let mut output = vec![0.0; queries.len()];
    output.par_chunks_mut(features).zip(queries.par_chunks(features)).zip(rows).for_each(
        |((output, queries), row)| {
            let slots: Vec<usize> = row.within(shape.window).slots().collect();
            let mut parts = vec![[0.0; LANES]; slots.len()];
            let heads = output.chunks_exact_mut(width).zip(queries.chunks_exact(width));
            for (head, (output, queries)) in heads.enumerate() {
                let groups = output
                    .chunks_exact_mut(shape.head_size)
                    .zip(queries.chunks_exact(shape.head_size));
                for (output, query) in groups {
                    attend(query, cache, shape, head, &slots, &mut parts, output);
                }
            }
        },
    );
    output
}

vectorised! {
    /// One head of one row: `softmax(cap(scale query keys^T)) values` over the row's slots. The cache is
    /// `[slots, heads, size]`; `output` starts at zero, `parts` is scratch, one entry per slot.
    fn attend(
        query: &[f32],
        cache: LayerCache,
        shape: &AttentionShape,
        head: usize,
        slots: &[usize],
        parts: &mut [[f32; LANES]],
        output: &mut [f32],
    ) {
        let size = shape.head_size;
        let features = shape.key_value_heads * size;
        let mut weights = vec![0.0; slots.len()];
        // Stored before they are added up, so that the compiler keeps each as one vector register.
        for (parts, slot) in parts.iter_mut().zip(slots) {
            let key = &cache.keys[slot * features + head * size..][..size];
            *parts = dot_parts::<FUSED>(query, key);
        }
        for (weight, parts) in weights.iter_mut().zip(parts.iter()) {
            *weight = shape.scale * parts.iter().sum::<f32>();
        }
        if let Some(cap) = shape.soft_cap {
            cap_slice(&mut weights, cap);
        }
        let maximum = maximum_of(&weights);
        let inverse = 1.0 / exponentials::<FUSED>(&mut weights, maximum);
        for (&weight, slot) in weights.iter().zip(slots) {
            let value = &cache.values[slot * features + head * size..][..size];
            let weight = weight * inverse;
            for (output, &value) in output.iter_mut().zip(value) {
                *output = multiply_add::<FUSED>(weight, value, *output);
            }
        }
    }
}

#[inline(always)]
fn dot_parts<const FUSED: bool>(a: &[f32], b: &[f32]) -> [f32; LANES] {
    let mut parts = [0.0; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for ((part, &a), &b) in parts.iter_mut().zip(a_blocks.remainder()).zip(b_blocks.remainder()) {
        *part = a * b;
    }
    for (a, b) in a_blocks.zip(b_blocks) {
        for ((part, &a), &b) in parts.iter_mut().zip(a).zip(b) {
            *part = multiply_add::<FUSED>(a, b, *part);
        }
    }
    parts
}
