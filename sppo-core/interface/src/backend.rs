//! A compute backend: it loads policies and scorers.

use std::path::PathBuf;

use abi_stable::StableAbi;

use crate::{
    DeviceMemory, FrozenWeights, GradientDtype, LoraSettings, MemoryEstimate, PlannedWork,
    PluginError, Policy, Progress, Sharding,
};

/// A model to load for scoring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSpec {
    /// A Hugging Face model directory or a `.gguf` file, on this machine.
    pub path: PathBuf,
    /// Tokens of a language model whose log-probabilities, as the token after a sequence, are its numbers;
    /// empty for a model with a head of its own.
    pub next_tokens: Vec<u32>,
}

impl ModelSpec {
    /// A model with a head of its own.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), next_tokens: Vec::new() }
    }
}

/// A policy to load, and the way it is held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySpec {
    /// A Hugging Face model directory, a PEFT directory or a `.gguf` file, on this machine.
    pub path: PathBuf,
    /// Low-rank adapters that are trained while the weights stay as they are: those in `path`, where it is
    /// a PEFT directory, or fresh ones. [`Learner::save`](crate::Learner::save) then writes a PEFT directory.
    pub adapters: Option<LoraSettings>,
    /// Whether training keeps less for the backward pass and computes it again when it is needed
    /// (gradient checkpointing): less memory for more time, and the same gradients.
    pub recompute_activations: bool,
    /// Division of the training state among the processes of a team; of no meaning in one process.
    pub sharding: Sharding,
    /// Number format that gradients of weights are summed in.
    pub gradient_dtype: GradientDtype,
    /// Form in which weights are kept that are not trained because adapters are.
    pub frozen_weights: FrozenWeights,
    /// Variables of the model's chat template, `{"enable_thinking": false}` for instance: a JSON object as
    /// text, empty for none.
    pub template_variables: String,
}

impl PolicySpec {
    /// A policy of all its weights, held as the backend does by default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}

/// The place of a process among those that hold a backend's models together.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, StableAbi)]
pub struct TeamPlace {
    /// Number of this process, from 0. The program runs on rank 0; the other processes serve it.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
}

impl TeamPlace {
    /// A process without others.
    pub const ALONE: Self = Self { rank: 0, size: 1 };
}

/// A compute backend.
pub trait Backend {
    /// The place of this process among those that hold the backend's models together.
    fn place(&self) -> TeamPlace {
        TeamPlace::ALONE
    }

    /// Does what rank 0 asks until it has no more work, on the other ranks of a team.
    ///
    /// # Errors
    /// When this process is in no team or on rank 0, or another process ends early or fails to answer.
    fn serve(&self, progress: &dyn Progress) -> Result<(), PluginError> {
        let _ = progress;
        Err(PluginError::unsupported("this backend works in one process"))
    }

    /// Loads a policy for sampling and training.
    ///
    /// # Errors
    /// When the model cannot be read or does not fit, or the backend does not support an option of `spec`.
    fn load_policy(&self, spec: &PolicySpec) -> Result<Box<dyn Policy>, PluginError>;

    /// Memory that a policy of `spec` will take on this machine for `work`, worked out without loading it.
    ///
    /// # Errors
    /// When the model cannot be read, or the backend does not know.
    fn estimate_memory(
        &self,
        spec: &PolicySpec,
        work: &PlannedWork,
    ) -> Result<MemoryEstimate, PluginError> {
        let _ = (spec, work);
        Err(PluginError::unsupported("this backend does not estimate its memory"))
    }

    /// Memory of the device that holds this process's part of the models, where it is not the machine's own.
    ///
    /// # Errors
    /// When the device does not answer.
    fn device_memory(&self) -> Result<Option<DeviceMemory>, PluginError> {
        Ok(None)
    }

    /// Rate at which this machine multiplies matrices in the backend's number format, in GFLOP/s (the median
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
    fn load_scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        Err(PluginError::unsupported(format!(
            "this backend cannot score with {}",
            model.path.display()
        )))
    }
}

/// A model that gives numbers for sequences: one each, or a vector.
pub trait Scorer {
    /// Numbers for each sequence of token ids: those of the first, then those of the second, ...
    ///
    /// # Errors
    /// When a sequence is too long or the computation fails.
    fn score(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<f32>, PluginError>;

    /// Numbers per sequence.
    fn width(&self) -> usize {
        1
    }

    /// Batches that [`Self::score_each`] computes at the same time, each in a process of its own.
    fn replicas(&self) -> usize {
        1
    }

    /// As [`Self::score`], for several batches at the same time where there are [`Self::replicas`]: one
    /// list of scores per batch, each to the bit what the batch alone gives.
    ///
    /// # Errors
    /// As [`Self::score`].
    fn score_each(&mut self, batches: &[Vec<Vec<u32>>]) -> Result<Vec<Vec<f32>>, PluginError> {
        batches.iter().map(|sequences| self.score(sequences)).collect()
    }
}
