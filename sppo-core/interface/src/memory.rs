//! How much memory a policy will take, asked before it is loaded.

use serde::Serialize;

use crate::{LoraSettings, Optimizer};

/// The largest pieces of work that a policy will be given.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedWork {
    /// The adapters that are trained in place of the weights, if any.
    pub adapters: Option<LoraSettings>,
    /// What is sampled: the largest request of each kind.
    pub sampling: Vec<PlannedSampling>,
    /// What is trained on, if anything is.
    pub training: Option<PlannedTraining>,
}

/// A request for responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSampling {
    /// Prompts at once.
    pub prompts: usize,
    /// Tokens of the longest prompt.
    pub longest_prompt: usize,
    /// Responses to each prompt.
    pub samples_per_prompt: usize,
    /// Longest response, in tokens.
    pub max_new_tokens: usize,
}

/// The largest batch that is trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTraining {
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Tokens of the batch.
    pub tokens: usize,
    /// How many of them are tokens of responses.
    pub predicted_tokens: usize,
    /// Whether activations are computed again for the backward pass.
    pub recompute_activations: bool,
}

/// Memory at the fullest moment of a stage, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// The model's weights, adapters included.
    pub weights: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// What the optimiser keeps.
    pub optimizer_state: u64,
    /// What is kept of a forward pass.
    pub activations: u64,
    /// Keys and values of past tokens.
    pub key_value_cache: u64,
    /// Everything that does not outlast the stage: copies of weights, logits, files that are being read.
    pub scratch: u64,
}

impl MemoryUse {
    /// All parts with their names.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimiser state", self.optimizer_state),
            ("activations", self.activations),
            ("key-value cache", self.key_value_cache),
            ("scratch", self.scratch),
        ]
    }

    /// The sum of all parts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Memory that a policy takes in each stage of its life, on the device that holds it. A stage that is
/// not planned takes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// While the model is read.
    pub loading: MemoryUse,
    /// While responses are sampled.
    pub sampling: MemoryUse,
    /// While gradients are computed and applied.
    pub training: MemoryUse,
    /// While weights and the optimiser's state are written.
    pub saving: MemoryUse,
}

impl MemoryEstimate {
    /// All stages with their names.
    #[must_use]
    pub fn stages(&self) -> [(&'static str, MemoryUse); 4] {
        [
            ("loading", self.loading),
            ("sampling", self.sampling),
            ("training", self.training),
            ("saving", self.saving),
        ]
    }

    /// The most that is taken at a time.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.stages().iter().map(|(_, stage)| stage.total()).max().unwrap_or(0)
    }
}
