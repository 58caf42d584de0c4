//! The roles of a language model: its text side, a source of responses, and a learner. A local policy
//! has all three; each can be replaced alone.

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    GeneratedResponse, GenerationRequest, Message, Optimizer, PluginError, Progress, StepReport,
    StepSettings,
};

/// Description of a loaded policy.
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
    #[serde(rename = "beginning_token")]
    pub bos_token: Option<u32>,
    /// The tokenizer's end-of-sequence token.
    #[serde(rename = "end_of_sequence_token")]
    pub eos_token: Option<u32>,
    /// Every token that ends a response.
    #[serde(rename = "end_tokens")]
    pub stop_tokens: Vec<u32>,
    /// The device that holds the model, for instance `cpu` or `cuda:0`.
    pub device: String,
    /// The number format of the computation, for instance `f32`.
    #[serde(rename = "data_type")]
    pub dtype: String,
    /// Batches that are computed at the same time, each by a process of its own: 1 unless the backend is
    /// a team of processes. Calls that take several batches take at most so many.
    pub replicas: usize,
}

/// The text side of a model: its tokenizer and its chat template. Needs no weights.
pub trait Codec {
    /// Description of the model.
    fn info(&self) -> &PolicyInfo;

    /// Label of the plugin that it was made of, for instance ``backend `candle` ``, for errors about what it
    /// returns. The program sets it.
    fn plugin(&self) -> Option<&'static str> {
        None
    }

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
}

