//! Causal attention over packed segments, backward. Probabilities are computed again from the
//! log-sum-exp. Keys and values of a shared prompt collect the gradients of all its responses, in
//! the order of the segments.

use std::ops::Range;

use rayon::prelude::*;
use sppo_model::ops::AttentionSegment;

use super::attention::{Operands, block_rows, score_stride, widest_stride};
use super::attention_layout::{
    gather_group, group_size, key_blocks, key_count, query_blocks, visible_in_block,
};
use super::block::{ProductSize, Target, Transposed, multiply_block};
use super::elementwise::add_to;
use super::log_probs::cap_slice;
use super::tile::{Left, Right};
use super::vector::{dot, exp, vectorised};

/// Results of the forward pass, and the gradient of its output.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    pub output: &'a [f32],
    pub log_sum_exp: &'a [f32],
    pub gradient: &'a [f32],
}

/// Keys and values as `[features, rows]`.
struct TransposedOperands {
    keys: Transposed,
    values: Transposed,
}

/// Gradients of one segment, from the query heads that share one key-value head (`head`).
struct Part<'a> {
    segment: &'a AttentionSegment,
    head: usize,
    /// `[tokens, heads of the group * head size]`.
    queries: Vec<f32>,
    /// `[positions, head size]`, the prefix first.
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Gradients of queries, keys and values.
pub fn attention_backward(operands: Operands, forward: Forward) -> [Vec<f32>; 3] {
    let mut gradients =
        [operands.queries, operands.keys, operands.values].map(|operand| vec![0.0; operand.len()]);
    let [of_queries, of_keys, of_values] = &mut gradients;
    write_attention_backward(operands, forward, [of_queries, of_keys, of_values]);
    gradients
}

/// [`attention_backward`] to memory of those sizes, which holds zeros.
pub fn write_attention_backward(
    operands: Operands,
    forward: Forward,
    [of_queries, of_keys, of_values]: [&mut [f32]; 3],
) {
    let heads = operands.shape.key_value_heads;
    let tasks: Vec<_> = operands
        .segments
        .iter()
        .flat_map(|segment| (0..heads).map(move |head| (segment, head)))
        .collect();
    let features = operands.key_value_features();
    let key_rows = operands.keys.len() / features.max(1);
    let transposed = TransposedOperands {
        keys: Transposed::new(operands.keys, key_rows, features),
        values: Transposed::new(operands.values, key_rows, features),
    };
    let parts: Vec<Part> = tasks
        .into_par_iter()
        .with_max_len(1)
        .map(|(segment, head)| segment_backward(&operands, &transposed, &forward, segment, head))
        .collect();
    rayon::join(
        || collect_queries(&operands, &parts, of_queries),
        || {
            rayon::join(
                || collect_keys(&operands, &parts, |part| &part.keys, of_keys),
                || collect_keys(&operands, &parts, |part| &part.values, of_values),
            )
        },
    );
}

fn collect_queries(operands: &Operands, parts: &[Part], gradients: &mut [f32]) {
    let features = operands.query_features();
    for part in parts {
        let columns = operands.group_columns(part.head);
        for (row, source) in
            part.segment.queries.clone().zip(part.queries.chunks_exact(columns.len()))
        {
            for (out, value) in gradients[row * features..][columns.clone()].iter_mut().zip(source)
            {
                *out = value * operands.shape.scale;
            }
        }
    }
}

fn collect_keys<'a>(
    operands: &Operands,
    parts: &'a [Part],
    of: impl Fn(&'a Part) -> &'a [f32],
    gradients: &mut [f32],
) {
    let (features, size) = (operands.key_value_features(), operands.shape.head_size);
    for part in parts {
        let rows = part.segment.prefix.clone().chain(part.segment.own.clone());
        for (row, source) in rows.zip(of(part).chunks_exact(size)) {
            add_to(source, &mut gradients[row * features + part.head * size..][..size]);
        }
    }
}

fn segment_backward<'a>(
    operands: &Operands,
    transposed: &TransposedOperands,
    forward: &Forward,
    segment: &'a AttentionSegment,
    head: usize,
) -> Part<'a> {
    let size = operands.shape.head_size;
    let width = operands.group_columns(head).len();
    let mut part = Part {
        segment,
        head,
        queries: vec![0.0; segment.queries.len() * width],
        keys: vec![0.0; key_count(segment) * size],
        values: vec![0.0; key_count(segment) * size],
    };
    for tokens in query_blocks(operands.shape, segment) {
        block_backward(operands, transposed, forward, &mut part, tokens);
    }
    part
}

