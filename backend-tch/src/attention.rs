//! Attention over packed segments, forward and backward.
//!
//! A query sees the keys of a shared prompt and those of its own segment. Each of the two is a *part*
//! that is attended to by itself; what comes out is weighted by the parts' sums of exponentials and
//! added up. So no key is copied, and the triangle above the diagonal costs nothing. Backward, a part
//! needs only the whole's output and log-sum-exp. The first response to a prompt follows it in the batch
//! and is one part with it.
//!
//! The heads that share keys form the first dimension of queries, along which keys and values have
//! stride 0: all operands are views of the activations.

use std::ops::Range;

use sppo_model::ops::{AttentionSegment, AttentionShape};
use tch::{Device, Kind, Tensor};

use crate::engine::TchOps;
use crate::tensors::{TorchResult, dimensions};

/// Added to the scores of keys that a query does not see. Finite, so that a query that sees nothing of
/// a part has a weight of zero there, and not one that is not a number.
pub(crate) const HIDDEN: f64 = -1e30;

/// One part's operands: queries `[batch, heads, queries, size]`, keys and values
/// `[batch, heads, keys, size]`.
pub(crate) struct Part<'a> {
    pub(crate) queries: &'a Tensor,
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
    /// Whether query `j` sees keys `0..=j` only.
    pub(crate) causal: bool,
    /// Added to the scores, f32, `[batch or 1, 1, queries or 1, keys]`.
    pub(crate) mask: Option<Tensor>,
    pub(crate) scale: f64,
    pub(crate) soft_cap: Option<f64>,
}

/// A part's output `[batch, heads, queries, size]` and log-sum-exp `[batch, heads, queries]`, f32.
pub(crate) struct PartOutput {
    pub(crate) output: Tensor,
    pub(crate) log_sum_exp: Tensor,
}

impl Part<'_> {
    /// libtorch has one fused kernel that returns log-sum-exps and takes any stride: the CPU's. On CUDA
    /// devices this is the way of what [`crate::packed_attention`] and [`crate::ragged_attention`] leave.
    fn is_fused(&self) -> bool {
        self.soft_cap.is_none() && self.queries.device() == Device::Cpu
    }

    pub(crate) fn forward(&self) -> TorchResult<PartOutput> {
        if self.is_fused() {
            let (output, log_sum_exp) =
                Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
                    self.queries,
                    self.keys,
                    self.values,
                    0.0,
                    self.causal,
                    self.mask.as_ref(),
                    self.scale,
                )?;
            return Ok(PartOutput { output, log_sum_exp });
        }
        let scores = self.scores()?;
        let log_sum_exp = scores.f_logsumexp([-1], false)?;
        let weights = self.weights(scores, &log_sum_exp)?;
        let output = weights.f_to_kind(self.values.f_kind()?)?.f_matmul(self.values)?;
        Ok(PartOutput { output, log_sum_exp })
    }

    /// Gradients of the part's queries, keys and values, from the whole's output and log-sum-exp and
    /// the output's gradient.
    pub(crate) fn backward(
        &self,
        whole: &PartOutput,
        gradient: &Tensor,
    ) -> TorchResult<[Tensor; 3]> {
        if self.is_fused() {
            let (queries, keys, values) =
                Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
                    gradient,
                    self.queries,
                    self.keys,
                    self.values,
                    &whole.output,
                    &whole.log_sum_exp,
                    0.0,
                    self.causal,
                    self.mask.as_ref(),
                    self.scale,
                )?;
            return Ok([queries, keys, values]);
        }
        let kind = self.queries.f_kind()?;
        let scores = self.scores()?;
        let slopes = match self.soft_cap {
            Some(cap) => {
                Some(scores.f_square()?.f_mul_scalar(-1.0 / (cap * cap))?.f_add_scalar(1)?)
            }
            None => None,
        };
        let weights = self.weights(scores, &whole.log_sum_exp)?;
        let of_values = weights.f_to_kind(kind)?.f_transpose(-2, -1)?.f_matmul(gradient)?;
        let of_weights =
            gradient.f_matmul(&self.values.f_transpose(-2, -1)?)?.f_to_kind(Kind::Float)?;
        let mean = gradient.f_to_kind(Kind::Float)?.f_mul(&whole.output)?.f_sum_dim_intlist(
            [-1].as_slice(),
            true,
            Kind::Float,
        )?;
        let mut of_scores = of_weights.f_sub(&mean)?;
        let _ = of_scores.f_mul_(&weights)?;
        let _ = of_scores.f_mul_scalar_(self.scale)?;
        if let Some(slopes) = slopes {
            // Hidden scores have a weight of zero; their slopes may be anything finite.
            let _ = of_scores.f_mul_(&slopes.f_clamp(0.0, 1.0)?)?;
        }
        let of_scores = of_scores.f_to_kind(kind)?;
        let of_queries = of_scores.f_matmul(self.keys)?;
        let of_keys = of_scores.f_transpose(-2, -1)?.f_matmul(self.queries)?;
        Ok([of_queries, of_keys, of_values])
    }

    /// Scaled, capped and masked, f32.
    fn scores(&self) -> TorchResult<Tensor> {
        let scores = self.queries.f_matmul(&self.keys.f_transpose(-2, -1)?)?;
        let mut scores = scores.f_to_kind(Kind::Float)?;
        let _ = scores.f_mul_scalar_(self.scale / self.soft_cap.unwrap_or(1.0))?;
        if let Some(cap) = self.soft_cap {
            let _ = scores.f_tanh_()?;
            let _ = scores.f_mul_scalar_(cap)?;
        }
        if let Some(mask) = &self.mask {
            let _ = scores.f_add_(mask)?;
        }
        if self.causal {
            let (queries, keys) = (self.queries.size()[2], self.keys.size()[2]);
            let _ = scores.f_add_(&band(queries, keys, 0, None, scores.device())?)?;
        }
        Ok(scores)
    }

    fn weights(&self, mut scores: Tensor, log_sum_exp: &Tensor) -> TorchResult<Tensor> {
        let _ = scores.f_sub_(&log_sum_exp.f_unsqueeze(-1)?)?;
        Ok(scores.f_exp_()?)
    }
}

