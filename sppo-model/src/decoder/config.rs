//! What distinguishes one decoder family from another, as data.

use serde::{Deserialize, Serialize};

use crate::ops::Activation;

/// A family of decoders that this crate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2 and 3, SmolLM, and everything else called `LlamaForCausalLM`.
    Llama,
    /// Mistral 7B v0.1 to v0.3 and Nemo: Llama with an optional sliding window.
    Mistral,
    /// Gemma 2: soft-caps, windows in every other layer, four norms per layer.
    Gemma2,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3 (dense): queries and keys are normalised.
    Qwen3,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Mistral, Self::Gemma2, Self::Qwen2, Self::Qwen3];

    /// What `config.json` calls it under `model_type`.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Gemma2 => "gemma2",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// What `config.json` calls its language model under `architectures`.
    #[must_use]
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// What `config.json` calls its sequence classifier under `architectures`.
    #[must_use]
    pub fn sequence_classifier(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForSequenceClassification",
            Self::Mistral => "MistralForSequenceClassification",
            Self::Gemma2 => "Gemma2ForSequenceClassification",
            Self::Qwen2 => "Qwen2ForSequenceClassification",
            Self::Qwen3 => "Qwen3ForSequenceClassification",
        }
    }
}

/// Where the normalisations of a layer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormPlacement {
    /// Before attention and before the feed-forward block.
    Before,
    /// Before and after each of them (four per layer, Gemma-2).
    BeforeAndAfter,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum RotaryScaling {
    /// Plain frequencies.
    Unscaled,
    /// Every frequency is divided by the factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided, high ones kept, those between interpolated.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_frequency_factor` are divided.
        low_frequency_factor: f64,
        /// Wavelengths below `original_context / high_frequency_factor` are kept.
        high_frequency_factor: f64,
        /// The context length that the model was first trained with.
        original_context: f64,
    },
}

/// The shape of a decoder and every setting that changes its result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// The family, which fixes the names of the weights.
    pub family: Family,
    /// Rows of the embedding table.
    pub vocabulary_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layer_count: usize,
    /// Query heads.
    pub attention_heads: usize,
    /// Key-value heads; a divisor of the query heads.
    pub key_value_heads: usize,
    /// Features of one head.
    pub head_size: usize,
    /// Longest sequence, in tokens.
    pub context_length: usize,
    /// Added to the mean square in every normalisation.
    pub norm_epsilon: f64,
    /// Whether norm weights are stored as `w - 1` (Gemma).
    pub norm_weight_offset: bool,
    /// Where the normalisations stand.
    pub norm_placement: NormPlacement,
    /// The gate's non-linearity.
    pub activation: Activation,
    /// Base of the rotary frequencies.
    pub rotary_base: f64,
    /// How they are stretched.
    pub rotary_scaling: RotaryScaling,
    /// Whether the output head is the embedding table.
    pub tied_head: bool,
    /// Whether the query, key and value projections have a bias (Qwen2).
    pub attention_bias: bool,
    /// Whether queries and keys are normalised per head (Qwen3).
    pub query_key_norm: bool,
    /// What attention scores are multiplied by; usually `1 / sqrt(head_size)`.
    pub attention_scale: f64,
    /// `cap * tanh(score / cap)` on attention scores (Gemma-2).
    pub attention_soft_cap: Option<f64>,
    /// `cap * tanh(logit / cap)` on the logits (Gemma-2).
    pub logit_soft_cap: Option<f64>,
    /// Multiplies the embeddings (Gemma: `sqrt(hidden_size)`).
    pub embedding_scale: Option<f64>,
    /// For each layer, how many positions back (itself included) a token sees; `None` is all.
    pub attention_windows: Vec<Option<usize>>,
}
