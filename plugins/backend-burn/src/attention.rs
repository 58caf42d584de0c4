//! Attention over packed segments, forward and backward.
//!
//! Each segment attends by itself, to the keys of its prompt followed by its own. Query heads that share
//! keys lie side by side in one matrix, so that a product with keys or values sums over them:
//!
//! ```text
//! queries [shared heads, groups * queries, size]    keys, values [shared heads, prompt + own, size]
//! scores  [shared heads, groups * queries, prompt + own] + mask [1, 1, queries, prompt + own]
//! ```

use std::ops::Range;

use burn_tensor::{Device, Tensor};
use sppo_model::Result;
use sppo_model::ops::{AttentionOutput, AttentionSegment, AttentionShape};

use crate::tensors::{add_to_rows, rows, set_rows, soft_cap, soft_cap_backward, upload};

/// Added to the scores of keys that a query does not see.
pub(crate) const HIDDEN: f32 = -1e30;

/// Heads of a row: `shared` key-value heads, each of `groups` query heads, of `size` features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) groups: usize,
    pub(crate) shared: usize,
    pub(crate) size: usize,
}

impl Heads {
    pub(crate) fn of(shape: &AttentionShape) -> Self {
        Self {
            groups: shape.query_heads / shape.key_value_heads.max(1),
            shared: shape.key_value_heads,
            size: shape.head_size,
        }
    }

    /// Rows of queries, or of numbers per query head (`size` 1), side by side.
    fn gather(&self, x: Tensor<2>, size: usize) -> Tensor<3> {
        let [rows, _] = x.dims();
        x.reshape([rows, self.shared, self.groups, size]).permute([1, 2, 0, 3]).reshape([
            self.shared,
            self.groups * rows,
            size,
        ])
    }

    /// The way back from [`Self::gather`].
    fn scatter(&self, x: Tensor<3>) -> Tensor<2> {
        let [_, all, size] = x.dims();
        let rows = all / self.groups;
        x.reshape([self.shared, self.groups, rows, size])
            .permute([2, 0, 1, 3])
            .reshape([rows, self.shared * self.groups * size])
    }

    /// Rows of keys or values as `[shared heads, rows, size]`.
    fn keys(&self, x: Tensor<2>) -> Tensor<3> {
        let [rows, _] = x.dims();
        x.reshape([rows, self.shared, self.size]).swap_dims(0, 1)
    }

    /// The way back from [`Self::keys`].
    fn key_rows(&self, x: Tensor<3>) -> Tensor<2> {
        let [_, rows, _] = x.dims();
        x.swap_dims(0, 1).reshape([rows, self.shared * self.size])
    }
}

/// One segment's operands.
struct Part<'a> {
    /// `[shared heads, groups * queries, size]`.
    queries: Tensor<3>,
    /// `[shared heads, keys, size]`.
    keys: Tensor<3>,
    /// As the keys.
    values: Tensor<3>,
    /// `[1, 1, queries, keys]`.
    mask: Tensor<4>,
    shape: &'a AttentionShape,
}

impl Part<'_> {
    /// Scaled and capped, without the mask: `[shared heads, groups * queries, keys]`.
    fn scores(&self) -> Tensor<3> {
        let scores = self.queries.clone().matmul(self.keys.clone().swap_dims(1, 2));
        soft_cap(scores * self.shape.scale, self.shape.soft_cap)
    }

    fn masked(&self, scores: Tensor<3>) -> Tensor<3> {
        let [shared, all, keys] = scores.dims();
        let queries = self.mask.dims()[2];
        let grouped = scores.reshape([shared, all / queries, queries, keys]);
        (grouped + self.mask.clone()).reshape([shared, all, keys])
    }

    /// Output, and log-sum-exp of each query's scores (`size` 1).
    fn forward(&self) -> (Tensor<3>, Tensor<3>) {
        let (weights, log_sum_exp) = softmax(self.masked(self.scores()));
        (weights.matmul(self.values.clone()), log_sum_exp)
    }

    /// Gradients of queries, keys and values, from output `o`, log-sum-exp `l` and the output's gradient
    /// `g`.
    ///
    /// ```text
    /// w = exp(scores - l)        scores = cap(scale q k^T)
    /// v' = w^T g                 t = w (g v^T - sum(g o)) scale cap'
    /// q' = t k                   k' = t^T q
    /// ```
    fn backward(
        &self,
        output: Tensor<3>,
        log_sum_exp: Tensor<3>,
        gradient: Tensor<3>,
    ) -> [Tensor<3>; 3] {
        let scores = self.scores();
        let weights = (self.masked(scores.clone()) - log_sum_exp).exp();
        let of_values = weights.clone().swap_dims(1, 2).matmul(gradient.clone());
        let of_weights = gradient.clone().matmul(self.values.clone().swap_dims(1, 2));
        let mean = (gradient * output).sum_dim(2);
        let of_capped = (of_weights - mean) * weights * self.shape.scale;
        let of_scores = soft_cap_backward(of_capped, scores, self.shape.soft_cap);
        let of_keys = of_scores.clone().swap_dims(1, 2).matmul(self.queries.clone());
        [of_scores.matmul(self.keys.clone()), of_keys, of_values]
    }
}

