//! What every configuration must fulfil, whichever file it came from.

use std::path::Path;

use super::DecoderConfig;
use crate::error::{ModelError, Result};

/// No model comes near these; they keep products of sizes far from overflow.
const LARGEST_SIZE: usize = 1 << 28;
const MOST_LAYERS: usize = 10_000;

impl DecoderConfig {
    /// Refuses settings that contradict each other or cannot be those of a model.
    pub(super) fn check(self, path: &Path) -> Result<Self> {
        let wrong = |message: String| Err(ModelError::file(path, message));
        let sizes = [
            ("vocabulary size", self.vocabulary_size, LARGEST_SIZE),
            ("hidden size", self.hidden_size, LARGEST_SIZE),
            ("intermediate size", self.intermediate_size, LARGEST_SIZE),
            ("number of layers", self.layer_count, MOST_LAYERS),
            ("number of attention heads", self.attention_heads, 1 << 16),
            ("number of key-value heads", self.key_value_heads, 1 << 16),
            ("head size", self.head_size, 1 << 12),
            ("context length", self.context_length, LARGEST_SIZE),
        ];
        for (what, size, limit) in sizes {
            if size == 0 || size > limit {
                return wrong(format!("the {what} is {size}, which no model has"));
            }
        }
        if !self.attention_heads.is_multiple_of(self.key_value_heads) {
            return wrong(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                self.attention_heads, self.key_value_heads
            ));
        }
        if !self.head_size.is_multiple_of(2) {
            return wrong(format!(
                "the head size {} is odd, so it cannot be rotated",
                self.head_size
            ));
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.norm_epsilon) || !positive(self.rotary_base) {
            return wrong(format!(
                "the norm's epsilon ({}) and the rotary base ({}) must be positive",
                self.norm_epsilon, self.rotary_base
            ));
        }
        let factors = [Some(self.attention_scale), self.attention_soft_cap, self.logit_soft_cap];
        if factors.into_iter().flatten().any(|factor| !positive(factor)) {
            return wrong(format!(
                "the factor of attention scores ({}) and the soft-caps of scores and logits ({:?}, \
                 {:?}) must be positive",
                self.attention_scale, self.attention_soft_cap, self.logit_soft_cap
            ));
        }
        Ok(self)
    }
}
