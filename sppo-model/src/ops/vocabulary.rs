//! The op vocabulary: the operations that a tensor library provides to run the models of this crate.
//!
//! Every op has an explicit backward form, written by the backend, because the libraries' own
//! automatic differentiation either drops gradients of fused kernels silently or allocates a new
//! buffer for each accumulation. The tape in this crate decides *which* backward runs when; an op
//! set only knows how. Gradients of parameters are accumulated in place, inside the parameter.
//!
//! Activations are rank-2 `[rows, features]` over a packed batch: one row per token, no padding.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sppo_plugin::{DeviceMemory, GradientDtype, Optimizer, SamplingParameters};

use super::Routes;
use super::random::drop_values;
use super::{ParameterId, ParameterStore};
use crate::error::{ModelError, Result};
use crate::formats::QuantizedMatrix;

/// The gate's non-linearity in the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// The heads of an attention op and how scores are formed.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads; queries are `[rows, query_heads * head_size]`.
    pub query_heads: usize,
    /// Key-value heads; keys and values are `[rows, key_value_heads * head_size]`.
    pub key_value_heads: usize,
    /// Features of one head.
    pub head_size: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// `cap * tanh(score / cap)` on the scaled scores, if any.
    pub soft_cap: Option<f32>,
    /// Number of positions, its own included, that a query sees; `None` is all.
    pub window: Option<usize>,
}

/// Queries that are consecutive tokens of one sequence, and the rows that hold their keys.
///
/// Query `j` of the segment (counted from 0) sees all of `prefix` and the first `j + 1` rows of
/// `own`, cut to the window. `own` is as long as `queries` in a packed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionSegment {
    /// Rows of the query tensor.
    pub queries: Range<usize>,
    /// Key-value rows of the shared prompt; empty when the segment is itself a prompt.
    pub prefix: Range<usize>,
    /// Key-value rows of the segment's own tokens.
    pub own: Range<usize>,
}

/// One query row of a decoding step, and the cache slots that it sees: all of `prefix`, then all of
/// `own` (whose last slot is its own), cut to the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedRow {
    /// Slots of the shared prompt.
    pub prefix: Range<usize>,
    /// Slots of the response so far, the row's own token included: runs of slots that follow each other, in the
    /// order of the tokens. None is empty; there is at least one.
    pub own: Vec<Range<usize>>,
}

impl CachedRow {
    /// Slots of the response so far.
    #[must_use]
    pub fn own_count(&self) -> usize {
        self.own.iter().map(ExactSizeIterator::len).sum()
    }

    /// The row without the keys beyond a window.
    #[must_use]
    pub fn within(&self, window: Option<usize>) -> Self {
        let Some(window) = window else { return self.clone() };
        let of_prompt = window.saturating_sub(self.own_count());
        let last =
            |run: &Range<usize>, most: usize| run.start.max(run.end.saturating_sub(most))..run.end;
        let mut left = window;
        let mut own: Vec<Range<usize>> = Vec::with_capacity(self.own.len());
        for run in self.own.iter().rev().filter(|run| !run.is_empty()) {
            let visible = last(run, left);
            left -= visible.len();
            own.extend(Some(visible).filter(|visible| !visible.is_empty()));
        }
        own.reverse();
        Self { prefix: last(&self.prefix, of_prompt), own }
    }

    /// All its slots, those of the prompt first.
    pub fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.prefix.clone().chain(self.own.iter().cloned().flatten())
    }
}

/// The place of a row in its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Number of tokens before it.
    pub index: u32,
    /// Whether the sequence is of those that take [`RotaryFrequencies::long_frequencies`].
    pub is_in_long_sequence: bool,
}

impl Position {
    /// A place in a sequence of any length, for models that make no difference between them.
    #[must_use]
    pub fn of(index: u32) -> Self {
        Self { index, is_in_long_sequence: false }
    }
}

/// Frequencies of the rotary embedding (RoPE): at position `p`, pair `i` is rotated by
/// `p * frequencies[i]`; of `n` pairs, pair `i` is features `i` and `i + n` of a head (the Hugging Face
/// layout). Features from `2 n` on stay as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryFrequencies {
    /// Features of a head; at least two for each pair.
    pub head_size: usize,
    /// Radians per position, one for each pair.
    pub frequencies: Vec<f32>,
    /// Those of long sequences, where they differ; as many.
    pub long_frequencies: Option<Vec<f32>>,
    /// Factor of all rotated features.
    pub scale: f32,
}

