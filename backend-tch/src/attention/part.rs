//! One part of attention, forward and backward, and how parts are merged.
//!
//! The heads that share keys form the first dimension of queries, along which keys and values have
//! stride 0: all operands are views of the activations.

use std::ops::Range;

use sppo_model::ops::AttentionShape;
use tch::{Device, Kind, Tensor};

use crate::tensors::TorchResult;

/// Added to the scores of keys that a query does not see. Finite, so that a query that sees nothing of
/// a part gets the weight 0 there instead of NaN.
pub(super) const HIDDEN: f64 = -1e30;

/// One part's operands: queries `[batch, heads, queries, size]`, keys and values
/// `[batch, heads, keys, size]`.
pub(super) struct Part<'a> {
    pub(super) queries: &'a Tensor,
    pub(super) keys: &'a Tensor,
    pub(super) values: &'a Tensor,
    /// Whether query `j` sees keys `0..=j` only.
    pub(super) causal: bool,
    /// Added to the scores, f32, `[batch or 1, 1, queries or 1, keys]`.
    pub(super) mask: Option<Tensor>,
    pub(super) scale: f64,
    pub(super) soft_cap: Option<f64>,
}

/// A part's output `[batch, heads, queries, size]` and log-sum-exp `[batch, heads, queries]`, f32.
pub(super) struct PartOutput {
    pub(super) output: Tensor,
    pub(super) log_sum_exp: Tensor,
}

impl Part<'_> {
    /// libtorch has one fused kernel that returns log-sum-exps and takes any stride: the CPU's. CUDA
    /// devices compute the scores here for whatever [`super::varlen`] does not cover.
    fn is_fused(&self) -> bool {
        self.soft_cap.is_none() && self.queries.device() == Device::Cpu
    }

    pub(super) fn forward(&self) -> TorchResult<PartOutput> {
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

    /// Gradients of the part's queries, keys and values, from the whole's output `o` and log-sum-exp `l`
    /// and the output's gradient `g`.
    ///
    /// ```text
    /// w = exp(scores - l)        scores = cap(scale q k^T)
    /// v' = w^T g                 t = w (g v^T - sum(g o)) scale cap'
    /// q' = t k                   k' = t^T q
    /// ```
    pub(super) fn backward(
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
        let cap_slopes = match self.soft_cap {
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
        if let Some(slopes) = cap_slopes {
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

/// Merges two parts of the same queries.
pub(super) fn merge(first: &PartOutput, second: &PartOutput) -> TorchResult<PartOutput> {
    let log_sum_exp = first.log_sum_exp.f_logaddexp(&second.log_sum_exp)?;
    let weighted = |part: &PartOutput| -> TorchResult<Tensor> {
        let weight = part.log_sum_exp.f_sub(&log_sum_exp)?.f_exp_()?.f_unsqueeze(-1)?;
        Ok(part.output.f_mul(&weight)?)
    };
    let mut output = weighted(first)?;
    let _ = output.f_add_(&weighted(second)?)?;
    Ok(PartOutput { output, log_sum_exp })
}

/// A mask, `[queries, keys]`, to be added to scores: query `j` sees the keys up to `first + j`, and of
/// these the last `window`.
pub(super) fn band(
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

/// Heads of a row: `shared` key-value heads, each of `groups` query heads, of `size` features.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) groups: i64,
    pub(super) shared: i64,
    pub(super) size: i64,
}

impl Heads {
    pub(super) fn of(shape: &AttentionShape) -> Self {
        Self {
            groups: (shape.query_heads / shape.key_value_heads.max(1)) as i64,
            shared: shape.key_value_heads as i64,
            size: shape.head_size as i64,
        }
    }

    /// Rows of queries, or of their gradients, as `[groups, shared heads, rows, size]`.
    pub(super) fn of_queries(&self, x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
        let x = row_range(x, rows)?.f_view([-1, self.shared, self.groups, self.size])?;
        Ok(x.f_permute([2, 1, 0, 3])?)
    }

    /// One number per query and head as `[groups, shared heads, rows]`.
    pub(super) fn of_log_sum_exps(&self, x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
        Ok(row_range(x, rows)?.f_view([-1, self.shared, self.groups])?.f_permute([2, 1, 0])?)
    }

    /// Rows of keys or values as `[groups, shared heads, rows, size]`, the same for every group.
    pub(super) fn of_keys(&self, x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
        let x = self.of_keys_once(x, rows)?;
        Ok(x.f_expand([self.groups, self.shared, rows.len() as i64, self.size], false)?)
    }

    /// Rows of keys or values as `[shared heads, rows, size]`.
    pub(super) fn of_keys_once(&self, x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
        Ok(row_range(x, rows)?.f_view([-1, self.shared, self.size])?.f_permute([1, 0, 2])?)
    }
}

fn row_range(x: &Tensor, rows: &Range<usize>) -> TorchResult<Tensor> {
    Ok(x.f_narrow(0, rows.start as i64, rows.len() as i64)?)
}