/// A source of responses: the policy itself, or another engine that serves the same weights.
pub trait Sampler: Codec {
    /// Samples `samples_per_prompt` responses for each prompt: all of prompt 0, then of prompt 1, ...
    /// Reports progress in generated tokens.
    ///
    /// # Errors
    /// When a prompt leaves no room in the context, or the computation fails.
    fn generate(
        &mut self,
        request: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<GeneratedResponse>, PluginError>;

    /// As [`Self::generate`], for several requests at the same time where there are
    /// [`replicas`](PolicyInfo::replicas): one list of responses per request, each to the bit what the
    /// request alone gives.
    ///
    /// # Errors
    /// As [`Self::generate`].
    fn generate_each(
        &mut self,
        requests: &[GenerationRequest],
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<GeneratedResponse>>, PluginError> {
        requests.iter().map(|request| self.generate(request, progress)).collect()
    }

    /// Takes the weights of a checkpoint that another process or object has trained, so that the next
    /// responses are drawn from them.
    ///
    /// # Errors
    /// When the weights cannot be read, or this sampler cannot take any.
    fn load_weights(&mut self, checkpoint: &Path) -> Result<(), PluginError> {
        let _ = checkpoint;
        Err(PluginError::unsupported("this sampler takes no weights from a checkpoint"))
    }
}

/// A model that can be scored and trained.
///
/// One training step is any number of `forward` and `backward` pairs (gradients accumulate), then
/// one `step`, which applies the gradient and clears it.
pub trait Learner: Codec {
    /// Log-probability of every response token given what precedes it, one list per response.
    /// Keeps nothing for a backward pass.
    ///
    /// # Errors
    /// When a sequence does not fit the context, or the computation fails.
    fn token_log_probs(&mut self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>, PluginError>;

    /// As [`Self::token_log_probs`], of several batches at the same time where there are
    /// [`replicas`](PolicyInfo::replicas): one result per batch, each to the bit that of the batch alone.
    ///
    /// # Errors
    /// As [`Self::token_log_probs`].
    fn token_log_probs_each(
        &mut self,
        batches: &[SequenceBatch],
    ) -> Result<Vec<Vec<Vec<f32>>>, PluginError> {
        batches.iter().map(|batch| self.token_log_probs(batch)).collect()
    }

    /// Log-probabilities of `next_tokens` as the token after each sequence, by the policy as it is now: those
    /// of the first sequence, then those of the second, ... Beginnings that neighbouring sequences share may be
    /// computed once. Keeps nothing for a backward pass.
    ///
    /// # Errors
    /// As [`Self::token_log_probs`].
    fn next_token_log_probs(
        &mut self,
        sequences: &[Vec<u32>],
        next_tokens: &[u32],
    ) -> Result<Vec<f32>, PluginError> {
        let mut batch = SequenceBatch::new();
        for sequence in sequences {
            let prompt = batch.push_prompt(sequence);
            next_tokens.iter().for_each(|&token| batch.push_response(prompt, &[token]));
        }
        Ok(self.token_log_probs(&batch)?.concat())
    }

    /// As [`Self::next_token_log_probs`], of several batches at the same time where there are
    /// [`replicas`](PolicyInfo::replicas): one result per batch.
    ///
    /// # Errors
    /// As [`Self::token_log_probs`].
    fn next_token_log_probs_each(
        &mut self,
        batches: &[Vec<Vec<u32>>],
        next_tokens: &[u32],
    ) -> Result<Vec<Vec<f32>>, PluginError> {
        batches.iter().map(|batch| self.next_token_log_probs(batch, next_tokens)).collect()
    }

    /// Summed log-probability of each response, keeping the activations that [`Self::backward`] needs.
    ///
    /// # Errors
    /// As [`Self::token_log_probs`].
    fn forward(&mut self, batch: &SequenceBatch) -> Result<Vec<f64>, PluginError>;

    /// As [`Self::forward`], of at most as many batches as there are
    /// [`replicas`](PolicyInfo::replicas): one result per batch.
    ///
    /// # Errors
    /// As [`Self::forward`], or when there are more batches than replicas.
    fn forward_each(&mut self, batches: &[SequenceBatch]) -> Result<Vec<Vec<f64>>, PluginError> {
        let [batch] = batches else { return Err(one_at_a_time(batches.len())) };
        Ok(vec![self.forward(batch)?])
    }

    /// Adds `sum_i coefficients[i] * grad log pi(y_i | x_i)` of the last [`Self::forward`] to the
    /// gradient, and releases the activations that it kept.
    ///
    /// # Errors
    /// When there was no forward pass, the lengths differ, or the computation fails.
    fn backward(&mut self, coefficients: &[f64]) -> Result<(), PluginError>;

    /// As [`Self::backward`], of the last [`Self::forward_each`]: coefficients for each of its batches.
    ///
    /// # Errors
    /// As [`Self::backward`].
    fn backward_each(&mut self, coefficients: &[Vec<f64>]) -> Result<(), PluginError> {
        let [coefficients] = coefficients else { return Err(one_at_a_time(coefficients.len())) };
        self.backward(coefficients)
    }

    /// Starts training afresh: gradients and optimiser state are cleared.
    ///
    /// # Errors
    /// When there is no memory for the state.
    fn begin_training(&mut self, optimizer: &Optimizer) -> Result<(), PluginError>;

    /// Ends training: gradients and optimiser state are given up, and with them their memory. What was trained
    /// stays. Without training under way nothing happens.
    ///
    /// # Errors
    /// When the computation fails.
    fn end_training(&mut self) -> Result<(), PluginError> {
        Ok(())
    }

    /// Applies the accumulated gradient and clears it.
    ///
    /// # Errors
    /// When training was not begun or the gradient is not finite.
    fn step(&mut self, settings: &StepSettings) -> Result<StepReport, PluginError>;

    /// Writes the model as a Hugging Face directory (config, tokenizer, sharded safetensors, f32)
    /// that [`Backend::load_policy`](crate::Backend::load_policy) reads back bit for bit.
    ///
    /// # Errors
    /// When the directory cannot be written.
    fn save(&self, directory: &Path) -> Result<(), PluginError>;

    /// Writes the optimiser's state to a safetensors file.
    ///
    /// # Errors
    /// When the file cannot be written.
    fn save_optimizer_state(&self, file: &Path) -> Result<(), PluginError>;

    /// Restores the state that [`Self::save_optimizer_state`] wrote; call after [`Self::begin_training`].
    ///
    /// # Errors
    /// When the file does not belong to this model and optimiser.
    fn load_optimizer_state(&mut self, file: &Path) -> Result<(), PluginError>;
}

fn one_at_a_time(batches: usize) -> PluginError {
    PluginError::failed(format!("{batches} batches for a policy that trains on one at a time"))
}

/// A language model that can be sampled from, scored and trained.
pub trait Policy: Sampler + Learner {}

impl<T: Sampler + Learner> Policy for T {}

/// One part of a [`SequenceBatch`]: a prompt, or a response that continues an earlier prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The segment's tokens within [`SequenceBatch::tokens`].
    pub tokens: Range<usize>,
    /// For a response, the index of the prompt segment that it continues.
    pub prompt: Option<usize>,
}

/// Sequences packed without padding. A prompt shared by several responses is stored, and may be
/// computed, once. Policies answer one result per *response*, in the order they were pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

    pub(crate) fn from_parts(tokens: Vec<u32>, segments: Vec<Segment>) -> Self {
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
