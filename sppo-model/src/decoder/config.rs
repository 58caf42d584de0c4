//! The configuration of a decoder, and the interface of the families that read and write it.

use std::fmt::Debug;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::rotary::Rotary;
use crate::error::{ModelError, Result};
use crate::formats::{ArchitectureEntries, GgufFile, GgufKeys, JsonObject, WeightSource};
use crate::ops::{Activation, Routing};

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

    /// A model that holds one of this family beside other parts, which are not read.
    fn container(&self) -> Option<Container> {
        None
    }

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

    /// Whether a GGUF file of [`Self::gguf_architecture`] is one of this family rather than of another
    /// with the same architecture.
    ///
    /// # Errors
    /// When a value is malformed.
    fn reads_gguf(&self, keys: &GgufKeys<'_>) -> Result<bool> {
        let _ = keys;
        Ok(true)
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

    /// The tensor of a GGUF file that holds a weight in another way than [`Self::source`] says.
    fn gguf_source(&self, config: &DecoderConfig, weight: &str) -> Option<WeightSource> {
        let _ = (config, weight);
        None
    }

    /// Names of the parts of a layer in GGUF files and in Hugging Face's, beside the common ones.
    fn gguf_parts(&self) -> &'static [(&'static str, &'static str)] {
        &[("ffn_norm", "post_attention_layernorm")]
    }

    /// Undoes what llama.cpp's converter did to the values of a weight, given by its Hugging Face name; of a
    /// matrix, only its rows may have been reordered, as [`Self::gguf_row`] says.
    fn restore_gguf(&self, config: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        let _ = (config, weight, values);
    }

    /// The row of the tensor in a GGUF file that is row `row` of a matrix, given by its Hugging Face name.
    fn gguf_row(&self, config: &DecoderConfig, weight: &str, row: usize) -> usize {
        let _ = (config, weight);
        row
    }

    /// Does to the values of a weight what llama.cpp's converter does, which [`Self::restore_gguf`] undoes.
    fn convert_gguf(&self, config: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        let _ = (config, weight, values);
    }

    /// Adds the settings of its GGUF files that not all families have.
    fn write_gguf(&self, config: &DecoderConfig, entries: &mut ArchitectureEntries<'_>) {
        let _ = (config, entries);
    }

    /// The part of attention windows in its GGUF files.
    fn gguf_windows(&self) -> GgufWindows {
        GgufWindows::Absent
    }
}

/// The part of attention windows in GGUF files of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufWindows {
    /// They have none.
    Absent,
    /// They have them, and llama.cpp computes without.
    Unused,
    /// They have them, and llama.cpp computes with them.
    Used,
}

/// A model that holds a language model beside other parts, for instance one that sees images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container {
    /// The `model_type` of its `config.json`.
    pub model_type: &'static str,
    /// Its name under `architectures`.
    pub architecture: &'static str,
    /// The key of the language model's settings in its `config.json`.
    pub settings: &'static str,
    /// The beginning of the names of the language model's layers, in place of `model.`.
    pub prefix: &'static str,
}

impl Container {
    /// Whether a `config.json` is that of such a model.
    #[must_use]
    pub fn is_described_by(&self, config: &Map<String, Value>) -> bool {
        let architecture = config.get("architectures").and_then(|names| names.get(0));
        architecture
            .or(config.get("model_type"))
            .and_then(Value::as_str)
            .is_some_and(|name| name == self.architecture || name == self.model_type)
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

/// Experts in place of a feed-forward block: small blocks, of which a router chooses some for each token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Experts {
    /// The number of experts, and how they are chosen.
    pub routing: Routing,
    /// Features inside an expert.
    pub intermediate_size: usize,
    /// For each layer, whether it has experts.
    pub layers: Vec<bool>,
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
    /// Experts in place of the feed-forward block of some layers.
    pub experts: Option<Experts>,
    /// For each layer, the rotary embedding of its queries and keys; `None` is none.
    pub rotary: Vec<Option<Rotary>>,
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

    /// The container that a `config.json` describes, of a model that was read from it.
    pub(crate) fn container(&self, original: Option<&Value>) -> Option<Container> {
        let original = original?.as_object()?;
        self.family.container().filter(|container| container.is_described_by(original))
    }

    /// The rotary embedding of the first layer that sees all positions and has one, or of the first that
    /// has one: what a configuration says of the whole model.
    pub(super) fn main_rotary(&self) -> Option<&Rotary> {
        let layers = || self.rotary.iter().zip(&self.attention_windows);
        let unlimited =
            layers().find_map(|(rotary, window)| rotary.as_ref().filter(|_| window.is_none()));
        unlimited.or_else(|| self.rotary.iter().flatten().next())
    }

    /// The length in tokens above which a sequence takes other rotary frequencies; `None` where length
    /// makes no difference.
    #[must_use]
    pub fn longest_short_sequence(&self) -> Option<usize> {
        self.rotary.iter().flatten().find_map(Rotary::longest_short_sequence)
    }

    /// The experts of a layer, if it has any.
    pub(crate) fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers.get(layer) == Some(&true))
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
        let (windows, rotary) = (self.attention_windows.len(), self.rotary.len());
        if windows != self.layer_count || rotary != self.layer_count {
            return Some(format!(
                "there are {windows} attention windows and {rotary} rotary embeddings for {} layers",
                self.layer_count
            ));
        }
        let mut rotary = self.rotary.iter().flatten();
        rotary
            .find_map(|rotary| rotary.problem(self.head_size))
            .or_else(|| self.problem_of_experts())
            .or_else(|| self.problem_of_factors())
    }

    fn problem_of_experts(&self) -> Option<String> {
        let Experts { routing, intermediate_size, layers } = self.experts.as_ref()?;
        let sizes = [routing.expert_count, *intermediate_size];
        let sound = sizes.into_iter().all(|size| (1..=1 << 20).contains(&size))
            && (1..=routing.expert_count).contains(&routing.chosen)
            && layers.len() == self.layer_count;
        (!sound).then(|| {
            format!(
                "{} of {} experts of {intermediate_size} features in {} of {} layers, which no model has",
                routing.chosen,
                routing.expert_count,
                layers.len(),
                self.layer_count
            )
        })
    }

    fn problem_of_factors(&self) -> Option<String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.norm_epsilon) {
            return Some(format!("the norm's epsilon ({}) must be positive", self.norm_epsilon));
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
