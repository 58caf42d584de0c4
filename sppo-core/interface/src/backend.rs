//! The author's side of a compute backend: it holds the policy, samples from it and trains it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Host, LoraSettings, MemoryEstimate, Message, PlannedWork, PluginError};

/// Which model to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// A Hugging Face model directory or a `.gguf` file, on this machine.
    pub path: PathBuf,
}

/// A compute backend.
pub trait Backend {
    /// Loads a policy for sampling and training.
    ///
    /// # Errors
    /// When the model cannot be read or does not fit.
    fn load_policy(
        &self,
        model: &ModelSpec,
        host: &dyn Host,
    ) -> Result<Box<dyn Policy>, PluginError>;

    /// Loads a policy whose weights stay as they are and whose low-rank adapters are trained in their
    /// place: those in `model`, where it is a PEFT directory, or fresh ones. [`Policy::save`] then
    /// writes a PEFT directory.
    ///
    /// # Errors
    /// As [`Self::load_policy`], or when the settings fit neither the model nor its adapters.
    fn load_adapted_policy(
        &self,
        model: &ModelSpec,
        adapters: &LoraSettings,
        host: &dyn Host,
    ) -> Result<Box<dyn Policy>, PluginError> {
        let _ = (model, adapters, host);
        Err(PluginError::unsupported("this backend trains no low-rank adapters").with_hint(
            "set training.lora.rank = 0 to train all weights, or choose another backend",
        ))
    }

    /// How much of this machine's memory a policy will take, worked out without loading it.
    ///
    /// # Errors
    /// When the model cannot be read, or the backend does not know.
    fn estimate_memory(
        &self,
        model: &ModelSpec,
        work: &PlannedWork,
    ) -> Result<MemoryEstimate, PluginError> {
        let _ = (model, work);
        Err(PluginError::unsupported("this backend does not estimate its memory"))
    }

    /// How fast this machine multiplies matrices in the backend's number format, in GFLOP/s (the median
    /// of repeated products), measured now on a shape of the caller's model:
    /// `[rows, inner] x [inner, columns]`. The yardstick of `sppo bench`.
    ///
    /// # Errors
    /// When the backend cannot measure it.
    fn matrix_product_rate(
        &self,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> Result<f64, PluginError> {
        let _ = (rows, inner, columns);
        Err(PluginError::unsupported("this backend does not measure matrix products"))
    }

    /// Loads a model that scores token sequences.
    ///
    /// # Errors
    /// When the model cannot be read or this backend serves no scorers.
    fn load_scorer(
        &self,
        model: &ModelSpec,
        host: &dyn Host,
    ) -> Result<Box<dyn Scorer>, PluginError> {
        let _ = host;
        Err(PluginError::unsupported(format!(
            "this backend cannot score with {}",
            model.path.display()
        )))
    }
}

/// A model that gives one number per sequence.
pub trait Scorer {
    /// One score for each sequence of token ids.
    ///
    /// # Errors
    /// When a sequence is too long or the computation fails.
    fn score(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<f32>, PluginError>;
}

/// What is known of a loaded policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyInfo {
    /// The model family, for instance `llama`.
    pub architecture: String,
    /// Number of parameters; a tied head counts once.
    pub parameter_count: u64,
    /// Parameters that every token is multiplied with: the layers' matrices.
    pub layer_matrix_parameters: u64,
    /// Parameters that only predicted tokens are multiplied with: the output head.
    pub head_parameters: u64,
    /// Rows of the embedding table.
    pub vocabulary_size: usize,
    /// Longest sequence that the model can hold, in tokens.
    pub context_length: usize,
    /// The token that begins a text, if the model has one.
    pub beginning_token: Option<u32>,
    /// The tokenizer's end-of-sequence token.
    pub end_of_sequence_token: Option<u32>,
    /// Every token that ends an answer.
    pub end_tokens: Vec<u32>,
    /// Where the model lives, for instance `cpu` or `cuda:0`.
    pub device: String,
    /// The number format of the computation, for instance `f32`.
    pub data_type: String,
}

/// One part of a [`SequenceBatch`]: a prompt, or a response that continues an earlier prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The segment's tokens within [`SequenceBatch::tokens`].
    pub tokens: Range<usize>,
    /// For a response, the index of the prompt segment that it continues.
    pub prompt: Option<usize>,
}

