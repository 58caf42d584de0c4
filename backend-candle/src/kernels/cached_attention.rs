//! Attention of single query rows over a cache of keys and values.

use rayon::prelude::*;
use sppo_model::ops::{AttentionShape, CachedRow};

use super::attention_layout::group_size;
use super::log_probs::cap_slice;
use super::vector::{dot, exponentials, maximum_of, multiply_add, vectorised};

/// One layer's cache, as rows of all key-value heads.
#[derive(Clone, Copy)]
pub(crate) struct LayerCache<'a> {
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
}

/// One output row per entry of `rows`.
pub(crate) fn cached_attention(
    queries: &[f32],
    cache: LayerCache,
    shape: &AttentionShape,
    rows: &[CachedRow],
) -> Vec<f32> {
    let width = group_size(shape) * shape.head_size;
    let mut output = vec![0.0; queries.len()];
    output.par_chunks_mut(width).zip(queries.par_chunks(width)).enumerate().for_each(
        |(index, (output, queries))| {
            let (row, head) = (index / shape.key_value_heads, index % shape.key_value_heads);
            let slots = visible_slots(&rows[row], shape.window);
            attend(queries, cache, shape, head, &slots, output);
        },
    );
    output
}

fn visible_slots(row: &CachedRow, window: Option<usize>) -> Vec<usize> {
    let count = row.prefix.len() + row.own.len();
    let hidden = window.map_or(0, |window| count.saturating_sub(window));
    row.prefix.clone().chain(row.own.clone()).skip(hidden).collect()
}

vectorised! {
    /// Heads of one group of one row; `output` starts at zero.
    fn attend(
        queries: &[f32],
        cache: LayerCache,
        shape: &AttentionShape,
        head: usize,
        slots: &[usize],
        output: &mut [f32],
    ) {
        let size = shape.head_size;
        let features = shape.key_value_heads * size;
        let count = slots.len();
        let mut weights = vec![0.0; queries.len() / size * count];
        for (index, slot) in slots.iter().enumerate() {
            let key = &cache.keys[slot * features + head * size..][..size];
            for (weights, query) in weights.chunks_exact_mut(count).zip(queries.chunks_exact(size)) {
                weights[index] = shape.scale * dot::<FUSED>(query, key);
            }
        }
        for weights in weights.chunks_exact_mut(count) {
            if let Some(cap) = shape.soft_cap {
                cap_slice(weights, cap);
            }
            let maximum = maximum_of(weights);
            let inverse = 1.0 / exponentials::<FUSED>(weights, maximum);
            weights.iter_mut().for_each(|weight| *weight *= inverse);
        }
        for (index, slot) in slots.iter().enumerate() {
            let value = &cache.values[slot * features + head * size..][..size];
            for (weights, output) in weights.chunks_exact(count).zip(output.chunks_exact_mut(size)) {
                let weight = weights[index];
                for (output, &value) in output.iter_mut().zip(value) {
                    *output = multiply_add::<FUSED>(weight, value, *output);
                }
            }
        }
    }
}