impl RotaryFrequencies {
    /// Frequencies that turn whole heads in sequences of any length.
    #[must_use]
    pub fn of_heads(frequencies: Vec<f32>) -> Self {
        let head_size = 2 * frequencies.len();
        Self { head_size, frequencies, long_frequencies: None, scale: 1.0 }
    }

    /// Scaled cosine and sine of each pair's angle at a position. The angle is rounded to f32 before its
    /// cosine is taken, as in transformers: models were trained that way.
    pub fn turns(&self, position: Position) -> impl Iterator<Item = (f32, f32)> + '_ {
        let long = self.long_frequencies.as_ref().filter(|_| position.is_in_long_sequence);
        let scale = f64::from(self.scale);
        long.unwrap_or(&self.frequencies).iter().map(move |&frequency| {
            let (sine, cosine) = f64::from(position.index as f32 * frequency).sin_cos();
            ((scale * cosine) as f32, (scale * sine) as f32)
        })
    }
}

/// Output of attention, with the statistic that its backward form needs.
#[derive(Clone, Debug)]
pub struct AttentionOutput<T> {
    /// `[rows, query_heads * head_size]`.
    pub output: T,
    /// Log-sum-exp of each query's scores per head, `[rows, query_heads]`, natural logarithm.
    pub log_sum_exp: T,
}

/// Gradients of the operands of [`Ops::mixture`].
#[derive(Clone, Debug)]
pub struct MixtureGradients<T> {
    /// Of each part.
    pub of_parts: Vec<T>,
    /// Of the weights of each part's rows.
    pub of_weights: Vec<Vec<f32>>,
}

/// The arithmetic of one optimiser step.
#[derive(Clone, Debug, PartialEq)]
pub struct UpdateRule {
    /// The optimiser.
    pub optimizer: Optimizer,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Multiplies the gradient first (clipping).
    pub gradient_scale: f64,
    /// Steps taken so far, this one included (from 1), for bias correction.
    pub step: u64,
}

/// A token and its log-probability under the untempered, untruncated distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: u32,
    /// Its natural log-probability.
    pub log_prob: f32,
}

/// Inputs of [`Ops::sample`], with which a device samples the tokens that
/// [`Sampler::sample`](crate::generation::Sampler::sample) would.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceSampling {
    /// Temperature, top-k and top-p.
    pub parameters: SamplingParameters,
    /// Tokens that the rows of `rows_without_stop` must not get.
    pub stop_tokens: Vec<u32>,
    /// Rows whose response must not end yet.
    pub rows_without_stop: Vec<u32>,
    /// Standard exponential variates of each row's blocks of [`Self::BLOCK`] tokens, row after row.
    pub block_exponentials: Vec<f64>,
    /// Standard exponential variates of the tokens in the sampled block, [`Self::BLOCK`] for each row.
    pub token_exponentials: Vec<f64>,
}

impl DeviceSampling {
    /// Tokens of a block, which is sampled first, by the sum of its weights.
    pub const BLOCK: usize = 256;
}

/// The error of logits that are not finite.
#[must_use]
pub fn not_finite() -> ModelError {
    ModelError::Backend(
        "the model's logits are not finite; its weights may be damaged or have diverged".into(),
    )
}