/// What to add to scores so that query `j` sees the keys up to `first + j`, and of these the last
/// `window`: `[queries, keys]`.
fn band(
    queries: i64,
    keys: i64,
    first: i64,
    window: Option<i64>,
    device: Device,
) -> TorchResult<Tensor> {
    let hidden = Tensor::f_full([queries, keys], HIDDEN, (Kind::Float, device))?;
    let mut mask = hidden.f_triu(first + 1)?;
    if let Some(window) = window {
        let _ = mask.f_add_(&hidden.f_tril(first - window)?)?;
    }
    Ok(mask)
}

/// How heads lie in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) groups: i64,
    pub(crate) shared: i64,
    pub(crate) size: i64,
}

impl Heads {
    pub(crate) fn of(shape: &AttentionShape) -> Self {
        Self {
            groups: (shape.query_heads / shape.key_value_heads.max(1)) as i64,
            shared: shape.key_value_heads as i64,
            size: shape.head_size as i64,
        }
    }

    /// Rows of queries, or of their gradients, as `[groups, shared heads, rows, size]`.
    pub(crate) fn of_queries(&self, x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
        let x = narrow(x, rows)?.f_view([-1, self.shared, self.groups, self.size])?;
        Ok(x.f_permute([2, 1, 0, 3])?)
    }

    /// One number per query and head as `[groups, shared heads, rows]`.
    pub(crate) fn of_log_sum_exps(&self, x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
        Ok(narrow(x, rows)?.f_view([-1, self.shared, self.groups])?.f_permute([2, 1, 0])?)
    }

    /// Rows of keys or values as `[groups, shared heads, rows, size]`, the same for every group.
    pub(crate) fn of_keys(&self, x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
        let x = self.of_keys_once(x, rows)?;
        Ok(x.f_expand([self.groups, self.shared, rows.len() as i64, self.size], false)?)
    }

    /// Rows of keys or values as `[shared heads, rows, size]`.
    fn of_keys_once(&self, x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
        Ok(narrow(x, rows)?.f_view([-1, self.shared, self.size])?.f_permute([1, 0, 2])?)
    }
}

fn narrow(x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
    Ok(x.f_narrow(0, rows.start as i64, rows.len() as i64)?)
}

