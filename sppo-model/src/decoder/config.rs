//! The configuration of a decoder, and the interface of the families that read and write it.

use std::f64::consts::TAU;
use std::fmt::Debug;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{ModelError, Result};
use crate::formats::{GgufFile, GgufKeys, JsonObject, WeightSource};
use crate::ops::{Activation, RotaryFrequencies};

/// A family of decoders: the names and settings by which its files differ from those of the others.
///
/// The forward pass knows no family. It follows [`DecoderConfig`], so a family says everything about
/// itself through the configuration that it reads and the methods below.
pub trait Family: Debug + Sync {
    /// The `model_type` of its `config.json`, for instance `llama`.
    fn model_type(&self) -> &'static str;

    /// The name of its language model under `architectures`, for instance `LlamaForCausalLM`.
    fn architecture(&self) -> &'static str;

    /// The name of its sequence classifier under `architectures`.
    fn sequence_classifier(&self) -> &'static str;

    /// Reads the settings of a `config.json`, with the defaults of transformers.
    ///
    /// # Errors
    /// When a setting is malformed, or changes the result and is not supported.
    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig>;

    /// Settings of `config.json` that not all families have, for a model that came without one.
    fn write_hugging_face(&self, config: &DecoderConfig) -> Value;

    /// The stored tensor that holds a weight of a Hugging Face model: the one of the same name, unless
    /// the family fuses several weights into one tensor.
    fn source(&self, config: &DecoderConfig, weight: &str) -> WeightSource {
        let _ = config;
        WeightSource::whole(weight)
    }

    /// The `general.architecture` of its GGUF files; `None` where they have another family's or there
    /// are none.
    fn gguf_architecture(&self) -> Option<&'static str> {
        None
    }

    /// Reads the metadata of a GGUF file of [`Self::gguf_architecture`].
    ///
    /// # Errors
    /// When a value is missing, malformed or not supported; always, where there is no architecture.
    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        let _ = keys;
        Err(ModelError::Unsupported(format!(
            "{}: GGUF files of {} are not supported",
            file.metadata().path().display(),
            self.model_type()
        )))
    }

    /// Names of the parts of a layer in GGUF files and in Hugging Face's, beside the common ones.
    fn gguf_parts(&self) -> &'static [(&'static str, &'static str)] {
        &[("ffn_norm", "post_attention_layernorm")]
    }

    /// Undoes what llama.cpp's converter did to the values of a weight, given by its Hugging Face name.
    fn restore_gguf(&self, config: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        let _ = (config, weight, values);
    }
}

impl PartialEq for dyn Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type() == other.model_type()
    }
}

/// Position of the normalisations in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormPlacement {
    /// Before attention and before the feed-forward block.
    Before,
    /// Before and after each of them (four per layer, Gemma-2).
    BeforeAndAfter,
    /// After each of them, before the result is added to the residual stream.
    After,
}

impl NormPlacement {
    /// Whether the input of each block is normalised.
    #[must_use]
    pub fn is_before(self) -> bool {
        self != Self::After
    }

    /// Whether the output of each block is normalised.
    #[must_use]
    pub fn is_after(self) -> bool {
        self != Self::Before
    }
}

/// Normalisation of queries and keys, before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueryKeyNorm {
    /// None.
    Absent,
    /// Over the features of each head (Qwen3).
    PerHead,
    /// Over all heads together.
    AcrossHeads,
}

/// Scaling of the rotary frequencies for long contexts.
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
    /// The family, which names the weights and writes the configuration.
    pub family: &'static dyn Family,
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
    /// Position of the normalisations.
    pub norm_placement: NormPlacement,
    /// Non-linearity of the gate.
    pub activation: Activation,
    /// Base of the rotary frequencies.
    pub rotary_base: f64,
    /// Scaling of the rotary frequencies.
    pub rotary_scaling: RotaryScaling,
    /// Whether the output head is the embedding table.
    pub tied_head: bool,
    /// Whether the query, key and value projections have a bias (Qwen2).
    pub attention_bias: bool,
    /// Normalisation of queries and keys.
    pub query_key_norm: QueryKeyNorm,
    /// Factor of the attention scores; usually `1 / sqrt(head_size)`.
    pub attention_scale: f64,
    /// `cap * tanh(score / cap)` on attention scores (Gemma-2).
    pub attention_soft_cap: Option<f64>,
    /// `cap * tanh(logit / cap)` on the logits (Gemma-2).
    pub logit_soft_cap: Option<f64>,
    /// Factor of the embeddings (Gemma: `sqrt(hidden_size)`).
    pub embedding_scale: Option<f64>,
    /// For each layer, the number of positions (its own included) that a token sees; `None` is all.
    pub attention_windows: Vec<Option<usize>>,
}