/// Sequences packed without padding. A prompt shared by several responses is stored, and may be
/// computed, once. Policies answer one result per *response*, in the order they were pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceBatch {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
}

impl SequenceBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn from_parts(tokens: Vec<u32>, segments: Vec<Segment>) -> Self {
        Self { tokens, segments }
    }

    /// Adds a prompt (at least one token) and returns its segment index for [`Self::push_response`].
    pub fn push_prompt(&mut self, tokens: &[u32]) -> usize {
        self.push(tokens, None)
    }

    /// Adds a response (at least one token) to the prompt at segment index `prompt`.
    pub fn push_response(&mut self, prompt: usize, tokens: &[u32]) {
        self.push(tokens, Some(prompt));
    }

    fn push(&mut self, tokens: &[u32], prompt: Option<usize>) -> usize {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.segments.push(Segment { tokens: start..self.tokens.len(), prompt });
        self.segments.len() - 1
    }

    /// All token ids, segment after segment.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// All segments, prompts and responses, in the order they were pushed.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The response segments, in order.
    pub fn responses(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.prompt.is_some())
    }

    /// Number of responses.
    #[must_use]
    pub fn response_count(&self) -> usize {
        self.responses().count()
    }
}

/// How to draw tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParameters {
    /// Divides the logits before sampling; 0 takes the most probable token.
    pub temperature: f64,
    /// Keeps the most probable tokens whose probabilities sum to at least this (1 keeps all).
    pub top_p: f64,
    /// Keeps this many most probable tokens (0 keeps all).
    pub top_k: usize,
    /// Longest response, in tokens, the end token included.
    pub max_new_tokens: usize,
    /// No end token is drawn before this many tokens.
    pub min_new_tokens: usize,
}

impl Default for SamplingParameters {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, max_new_tokens: 128, min_new_tokens: 0 }
    }
}

/// A tokenised prompt and the number that identifies it for sampling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationPrompt {
    /// Keys the random draws; the same id, seed and sample always draw the same numbers.
    pub id: u64,
    /// Token ids, at least one.
    pub tokens: Vec<u32>,
}

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRequest {
    /// The prompts.
    pub prompts: Vec<GenerationPrompt>,
    /// Responses per prompt (K).
    pub samples_per_prompt: usize,
    /// How to draw tokens.
    pub sampling: SamplingParameters,
    /// The run's seed. Draws depend on `(seed, stream, prompt id, sample, position)` and on nothing
    /// else, so not on how prompts are batched.
    pub seed: u64,
    /// Separates independent uses of one seed: the iteration, or an evaluation.
    pub stream: u64,
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model drew an end token, which is the response's last token.
    EndToken,
    /// The response reached `max_new_tokens` or the context's end.
    Length,
}

/// One sampled response.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedResponse {
    /// The tokens that were drawn, the end token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the untempered, untruncated policy.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The optimiser and its constants. State is kept in f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// `torch.optim.RMSprop`: `v <- alpha v + (1 - alpha) g^2; w <- w - lr g / (sqrt(v) + epsilon)`,
    /// without bias correction (the optimiser of the released code).
    #[serde(rename = "rmsprop")]
    RmsProp {
        /// Smoothing constant.
        #[serde(default = "defaults::alpha")]
        alpha: f64,
        /// Added to the root.
        #[serde(default = "defaults::epsilon")]
        epsilon: f64,
    },
    /// `torch.optim.AdamW` (decoupled weight decay, bias correction).
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the first moment.
        #[serde(default = "defaults::beta1")]
        beta1: f64,
        /// Decay of the second moment.
        #[serde(default = "defaults::beta2")]
        beta2: f64,
        /// Added to the root.
        #[serde(default = "defaults::epsilon")]
        epsilon: f64,
        /// Decoupled weight decay.
        #[serde(default)]
        weight_decay: f64,
    },
    /// `torch.optim.SGD` with optional momentum (dampening 0).
    Sgd {
        /// Momentum; 0 keeps no state.
        #[serde(default)]
        momentum: f64,
    },
}