/// Softmax over the last dimension, and the log-sum-exp.
pub(crate) fn softmax<const D: usize>(scores: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
    let largest = scores.clone().max_dim(D - 1);
    let weights = (scores - largest.clone()).exp();
    let sum = weights.clone().sum_dim(D - 1);
    (weights / sum.clone(), sum.log() + largest)
}

/// The rows that a segment's queries may see.
fn visible_rows(x: &Tensor<2>, segment: &AttentionSegment) -> Tensor<2> {
    let own = rows(x, &segment.own);
    match segment.prefix.is_empty() {
        true => own,
        false => Tensor::cat(vec![rows(x, &segment.prefix), own], 0),
    }
}

/// Masks of segments, `[1, 1, queries, keys]` each: they hide keys after a query and beyond the window.
pub(crate) fn masks(
    segments: &[AttentionSegment],
    window: Option<usize>,
    device: &Device,
) -> Result<Vec<Tensor<4>>> {
    segments.iter().map(|segment| mask(segment, window, device)).collect()
}

fn mask(segment: &AttentionSegment, window: Option<usize>, device: &Device) -> Result<Tensor<4>> {
    let (queries, prefix) = (segment.queries.len(), segment.prefix.len());
    let keys = prefix + segment.own.len();
    let mut mask = vec![HIDDEN; queries * keys];
    for (query, mask) in mask.chunks_exact_mut(keys.max(1)).enumerate() {
        let end = (prefix + query + 1).min(keys);
        let start = window.map_or(0, |window| end.saturating_sub(window));
        mask[start..end].fill(0.0);
    }
    upload(mask, [1, 1, queries, keys], device)
}

/// Segments and their operands, one mask for each.
fn parts<'a>(
    [queries, keys, values]: [&'a Tensor<2>; 3],
    shape: &'a AttentionShape,
    segments: &'a [AttentionSegment],
    masks: &'a [Tensor<4>],
) -> impl Iterator<Item = (&'a AttentionSegment, Part<'a>)> {
    let heads = Heads::of(shape);
    segments.iter().zip(masks).map(move |(segment, mask)| {
        let part = Part {
            queries: heads.gather(rows(queries, &segment.queries), heads.size),
            keys: heads.keys(visible_rows(keys, segment)),
            values: heads.keys(visible_rows(values, segment)),
            mask: mask.clone(),
            shape,
        };
        (segment, part)
    })
}

/// Output `[rows, query heads * size]` and log-sum-exp `[rows, query heads]`.
pub(crate) fn attention(
    operands: [&Tensor<2>; 3],
    shape: &AttentionShape,
    segments: &[AttentionSegment],
    masks: &[Tensor<4>],
) -> (Tensor<2>, Tensor<2>) {
    let heads = Heads::of(shape);
    let mut output = operands[0].zeros_like();
    let rows = output.dims()[0];
    let mut log_sum_exp = Tensor::zeros([rows, shape.query_heads], &output.device());
    for (segment, part) in parts(operands, shape, segments, masks) {
        let (of_part, log_sum_exp_of_part) = part.forward();
        set_rows(&mut output, &segment.queries, heads.scatter(of_part));
        set_rows(&mut log_sum_exp, &segment.queries, heads.scatter(log_sum_exp_of_part));
    }
    (output, log_sum_exp)
}

/// Gradients of queries, keys and values.
pub(crate) fn attention_backward(
    operands: [&Tensor<2>; 3],
    forward: &AttentionOutput<Tensor<2>>,
    gradient: &Tensor<2>,
    shape: &AttentionShape,
    segments: &[AttentionSegment],
    masks: &[Tensor<4>],
) -> [Tensor<2>; 3] {
    let heads = Heads::of(shape);
    let [mut of_queries, mut of_keys, mut of_values] = operands.map(Tensor::zeros_like);
    for (segment, part) in parts(operands, shape, segments, masks) {
        let of_segment = |x: &Tensor<2>, size| heads.gather(rows(x, &segment.queries), size);
        let [part_queries, part_keys, part_values] = part.backward(
            of_segment(&forward.output, heads.size),
            of_segment(&forward.log_sum_exp, 1),
            of_segment(gradient, heads.size),
        );
        set_rows(&mut of_queries, &segment.queries, heads.scatter(part_queries));
        // Several segments add to the keys of a prompt.
        for (sum, of_part) in [(&mut of_keys, part_keys), (&mut of_values, part_values)] {
            let of_part = heads.key_rows(of_part);
            let split = segment.prefix.len();
            let all = 0..of_part.dims()[0];
            let halves: [(&Range<usize>, Range<usize>); 2] =
                [(&segment.prefix, 0..split), (&segment.own, split..all.end)];
            for (to, from) in halves {
                if !to.is_empty() {
                    add_to_rows(sum, to, rows(&of_part, &from));
                }
            }
        }
    }
    [of_queries, of_keys, of_values]
}