/// No model comes near these; they keep products of sizes far from overflow.
const LARGEST_SIZE: usize = 1 << 28;
const MOST_LAYERS: usize = 10_000;

impl DecoderConfig {
    /// Features of all query heads together.
    pub(crate) fn query_features(&self) -> usize {
        self.attention_heads * self.head_size
    }

    /// Features of all key heads together, which are those of the values.
    pub(crate) fn key_features(&self) -> usize {
        self.key_value_heads * self.head_size
    }

    /// Refuses a file whose settings contradict each other or cannot be those of a model.
    pub(super) fn check(self, path: &Path) -> Result<Self> {
        match self.problem() {
            Some(problem) => Err(ModelError::file(path, problem)),
            None => Ok(self),
        }
    }

    /// The contradiction between these settings, or the first that no model has.
    pub(super) fn problem(&self) -> Option<String> {
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
        if let Some((what, size, _)) =
            sizes.into_iter().find(|&(_, size, limit)| size == 0 || size > limit)
        {
            return Some(format!("the {what} is {size}, which no model has"));
        }
        if !self.attention_heads.is_multiple_of(self.key_value_heads) {
            return Some(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                self.attention_heads, self.key_value_heads
            ));
        }
        if !self.head_size.is_multiple_of(2) {
            return Some(format!(
                "the head size {} is odd, so it cannot be rotated",
                self.head_size
            ));
        }
        if self.attention_windows.len() != self.layer_count {
            return Some(format!(
                "there are {} attention windows for {} layers",
                self.attention_windows.len(),
                self.layer_count
            ));
        }
        self.problem_of_factors()
    }

    fn problem_of_factors(&self) -> Option<String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.norm_epsilon) || !positive(self.rotary_base) {
            return Some(format!(
                "the norm's epsilon ({}) and the rotary base ({}) must be positive",
                self.norm_epsilon, self.rotary_base
            ));
        }
        let factors = [Some(self.attention_scale), self.attention_soft_cap, self.logit_soft_cap];
        factors.into_iter().flatten().any(|factor| !positive(factor)).then(|| {
            format!(
                "the factor of attention scores ({}) and the soft-caps of scores and logits ({:?}, \
                 {:?}) must be positive",
                self.attention_scale, self.attention_soft_cap, self.logit_soft_cap
            )
        })
    }
}

/// The frequencies of a decoder: `base^(-2 i / head_size)`, scaled as the configuration says.
#[must_use]
pub fn rotary_frequencies(config: &DecoderConfig) -> RotaryFrequencies {
    let frequency = |pair: usize| {
        let plain = config.rotary_base.powf(-2.0 * pair as f64 / config.head_size as f64);
        scaled(plain, &config.rotary_scaling) as f32
    };
    RotaryFrequencies { frequencies: (0..config.head_size / 2).map(frequency).collect() }
}

fn scaled(frequency: f64, scaling: &RotaryScaling) -> f64 {
    match *scaling {
        RotaryScaling::Unscaled => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } => {
            // Full rotations of the pair within the original context decide how far it is scaled.
            let rotations = original_context * frequency / TAU;
            let kept =
                (rotations - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
            let kept = kept.clamp(0.0, 1.0);
            kept * frequency + (1.0 - kept) * frequency / factor
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = RotaryScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 32.0,
        };
        assert_eq!(scaled(1.0, &scaling), 1.0);
        assert_eq!(scaled(0.01, &scaling), 0.01 / 8.0);
        // Wavelength 12.8: 2.5 rotations, half way between 1 and 4.
        let frequency = TAU / 12.8;
        let expected = 0.5 * frequency + 0.5 * frequency / 8.0;
        assert!((scaled(frequency, &scaling) - expected).abs() < 1e-15);
        assert_eq!(scaled(0.5, &RotaryScaling::Linear { factor: 4.0 }), 0.125);
    }
}