/// The segments, a prompt and the response whose rows follow it made one: they are one causal sequence,
/// and attended to at once there is nothing to put together and round.
pub(crate) fn joined(segments: &[AttentionSegment]) -> Vec<AttentionSegment> {
    let mut joined: Vec<AttentionSegment> = Vec::with_capacity(segments.len());
    for segment in segments {
        match joined.last_mut() {
            Some(prompt)
                if prompt.prefix.is_empty()
                    && prompt.queries == prompt.own
                    && segment.queries == segment.own
                    && segment.prefix == prompt.own
                    && segment.own.start == prompt.own.end =>
            {
                prompt.own.end = segment.own.end;
                prompt.queries.end = segment.own.end;
            }
            _ => joined.push(segment.clone()),
        }
    }
    joined
}

/// Keys that a segment's queries see.
struct SeenKeys {
    rows: Range<usize>,
    /// Whether query `j` sees keys `0..=j` only.
    causal: bool,
    /// Hides more, see [`Part::mask`].
    mask: Option<Tensor>,
}

/// The part of a prefix that some query of the segment sees.
fn visible_prefix(
    segment: &AttentionSegment,
    window: Option<usize>,
    device: Device,
) -> TorchResult<Option<SeenKeys>> {
    let mut prefix = segment.prefix.clone();
    if let Some(window) = window {
        // The first query is the one that sees most of it: the last `window - 1` keys.
        prefix.start = prefix.start.max(prefix.end.saturating_sub(window.saturating_sub(1)));
    }
    if prefix.is_empty() {
        return Ok(None);
    }
    let (queries, keys) = (segment.queries.len(), prefix.len());
    let mask = match window {
        Some(window) if queries + keys > window => {
            let window = Some(window as i64);
            Some(mask_of_rank_4(band(queries as i64, keys as i64, keys as i64, window, device)?)?)
        }
        _ => None,
    };
    Ok(Some(SeenKeys { rows: prefix, causal: false, mask }))
}

/// A segment's own keys.
fn own_keys(
    segment: &AttentionSegment,
    window: Option<usize>,
    device: Device,
) -> TorchResult<SeenKeys> {
    let queries = segment.queries.len();
    let mask = match window {
        Some(window) if queries > window => {
            let queries = queries as i64;
            Some(mask_of_rank_4(band(queries, queries, 0, Some(window as i64), device)?)?)
        }
        _ => None,
    };
    Ok(SeenKeys { rows: segment.own.clone(), causal: mask.is_none(), mask })
}

fn mask_of_rank_4(mask: Tensor) -> TorchResult<Tensor> {
    Ok(mask.f_unsqueeze(0)?.f_unsqueeze(0)?)
}

/// The keys that a segment's queries see, part by part.
fn parts(
    segment: &AttentionSegment,
    window: Option<usize>,
    device: Device,
) -> TorchResult<Vec<SeenKeys>> {
    let mut parts = vec![own_keys(segment, window, device)?];
    parts.extend(visible_prefix(segment, window, device)?);
    Ok(parts)
}

/// Puts two parts of the same queries together.
pub(crate) fn merge(first: &PartOutput, second: &PartOutput) -> TorchResult<PartOutput> {
    let log_sum_exp = first.log_sum_exp.f_logaddexp(&second.log_sum_exp)?;
    let weighted = |part: &PartOutput| -> TorchResult<Tensor> {
        let weight = part.log_sum_exp.f_sub(&log_sum_exp)?.f_exp_()?.f_unsqueeze(-1)?;
        Ok(part.output.f_mul(&weight)?)
    };
    let mut output = weighted(first)?;
    let _ = output.f_add_(&weighted(second)?)?;
    Ok(PartOutput { output, log_sum_exp })
}

