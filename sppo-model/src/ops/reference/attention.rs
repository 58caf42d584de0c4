//! Causal attention over packed segments and over a cache, one query and head at a time.

use std::ops::Range;

use super::{
    AttentionOutput, AttentionSegment, AttentionShape, CachedRow, ReferenceTensor, add_scaled, dot,
    log_sum_exp, soft_cap, soft_cap_slope,
};

/// The key-value rows that a query sees: the last `window` of all of `prefix`, then all of `own`.
fn visible(prefix: &Range<usize>, own: Range<usize>, window: Option<usize>) -> Vec<usize> {
    let rows: Vec<usize> = prefix.clone().chain(own).collect();
    let skipped = window.map_or(0, |window| rows.len().saturating_sub(window));
    rows[skipped..].to_vec()
}

/// The features of a query head, and those of the key-value head that it shares.
fn head_ranges(shape: &AttentionShape, head: usize) -> (Range<usize>, Range<usize>) {
    let size = shape.head_size;
    let shared = head / (shape.query_heads / shape.key_value_heads);
    (head * size..(head + 1) * size, shared * size..(shared + 1) * size)
}

/// Scaled and capped scores of one query head.
fn scores(query: &[f64], keys: &[&[f64]], shape: &AttentionShape) -> Vec<f64> {
    let scale = f64::from(shape.scale);
    keys.iter().map(|key| soft_cap(scale * dot(query, key), shape.soft_cap)).collect()
}

/// Attends with one query row to the given rows; returns each head's log-sum-exp.
fn attend(
    query: &[f64],
    keys: &ReferenceTensor,
    values: &ReferenceTensor,
    shape: &AttentionShape,
    rows: &[usize],
    output: &mut [f64],
) -> Vec<f64> {
    let mut normalisers = Vec::with_capacity(shape.query_heads);
    for head in 0..shape.query_heads {
        let (own, shared) = head_ranges(shape, head);
        let head_keys: Vec<_> = rows.iter().map(|&row| &keys.row(row)[shared.clone()]).collect();
        let scores = scores(&query[own.clone()], &head_keys, shape);
        let normaliser = log_sum_exp(&scores);
        for (score, &row) in scores.iter().zip(rows) {
            let probability = (score - normaliser).exp();
            add_scaled(&mut output[own.clone()], probability, &values.row(row)[shared.clone()]);
        }
        normalisers.push(normaliser);
    }
    normalisers
}

pub(super) fn forward(
    queries: &ReferenceTensor,
    keys: &ReferenceTensor,
    values: &ReferenceTensor,
    shape: &AttentionShape,
    segments: &[AttentionSegment],
) -> AttentionOutput<ReferenceTensor> {
    let mut output = ReferenceTensor::zeros(queries.rows, queries.columns);
    let mut log_sum_exp = ReferenceTensor::zeros(queries.rows, shape.query_heads);
    for segment in segments {
        for (index, query) in segment.queries.clone().enumerate() {
            let own = segment.own.start..segment.own.start + index + 1;
            let rows = visible(&segment.prefix, own, shape.window);
            let into = output.row_mut(query);
            let normalisers = attend(queries.row(query), keys, values, shape, &rows, into);
            log_sum_exp.row_mut(query).copy_from_slice(&normalisers);
        }
    }
    AttentionOutput { output, log_sum_exp }
}

pub(super) fn cached(
    queries: &ReferenceTensor,
    keys: &ReferenceTensor,
    values: &ReferenceTensor,
    shape: &AttentionShape,
    cached_rows: &[CachedRow],
) -> ReferenceTensor {
    let mut output = ReferenceTensor::zeros(queries.rows, queries.columns);
    for (query, row) in cached_rows.iter().enumerate() {
        let rows: Vec<usize> = row.within(shape.window).slots().collect();
        attend(queries.row(query), keys, values, shape, &rows, output.row_mut(query));
    }
    output
}

/// Per query head, with probabilities `p_j = exp(s_j - log_sum_exp)`, output `o = sum_j p_j v_j` and its
/// gradient `do`:
///
/// ```text
/// ds_j = p_j (v_j . do - o . do) * slope of the soft-cap        (`o . do` is the mean of `v_j . do`)
/// dq = scale * sum_j ds_j k_j     dk_j += scale * ds_j q     dv_j += p_j do
/// ```
pub(super) fn backward(
    queries: &ReferenceTensor,
    [keys, values]: [&ReferenceTensor; 2],
    forward: &AttentionOutput<ReferenceTensor>,
    shape: &AttentionShape,
    segments: &[AttentionSegment],
    gradient: &ReferenceTensor,
) -> [ReferenceTensor; 3] {
    let mut of_queries = ReferenceTensor::zeros(queries.rows, queries.columns);
    let mut of_keys = ReferenceTensor::zeros(keys.rows, keys.columns);
    let mut of_values = ReferenceTensor::zeros(values.rows, values.columns);
    for segment in segments {
        for (index, query) in segment.queries.clone().enumerate() {
            let own_rows = segment.own.start..segment.own.start + index + 1;
            let rows = visible(&segment.prefix, own_rows, shape.window);
            for head in 0..shape.query_heads {
                let (own, shared) = head_ranges(shape, head);
                let query_head = &queries.row(query)[own.clone()];
                let head_gradient = &gradient.row(query)[own.clone()];
                let normaliser = forward.log_sum_exp.row(query)[head];
                let mean = dot(&forward.output.row(query)[own.clone()], head_gradient);
                let head_keys: Vec<_> =
                    rows.iter().map(|&row| &keys.row(row)[shared.clone()]).collect();
                for (score, &row) in scores(query_head, &head_keys, shape).iter().zip(&rows) {
                    let probability = (score - normaliser).exp();
                    let value = &values.row(row)[shared.clone()];
                    let of_score = f64::from(shape.scale)
                        * probability
                        * (dot(value, head_gradient) - mean)
                        * soft_cap_slope(*score, shape.soft_cap);
                    let key = &keys.row(row)[shared.clone()];
                    add_scaled(&mut of_queries.row_mut(query)[own.clone()], of_score, key);
                    let of_key = &mut of_keys.row_mut(row)[shared.clone()];
                    add_scaled(of_key, of_score, query_head);
                    let of_value = &mut of_values.row_mut(row)[shared.clone()];
                    add_scaled(of_value, probability, head_gradient);
                }
            }
        }
    }
    [of_queries, of_keys, of_values]
}