/// Adds the contributions of one block of queries. With scaled queries `q`, gradients `g`, outputs `o`, and
/// for each block of keys `k` and values `v`:
///
/// ```text
/// scores = cap(q k^T)        p = exp(scores - log_sum_exp)     rows: tokens x heads of the group
/// slopes = g v^T             t = p (slopes - sum(g o)) cap'    columns: keys, padded to whole tiles
/// v' += p^T g                k' += t^T q                       q' += t k (times scale, when collected)
/// ```
fn block_backward(
    operands: &Operands,
    transposed: &TransposedOperands,
    forward: &Forward,
    part: &mut Part,
    tokens: Range<usize>,
) {
    let (shape, segment, head) = (operands.shape, part.segment, part.head);
    let (group, size) = (group_size(shape), shape.head_size);
    let rows = tokens.len() * group;
    let token_rows = segment.queries.start + tokens.start..segment.queries.start + tokens.end;
    let gather = |tensor: &[f32], factor: f32| {
        let (features, columns) = (operands.query_features(), operands.group_columns(head));
        gather_group(tensor, features, token_rows.clone(), columns, factor)
    };
    let queries = gather(operands.queries, shape.scale);
    let gradients = gather(forward.gradient, 1.0);
    let outputs = gather(forward.output, 1.0);
    let projections = row_dots(&gradients, &outputs, size);
    let by_row = |values| Left::Rows { values, stride: size };
    let as_right = |values| Right { values, stride: size };

    let blocks = key_blocks(shape, segment, &tokens);
    let mut scores = vec![0.0; rows * widest_stride(&blocks)];
    let mut slopes = scores.clone();
    for block in &blocks {
        let (keys, stride) = (block.positions.len(), score_stride(block));
        let (scores, slopes) = (&mut scores[..rows * stride], &mut slopes[..rows * stride]);
        for (transposed, left, values) in [
            (&transposed.keys, by_row(&queries), &mut *scores),
            (&transposed.values, by_row(&gradients), &mut *slopes),
        ] {
            let right = transposed.from(head * size, block.first_row);
            let target = Target { values, stride, adds: false };
            multiply_block(target, left, right, ProductSize { rows, depth: size, columns: stride });
        }
        let pairs = scores.chunks_exact_mut(stride).zip(slopes.chunks_exact_mut(stride));
        for (row, (scores, slopes)) in pairs.enumerate() {
            let (token, member) = (row / group, row % group);
            let seen = visible_in_block(shape, block, segment.prefix.len() + tokens.start + token);
            let log_sum_exp = forward.log_sum_exp
                [(token_rows.start + token) * shape.query_heads + head * group + member];
            softmax_backward(scores, slopes, seen, shape.soft_cap, log_sum_exp, projections[row]);
        }
        let of_keys = block.positions.start * size..block.positions.end * size;
        for (left, right, values) in [
            (&*scores, &gradients, &mut part.values[of_keys.clone()]),
            (&*slopes, &queries, &mut part.keys[of_keys]),
        ] {
            let left = Left::Columns { values: left, stride };
            let target = Target { values, stride: size, adds: true };
            let product = ProductSize { rows: keys, depth: rows, columns: size };
            multiply_block(target, left, as_right(right), product);
        }
        let of_tokens = tokens.start * group * size..tokens.end * group * size;
        let target = Target { values: &mut part.queries[of_tokens], stride: size, adds: true };
        let left = Left::Rows { values: slopes, stride };
        let right = block_rows(operands, operands.keys, block, head);
        multiply_block(target, left, right, ProductSize { rows, depth: keys, columns: size });
    }
}

vectorised! {
    fn row_dots(a: &[f32], b: &[f32], size: usize) -> Vec<f32> {
        let mut dots = Vec::with_capacity(a.len() / size);
        for (a, b) in a.chunks_exact(size).zip(b.chunks_exact(size)) {
            dots.push(dot::<FUSED>(a, b));
        }
        dots
    }
}

vectorised! {
    /// Turns the scores of one query into probabilities, and the gradients of its probabilities
    /// (`slopes`) into gradients of its scores; both are zero outside `seen`. `projection` is the dot
    /// product of the query's output and its gradient.
    fn softmax_backward(
        scores: &mut [f32],
        slopes: &mut [f32],
        seen: Range<usize>,
        cap: Option<f32>,
        log_sum_exp: f32,
        projection: f32,
    ) {
        for slice in [&mut *scores, &mut *slopes] {
            slice[..seen.start].fill(0.0);
            slice[seen.end..].fill(0.0);
        }
        let (scores, slopes) = (&mut scores[seen.clone()], &mut slopes[seen]);
        let mut inverse = 0.0;
        if let Some(cap) = cap {
            cap_slice(scores, cap);
            inverse = 1.0 / cap;
        }
        for (score, slope) in scores.iter_mut().zip(slopes) {
            let ratio = *score * inverse;
            *score = exp::<FUSED>(*score - log_sum_exp);
            *slope = *score * (*slope - projection) * (1.0 - ratio * ratio);
        }
    }
}