/// Output `[rows, query heads * size]` and log-sum-exp `[rows, query heads]`.
pub(crate) fn attention(
    ops: &TchOps,
    [queries, keys, values]: [&Tensor; 3],
    shape: &AttentionShape,
    segments: &[AttentionSegment],
) -> TorchResult<(Tensor, Tensor)> {
    let heads = Heads::of(shape);
    let [queries, keys, values] = [ops.operand(queries)?, ops.operand(keys)?, ops.operand(values)?];
    let plan = ops.packed_plan(segments, shape)?;
    if let Some(parts) = plan.as_ref().and_then(|plan| plan.parts()) {
        return parts.forward([&queries, &keys, &values], shape);
    }
    let (rows, _) = dimensions(&queries)?;
    let output = queries.f_zeros_like()?;
    let log_sum_exp = Tensor::f_zeros([rows, shape.query_heads as i64], ops.wide())?;
    for segment in &joined(segments) {
        let of_segment = heads.of_queries(&queries, &segment.queries)?;
        let mut whole: Option<PartOutput> = None;
        for SeenKeys { rows, causal, mask } in parts(segment, shape.window, ops.device)? {
            let part = Part {
                queries: &of_segment,
                keys: &heads.of_keys(&keys, &rows)?,
                values: &heads.of_keys(&values, &rows)?,
                causal,
                mask,
                scale: f64::from(shape.scale),
                soft_cap: shape.soft_cap.map(f64::from),
            }
            .forward()?;
            whole = Some(match whole {
                Some(whole) => merge(&whole, &part)?,
                None => part,
            });
        }
        if let Some(whole) = whole {
            heads.of_queries(&output, &segment.queries)?.f_copy_(&whole.output)?;
            heads.of_log_sum_exps(&log_sum_exp, &segment.queries)?.f_copy_(&whole.log_sum_exp)?;
        }
    }
    Ok((output, log_sum_exp))
}

/// Gradients of queries, keys and values.
pub(crate) fn attention_backward(
    ops: &TchOps,
    [queries, keys, values]: [&Tensor; 3],
    [output, log_sum_exp]: [&Tensor; 2],
    gradient: &Tensor,
    shape: &AttentionShape,
    segments: &[AttentionSegment],
) -> TorchResult<[Tensor; 3]> {
    let heads = Heads::of(shape);
    let [queries, keys, values] = [ops.operand(queries)?, ops.operand(keys)?, ops.operand(values)?];
    let gradient = ops.operand(gradient)?;
    let plan = ops.packed_plan(segments, shape)?;
    if let Some(parts) = plan.as_ref().and_then(|plan| plan.parts()) {
        let operands = [&queries, &keys, &values];
        return parts.backward(operands, [output, log_sum_exp], &gradient, shape);
    }
    let of_queries = queries.f_zeros_like()?;
    // Several segments add to the keys of a prompt.
    let of_keys = Tensor::f_zeros(keys.size(), ops.wide())?;
    let of_values = Tensor::f_zeros(keys.size(), ops.wide())?;
    for segment in &joined(segments) {
        let of_segment = heads.of_queries(&queries, &segment.queries)?;
        let whole = PartOutput {
            output: heads.of_queries(output, &segment.queries)?,
            log_sum_exp: heads.of_log_sum_exps(log_sum_exp, &segment.queries)?,
        };
        let gradient = heads.of_queries(&gradient, &segment.queries)?;
        for SeenKeys { rows, causal, mask } in parts(segment, shape.window, ops.device)? {
            let [of_part_queries, of_part_keys, of_part_values] = Part {
                queries: &of_segment,
                keys: &heads.of_keys(&keys, &rows)?,
                values: &heads.of_keys(&values, &rows)?,
                causal,
                mask,
                scale: f64::from(shape.scale),
                soft_cap: shape.soft_cap.map(f64::from),
            }
            .backward(&whole, &gradient)?;
            let mut sum = heads.of_queries(&of_queries, &segment.queries)?;
            let _ = sum.f_add_(&of_part_queries)?;
            for (sum, part) in [(&of_keys, of_part_keys), (&of_values, of_part_values)] {
                let part = part.f_sum_dim_intlist([0].as_slice(), false, Kind::Float)?;
                let _ = heads.of_keys_once(sum, &rows)?.f_add_(&part)?;
            }
        }
    }
    Ok([of_queries, of_keys, of_values])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_joined_with_the_first_response_alone() {
        let segment = |prefix: Range<usize>, own: Range<usize>| AttentionSegment {
            queries: own.clone(),
            prefix,
            own,
        };
        let batch = [
            segment(0..0, 0..5),
            segment(0..5, 5..8),
            segment(0..5, 8..9),
            segment(0..0, 9..12),
            segment(0..5, 12..13),
        ];
        let expected =
            [segment(0..0, 0..8), segment(0..5, 8..9), segment(0..0, 9..12), segment(0..5, 12..13)];
        assert_eq!(joined(&batch), expected);
    }
}
