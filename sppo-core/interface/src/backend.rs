//! A compute backend: it loads policies and scorers.

use std::path::PathBuf;

use crate::{LoraSettings, MemoryEstimate, PlannedWork, PluginError, Policy};

/// A model to load for scoring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// A Hugging Face model directory or a `.gguf` file, on this machine.
    pub path: PathBuf,
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

/// A compute backend.
pub trait Backend {
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

/// A model that gives one number per sequence.
pub trait Scorer {
    /// One score for each sequence of token ids.
    ///
    /// # Errors
    /// When a sequence is too long or the computation fails.
    fn score(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<f32>, PluginError>;
}
