//! Limits of generation, and the division of the cache that follows from them.

use sppo_plugin::PlannedSampling;

use super::pages::{CachePlan, Demand};
use crate::decoder::{DecoderConfig, InputLimits};

/// Limits of what generation computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationLimits {
    /// Most responses that decode together.
    pub max_batch_size: usize,
    /// Most prompt tokens that are computed together (one longer prompt alone is allowed).
    pub prefill_tokens: usize,
    /// Most bytes of the key-value cache. With less, fewer rows decode together; one row and the longest
    /// prompt are always allowed.
    pub cache_bytes: usize,
}

impl Default for GenerationLimits {
    fn default() -> Self {
        Self { max_batch_size: 64, prefill_tokens: 2048, cache_bytes: 1 << 30 }
    }
}

/// The division of the cache, whose numbers take `number_bytes` each.
pub(super) fn cache_plan(
    config: &DecoderConfig,
    limits: &GenerationLimits,
    number_bytes: usize,
    prompt_lengths: &[usize],
    samples_per_prompt: usize,
    max_new_tokens: usize,
) -> CachePlan {
    let numbers_per_slot = 2 * config.layer_count * config.key_value_heads * config.head_size;
    // The last token of a response is never fed back, so it needs no slot.
    let row_slots = max_new_tokens.saturating_sub(1).min(config.context_length).max(1);
    // A row that starts again as a long sequence keeps its prompt in its own slots.
    let limit = InputLimits::of(config);
    let becomes_long =
        |&length: &usize| !limit.is_long(length) && limit.is_long(length + max_new_tokens);
    let row_slots =
        row_slots + prompt_lengths.iter().copied().filter(becomes_long).max().unwrap_or(0);
    let budget = limits.cache_bytes / (numbers_per_slot * number_bytes).max(1);
    let max_batch_size = limits.max_batch_size;
    CachePlan::new(
        budget,
        &Demand { max_batch_size, row_slots, prompt_lengths, samples_per_prompt },
    )
}

/// The division of the cache for a request of this size.
pub(crate) fn planned_cache(
    config: &DecoderConfig,
    limits: &GenerationLimits,
    number_bytes: usize,
    sampling: &PlannedSampling,
) -> CachePlan {
    let lengths = vec![sampling.longest_prompt; sampling.prompts];
    let (samples, tokens) = (sampling.samples_per_prompt, sampling.max_new_tokens);
    cache_plan(config, limits, number_bytes, &lengths, samples, tokens)
}