mod defaults {
    pub(super) fn alpha() -> f64 {
        0.99
    }
    pub(super) fn epsilon() -> f64 {
        1e-8
    }
    pub(super) fn beta1() -> f64 {
        0.9
    }
    pub(super) fn beta2() -> f64 {
        0.999
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::RmsProp { alpha: defaults::alpha(), epsilon: defaults::epsilon() }
    }
}

/// How to apply the accumulated gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Scales the gradient down to at most this L2 norm; `None` leaves it.
    pub max_gradient_norm: Option<f64>,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// L2 norm of the accumulated gradient over all trainable parameters, before clipping.
    pub gradient_norm: f64,
}

/// A language model that can be sampled from, scored and trained.
///
/// Training one step is: any number of `forward` and `backward` pairs (gradients accumulate), then
/// one `step`, which applies the gradient and clears it.
pub trait Policy {
    /// What is known of the model.
    fn info(&self) -> &PolicyInfo;

    /// Renders a conversation with the model's chat template.
    ///
    /// # Errors
    /// When the model has no template or the template refuses the conversation.
    fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, PluginError>;

    /// Token ids of a text. `add_special_tokens` lets the tokenizer add its own begin and end tokens;
    /// rendered templates already hold them.
    ///
    /// # Errors
    /// When the tokenizer fails.
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, PluginError>;

    /// Text of token ids, special tokens left out.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    fn decode(&self, tokens: &[u32]) -> Result<String, PluginError>;

    /// Samples `samples_per_prompt` responses for each prompt: all of prompt 0, then of prompt 1, ...
    /// Reports progress in generated tokens.
    ///
    /// # Errors
    /// When a prompt leaves no room in the context, or the computation fails.
    fn generate(
        &mut self,
        request: &GenerationRequest,
        host: &dyn Host,
    ) -> Result<Vec<GeneratedResponse>, PluginError>;

    /// Log-probability of every response token given what precedes it, one list per response.
    /// Keeps nothing for a backward pass.
    ///
    /// # Errors
    /// When a sequence does not fit the context, or the computation fails.
    fn token_log_probs(&mut self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>, PluginError>;

    /// Summed log-probability of each response, keeping what [`Self::backward`] needs.
    ///
    /// # Errors
    /// As [`Self::token_log_probs`].
    fn forward(&mut self, batch: &SequenceBatch) -> Result<Vec<f64>, PluginError>;

    /// Adds `sum_i coefficients[i] * grad log pi(y_i | x_i)` of the last [`Self::forward`] to the
    /// gradient, and releases what that forward kept.
    ///
    /// # Errors
    /// When there was no forward pass, the lengths differ, or the computation fails.
    fn backward(&mut self, coefficients: &[f64]) -> Result<(), PluginError>;

    /// Whether training keeps less for the backward pass and computes it again when it is needed: less
    /// memory for more time, and the same gradients.
    ///
    /// # Errors
    /// When this policy cannot.
    fn recompute_activations(&mut self, recompute: bool) -> Result<(), PluginError> {
        match recompute {
            true => Err(PluginError::unsupported("this backend does not recompute activations")
                .with_hint("set training.recompute_activations = false")),
            false => Ok(()),
        }
    }

    /// Starts training afresh: gradients and optimiser state are cleared.
    ///
    /// # Errors
    /// When memory for the state is not to be had.
    fn begin_training(&mut self, optimizer: &Optimizer) -> Result<(), PluginError>;

    /// Applies the accumulated gradient and clears it.
    ///
    /// # Errors
    /// When training was not begun or the gradient is not finite.
    fn step(&mut self, settings: &StepSettings) -> Result<StepReport, PluginError>;

    /// Writes the model as a Hugging Face directory (config, tokenizer, sharded safetensors, f32)
    /// that [`Backend::load_policy`] reads back bit for bit.
    ///
    /// # Errors
    /// When the directory cannot be written.
    fn save(&self, directory: &Path) -> Result<(), PluginError>;

    /// Writes the optimiser's state to a safetensors file.
    ///
    /// # Errors
    /// When the file cannot be written.
    fn save_optimizer_state(&self, file: &Path) -> Result<(), PluginError>;

    /// Reads back what [`Self::save_optimizer_state`] wrote; call after [`Self::begin_training`].
    ///
    /// # Errors
    /// When the file does not belong to this model and optimiser.
    fn load_optimizer_state(&mut self, file: &Path) -> Result<(), PluginError>;
}