/// A tensor library, seen through the ops that the models need.
///
/// Tensors are immutable and cheap to clone. `rows` and index arguments are always within bounds:
/// the callers in this crate check what comes from outside.
pub trait Ops: 'static {
    /// An activation, rank 2.
    type Tensor: Clone;
    /// A weight with its gradient and optimiser state, changed in place.
    type Parameter;
    /// Keys and values of past tokens: for each layer, `slots` rows of `key_value_features`.
    type Cache;

    /// This op set with gradients of new weights that are summed in a number format.
    ///
    /// # Errors
    /// When it sums them in f32 only, and is asked for another format.
    fn with_gradients_in(self, dtype: GradientDtype) -> Result<Self>
    where
        Self: Sized,
    {
        match dtype {
            GradientDtype::F32 => Ok(self),
            GradientDtype::Bf16 => Err(ModelError::Unsupported(
                "training.gradient_dtype: this backend sums gradients in f32 only; set it to \"f32\", \
                 or choose the backend tch"
                    .into(),
            )),
        }
    }

    /// The device, for instance `cpu`, and the number format, for instance `f32`.
    fn describe(&self) -> (String, String);

    /// Memory of the device, where it is not the machine's own.
    fn device_memory(&self) -> Result<Option<DeviceMemory>> {
        Ok(None)
    }

    // Data in and out.

    /// An activation from row-major values.
    fn tensor(&self, values: Vec<f32>, rows: usize, columns: usize) -> Result<Self::Tensor>;
    /// Row-major values of an activation.
    fn values(&self, tensor: &Self::Tensor) -> Result<Vec<f32>>;
    /// The result of reading an activation's row-major values, which are not copied where they lie here.
    fn with_values<R>(&self, tensor: &Self::Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
        Ok(read(&self.values(tensor)?))
    }
    /// `[rows, columns]`.
    fn shape(&self, tensor: &Self::Tensor) -> (usize, usize);

    /// A weight from row-major values; rank 1 or 2. A linear weight is `[output, input]`.
    fn parameter(
        &self,
        values: Vec<f32>,
        shape: &[usize],
        trainable: bool,
    ) -> Result<Self::Parameter>;
    /// As [`Self::parameter`], a weight whose rows are looked up by [`Self::embedding`].
    fn table(&self, values: Vec<f32>, shape: &[usize], trainable: bool) -> Result<Self::Parameter> {
        self.parameter(values, shape, trainable)
    }
    /// A matrix that is never trained and is kept in its blocks: ops dequantise what they use of it while they use
    /// it, forward and backward, and may look rows up in it as in a [`Self::table`].
    ///
    /// # Errors
    /// When this op set keeps no blocks, or none of the matrix's format.
    fn quantized(&self, matrix: QuantizedMatrix) -> Result<Self::Parameter> {
        let _ = matrix;
        Err(ModelError::Unsupported(
            "training.frozen_weights: this backend keeps no quantized weights; set it to \"dense\", or \
             choose the backend candle or tch"
                .into(),
        ))
    }
    /// Row-major values of a weight, exactly as an update left them.
    fn parameter_values(&self, parameter: &Self::Parameter) -> Result<Vec<f32>>;
    /// The accumulated gradient; `None` before any backward pass since the last clearing.
    fn parameter_gradient(&self, parameter: &Self::Parameter) -> Result<Option<Vec<f32>>>;
    /// Sum of squares of the accumulated gradient, in f64 (0 when there is none).
    fn gradient_square_sum(&self, parameter: &Self::Parameter) -> Result<f64>;
    /// Forgets the gradient (its memory may be kept for the next pass).
    fn clear_gradient(&self, parameter: &mut Self::Parameter) -> Result<()>;
    /// Applies the gradient by the rule, making the optimiser's state on first use.
    fn update(&self, parameter: &mut Self::Parameter, rule: &UpdateRule) -> Result<()>;
    /// The optimiser's state tensors in a fixed order per optimiser; empty before the first update.
    fn optimizer_state(&self, parameter: &Self::Parameter) -> Result<Vec<Vec<f32>>>;
    /// Number of the optimiser's state tensors.
    fn optimizer_state_count(&self, parameter: &Self::Parameter) -> usize;
    /// Sets (or with an empty list forgets) the optimiser's state.
    fn set_optimizer_state(
        &self,
        parameter: &mut Self::Parameter,
        state: Vec<Vec<f32>>,
    ) -> Result<()>;

    // Forward.

    /// Rows of the table, `[tokens.len(), features]`.
    fn embedding(&self, table: &Self::Parameter, tokens: &[u32]) -> Result<Self::Tensor>;
    /// `x weight^T (+ bias)`: `[rows, input] -> [rows, output]`.
    fn linear(
        &self,
        x: &Self::Tensor,
        weight: &Self::Parameter,
        bias: Option<&Self::Parameter>,
    ) -> Result<Self::Tensor>;
    /// [`linear`](Self::linear) with each of these weights, and its bias: the same numbers. Backends that can
    /// compute several small products as one do.
    fn linears(
        &self,
        x: &Self::Tensor,
        weights: &[(&Self::Parameter, Option<&Self::Parameter>)],
    ) -> Result<Vec<Self::Tensor>> {
        weights.iter().map(|&(weight, bias)| self.linear(x, weight, bias)).collect()
    }
    /// `x / sqrt(mean(x^2) + epsilon) * (weight + offset)` over groups of `weight.len()` features
    /// (one group per row, or one per head).
    fn rms_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Parameter,
        epsilon: f32,
        offset: f32,
    ) -> Result<Self::Tensor>;
    /// Rotates every head of every row by the angles of the row's position, and scales what it rotates.
    fn rotary(
        &self,
        x: &Self::Tensor,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
    ) -> Result<Self::Tensor>;
    /// Causal attention over packed segments.
    fn attention(
        &self,
        queries: &Self::Tensor,
        keys: &Self::Tensor,
        values: &Self::Tensor,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
    ) -> Result<AttentionOutput<Self::Tensor>>;
    /// `activation(gate) * up`.
    fn gated_activation(
        &self,
        gate: &Self::Tensor,
        up: &Self::Tensor,
        activation: Activation,
    ) -> Result<Self::Tensor>;
    /// `a + b`.
    fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;
    /// `factor * x`.
    fn scale(&self, x: &Self::Tensor, factor: f32) -> Result<Self::Tensor>;
    /// The given rows of `x`, in order; a row may repeat.
    fn select_rows(&self, x: &Self::Tensor, rows: &[u32]) -> Result<Self::Tensor>;
    /// The sum of experts' outputs: row `r` is that of `weights[i] * parts[e][i]` over all `i` of all experts
    /// `e` whose `rows[i]` is `r`. `parts` are as many as the experts of the routes, in order.
    fn mixture(&self, parts: &[&Self::Tensor], routes: &Routes) -> Result<Self::Tensor>;
    /// `x` with each value zeroed with the given probability (below 1) and the others divided by the
    /// rest. The same seed always zeroes the same elements, so the op is its own backward form.
    fn dropout(&self, x: &Self::Tensor, probability: f32, seed: u64) -> Result<Self::Tensor> {
        let (rows, columns) = self.shape(x);
        let mut values = self.values(x)?;
        drop_values(&mut values, probability, seed);
        self.tensor(values, rows, columns)
    }
    /// Log-probability of `targets[i]` under `softmax(cap(hidden[i] head^T))`. Never holds more than
    /// a chunk of the `[rows, vocabulary]` logits, unless `keep` says that a backward will follow and
    /// memory allows to keep them; the second value is the `kept` of [`Self::token_log_probs_backward`].
    fn token_log_probs(
        &self,
        hidden: &Self::Tensor,
        head: &Self::Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        keep: bool,
    ) -> Result<(Vec<f32>, Option<Self::Tensor>)>;
    /// `cap(hidden head^T)`: all logits, `[rows, vocabulary]`, for sampling.
    fn logits(
        &self,
        hidden: &Self::Tensor,
        head: &Self::Parameter,
        soft_cap: Option<f32>,
    ) -> Result<Self::Tensor>;

    // Backward. Each takes the gradient of the op's output, adds to the gradients of trainable
    // parameters, and returns the gradients of its activations.

    /// Adds to `table`'s gradient.
    fn embedding_backward(
        &self,
        table: &mut Self::Parameter,
        tokens: &[u32],
        gradient: &Self::Tensor,
    ) -> Result<()>;
    /// Gradient of `x`; adds to those of `weight` and `bias`.
    fn linear_backward(
        &self,
        x: &Self::Tensor,
        weight: &mut Self::Parameter,
        bias: Option<&mut Self::Parameter>,
        gradient: &Self::Tensor,
    ) -> Result<Self::Tensor>;
    /// Gradient of `x`; adds to that of `weight`.
    fn rms_norm_backward(
        &self,
        x: &Self::Tensor,
        weight: &mut Self::Parameter,
        epsilon: f32,
        offset: f32,
        gradient: &Self::Tensor,
    ) -> Result<Self::Tensor>;
    /// Gradient of `x`.
    fn rotary_backward(
        &self,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        gradient: &Self::Tensor,
    ) -> Result<Self::Tensor>;
    /// Gradients of queries, keys and values.
    #[expect(clippy::too_many_arguments, reason = "the operands of one kernel")]
    fn attention_backward(
        &self,
        queries: &Self::Tensor,
        keys: &Self::Tensor,
        values: &Self::Tensor,
        forward: &AttentionOutput<Self::Tensor>,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
        gradient: &Self::Tensor,
    ) -> Result<[Self::Tensor; 3]>;
    /// Gradients of `gate` and `up`.
    fn gated_activation_backward(
        &self,
        gate: &Self::Tensor,
        up: &Self::Tensor,
        activation: Activation,
        gradient: &Self::Tensor,
    ) -> Result<[Self::Tensor; 2]>;
    /// Gradients of the parts, and of the weights of each.
    fn mixture_backward(
        &self,
        parts: &[&Self::Tensor],
        routes: &Routes,
        gradient: &Self::Tensor,
    ) -> Result<MixtureGradients<Self::Tensor>>;
    /// Gradient of `x`, of `row_count` rows: the sum over all selections of each row.
    fn select_rows_backward(
        &self,
        rows: &[u32],
        row_count: usize,
        gradient: &Self::Tensor,
    ) -> Result<Self::Tensor>;
    /// Gradient of `hidden` for `sum_i coefficients[i] * log_prob[i]`; adds to that of `head`.
    /// `kept` is what the forward returned; without it the logits are computed again, chunk by chunk.
    fn token_log_probs_backward(
        &self,
        hidden: &Self::Tensor,
        head: &mut Self::Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        kept: Option<Self::Tensor>,
        coefficients: &[f32],
    ) -> Result<Self::Tensor>;

    /// Called when a backward pass has added all that it will to a weight's gradient; an op set may begin to
    /// sum it with those of other processes.
    fn gradient_is_complete(
        &self,
        parameters: &mut ParameterStore<Self>,
        weight: ParameterId,
    ) -> Result<()>
    where
        Self: Sized,
    {
        let _ = (parameters, weight);
        Ok(())
    }

    // Decoding.

    /// Bytes of a number in a cache.
    fn cache_number_bytes(&self) -> usize {
        size_of::<f32>()
    }
    /// An empty cache.
    fn cache(&self, layers: usize, slots: usize, key_value_features: usize) -> Result<Self::Cache>;
    /// Writes row `i` of `keys` and `values` (already rotated) to slot `slots[i]` of a layer.
    fn cache_write(
        &self,
        cache: &mut Self::Cache,
        layer: usize,
        keys: &Self::Tensor,
        values: &Self::Tensor,
        slots: &[u32],
    ) -> Result<()>;
    /// Attention of one query row per entry of `rows` over the cache.
    fn cached_attention(
        &self,
        queries: &Self::Tensor,
        cache: &Self::Cache,
        layer: usize,
        shape: &AttentionShape,
        rows: &[CachedRow],
    ) -> Result<Self::Tensor>;
    /// Whether tokens are sampled where the logits are, by [`Self::sample`], because fetching them is slow.
    fn samples_on_device(&self) -> bool {
        false
    }
    /// Samples a token from each row of `logits`: up to rounding, the one of
    /// [`Sampler::sample`](crate::generation::Sampler::sample).
    fn sample(
        &self,
        logits: &Self::Tensor,
        sampling: &DeviceSampling,
    ) -> Result<Vec<SampledToken>> {
        let _ = (logits, sampling);
        Err(ModelError::Backend("this op set does not sample tokens".into()))
    }
    /// Called before many forward passes with unchanged parameters (sampling); a backend may lay the
    /// weight out for small batches. Any update undoes it.
    fn prepare_for_decoding(&self, parameter: &mut Self::Parameter) -> Result<()> {
        let _ = parameter;
        Ok(())
    }
    /// Ends what [`Self::prepare_for_decoding`] began and frees what it holds.
    fn end_decoding(&self, parameter: &mut Self::Parameter) -> Result<()> {
        let _ = parameter;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::CachedRow;

    #[test]
    fn a_window_cuts_the_prompt_before_the_row_itself() {
        let row = CachedRow { prefix: 3..9, own: vec![20..22, 10..12] };
        assert_eq!(row.within(None), row);
        assert_eq!(row.within(Some(20)), row);
        assert_eq!(row.within(Some(6)), CachedRow { prefix: 7..9, ..row.clone() });
        assert_eq!(row.within(Some(3)), CachedRow { prefix: 9..9, own: vec![21..22, 10..12] });
        assert_eq!(row.within(Some(1)).slots().collect::<Vec<_>>(), [11]);
        assert_eq!(row.slots().collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8, 20, 21, 10, 11]);
    }
}
