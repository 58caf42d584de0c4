//! Memory that a policy will take, asked before it is loaded.

use abi_stable::StableAbi;
use serde::Serialize;

use crate::Optimizer;

/// The largest pieces of work that a policy will be given.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedWork {
    /// The largest request for responses of each kind.
    pub sampling: Vec<PlannedSampling>,
    /// The largest batch that is trained on, if any is.
    pub training: Option<PlannedTraining>,
}

/// A request for responses.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, StableAbi)]
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
#[repr(C)]
#[derive(Clone, Debug, PartialEq, StableAbi)]
pub struct PlannedTraining {
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Tokens of the batch.
    pub tokens: usize,
    /// Tokens of responses among them.
    pub predicted_tokens: usize,
}

/// Memory at the fullest moment of a stage, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, StableAbi)]
pub struct MemoryUse {
    /// The model's weights, adapters included.
    pub weights: u64,
    /// Gradients of the parameters that are trained.
    pub gradients: u64,
    /// State of the optimiser.
    pub optimizer_state: u64,
    /// Activations that a forward pass keeps.
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

/// Memory of a device, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, StableAbi)]
pub struct DeviceMemory {
    /// All of it.
    pub total: u64,
    /// Memory that is free at this moment.
    pub free: u64,
}

/// Memory that a policy takes in each stage of its life, on the device that holds it. A stage that is
/// not planned takes nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, StableAbi)]
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
