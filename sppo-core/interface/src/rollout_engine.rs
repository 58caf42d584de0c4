//! An engine that draws responses in place of the policy: a fleet of inference servers, for instance, which
//! are handed the policy's weights.

use std::path::PathBuf;

use crate::{
    GeneratedResponse, GenerationRequest, PluginError, Progress, SamplingParameters, SequenceBatch,
};

/// Facts about the policy and the work, known before the first request.
#[derive(Clone, Debug, PartialEq)]
pub struct EnginePlan {
    /// Every token that ends a response.
    pub stop_tokens: Vec<u32>,
    /// Longest sequence that the policy can hold, in tokens.
    pub context_length: usize,
    /// Rows of the policy's embedding table.
    pub vocabulary_size: usize,
    /// Tokens of the longest prompt that is known; 0 where none is.
    pub longest_prompt: usize,
    /// Whether the weights are trained, so that others will be loaded later.
    pub weights_change: bool,
    /// Whether only low-rank adapters are trained, so that these will be loaded beside the weights.
    pub trains_adapters: bool,
    /// The way tokens will be drawn.
    pub sampling: SamplingParameters,
    /// A directory for files of the engine's own. It outlives the process where the work can be resumed.
    pub directory: PathBuf,
}

/// Weights to draw responses from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedWeights {
    /// A Hugging Face model directory, a PEFT directory or a `.gguf` file, on this machine.
    pub path: PathBuf,
    /// A name that no other weights of the same work have, for instance `mine/iteration-3`.
    pub version: String,
}

/// Numbers of one endpoint about the weights that it holds, to be compared with the policy's own.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointProbe {
    /// The endpoint, as people know it.
    pub endpoint: String,
    /// The number format of its computation, for instance `bf16`; empty where it does not say.
    pub number_format: String,
    /// Log-probability of every token of each given response, without a temperature.
    pub given: Vec<Vec<f32>>,
    /// Responses that it drew, in the way that all responses are drawn.
    pub drawn: Vec<GeneratedResponse>,
}

/// A source of responses that holds a copy of the policy's weights. The text side stays with the policy:
/// an engine takes and gives tokens.
pub trait RolloutEngine {
    /// Label of the plugin, for instance ``sampler `vllm` ``, for errors about what it returns. The program
    /// sets it.
    fn plugin(&self) -> Option<&'static str> {
        None
    }

    /// Finds out whether every endpoint can do the work. Called before anything else, and again for a model that
    /// ends its responses in another way.
    ///
    /// # Errors
    /// When an endpoint cannot be reached, serves another model, or lacks something that the work needs.
    fn prepare(&mut self, plan: &EnginePlan, progress: &dyn Progress) -> Result<(), PluginError>;

    /// Goes on with weights that the endpoints may hold already; `false` where they certainly do not, so that
    /// they must be loaded.
    ///
    /// # Errors
    /// When an endpoint cannot be asked.
    fn adopt_weights(
        &mut self,
        weights: &ServedWeights,
        progress: &dyn Progress,
    ) -> Result<bool, PluginError>;

    /// Makes every endpoint load these weights, so that all later responses are drawn from them.
    ///
    /// # Errors
    /// When an endpoint cannot load them.
    fn load_weights(
        &mut self,
        weights: &ServedWeights,
        progress: &dyn Progress,
    ) -> Result<(), PluginError>;

    /// Asks every endpoint for log-probabilities of given responses and for drawn ones.
    ///
    /// # Errors
    /// When an endpoint cannot be asked.
    fn probe(
        &mut self,
        given: &SequenceBatch,
        drawn: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<EndpointProbe>, PluginError>;

    /// Samples `samples_per_prompt` responses for each prompt: all of prompt 0, then of prompt 1, ...
    /// Reports progress in generated tokens. Log-probabilities are those of the weights, without a temperature.
    ///
    /// # Errors
    /// When the endpoints fail for longer than they may.
    fn generate(
        &mut self,
        request: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<GeneratedResponse>, PluginError>;
}
