//! The adapter that turns any op set into a core [`Policy`].

use std::path::{Path, PathBuf};

use serde_json::Value;
use sppo_plugin::{
    GeneratedResponse, GenerationRequest, Host, LoraSettings, MemoryEstimate, Message, Optimizer,
    PlannedWork, PluginError, Policy, PolicyInfo, SequenceBatch, StepReport, StepSettings,
};

use super::memory_estimate::{MemoryTraits, estimate_memory};
use crate::checkpoint::{Checkpoint, WeightFiles, write_checkpoint};
use crate::decoder::DecoderConfig;
use crate::error::ModelError;
use crate::formats::write_adapters;
use crate::generation::GenerationLimits;
use crate::ops::Ops;
use crate::text::TextCodec;
use crate::training::DecoderModel;

/// A decoder with its weights, tokenizer and chat template.
pub struct DecoderPolicy<O: Ops> {
    model: DecoderModel<O>,
    text: TextCodec,
    original_config: Option<Value>,
    /// Where the weights came from, which adapters refer to.
    origin: PathBuf,
    info: PolicyInfo,
}

impl<O: Ops> DecoderPolicy<O> {
    /// Loads a Hugging Face model directory or a `.gguf` file onto an op set, or a PEFT directory, whose
    /// adapters are merged into the weights.
    ///
    /// # Errors
    /// When the model cannot be read or does not fit into memory.
    pub fn load(ops: O, path: &Path, limits: GenerationLimits) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(path)?;
        let model = DecoderModel::load(ops, checkpoint.config(), &mut |name| {
            checkpoint.tensor(name).map(|tensor| (tensor.shape, tensor.values))
        })?;
        Ok(Self::new(model, checkpoint, limits))
    }

    /// Loads a model with adapters that are trained in place of its weights: those of a PEFT directory,
    /// or fresh ones.
    ///
    /// # Errors
    /// As [`Self::load`], or when the adapters were trained with other settings.
    pub fn load_adapted(
        ops: O,
        path: &Path,
        adapters: &LoraSettings,
        limits: GenerationLimits,
    ) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(path)?;
        if let Some(stored) = checkpoint.adapters() {
            let recorded = LoraSettings { seed: adapters.seed, ..stored.settings().clone() };
            if sorted(recorded) != sorted(adapters.clone()) {
                return Err(ModelError::file(
                    path,
                    "holds adapters that were trained with other settings than [training.lora]",
                )
                .with_hint("take the rank, alpha, dropout and target modules of its adapter_config.json, or merge the adapters first: sppo merge"));
            }
        }
        let model = DecoderModel::load_adapted(
            ops,
            checkpoint.config(),
            &mut |name| checkpoint.base_tensor(name).map(|tensor| (tensor.shape, tensor.values)),
            adapters,
            &mut |module, shape| match checkpoint.adapters() {
                Some(stored) => stored.values(module, shape),
                None => Ok(None),
            },
        )?;
        Ok(Self::new(model, checkpoint, limits))
    }

    fn new(model: DecoderModel<O>, checkpoint: Checkpoint, limits: GenerationLimits) -> Self {
        let origin = fs_err::canonicalize(checkpoint.path())
            .unwrap_or_else(|_| checkpoint.path().to_path_buf());
        let (config, original_config, text) = checkpoint.into_parts();
        let (device, data_type) = model.ops().describe();
        let special_tokens = text.special_tokens();
        let info = PolicyInfo {
            architecture: config.family.model_type().into(),
            parameter_count: model.parameters().element_count(),
            layer_matrix_parameters: layer_matrix_parameters(&config),
            head_parameters: (config.vocabulary_size * config.hidden_size) as u64,
            vocabulary_size: config.vocabulary_size,
            context_length: config.context_length,
            beginning_token: special_tokens.beginning,
            end_of_sequence_token: special_tokens.end_of_sequence,
            end_tokens: special_tokens.end_tokens.clone(),
            device,
            data_type,
        };
        let model = model.with_generation_limits(limits);
        Self { model, text, original_config, origin, info }
    }

    /// The model without its text side.
    pub fn model(&self) -> &DecoderModel<O> {
        &self.model
    }
}

/// The memory that planned work on a model on disk takes, of which nothing but the configuration is
/// read.
///
/// # Errors
/// When the model cannot be opened.
pub fn estimate_policy_memory(
    path: &Path,
    traits: MemoryTraits,
    limits: GenerationLimits,
    work: &PlannedWork,
) -> Result<MemoryEstimate, ModelError> {
    let checkpoint = Checkpoint::open(path)?;
    let in_bf16 = checkpoint.is_stored_in_bf16();
    Ok(estimate_memory(checkpoint.config(), traits, limits, in_bf16, work))
}

/// The order of target modules means nothing.
fn sorted(mut settings: LoraSettings) -> LoraSettings {
    settings.target_modules.sort_unstable();
    settings
}

fn layer_matrix_parameters(config: &DecoderConfig) -> u64 {
    let queries = config.attention_heads * config.head_size;
    let keys = config.key_value_heads * config.head_size;
    let attention = 2 * config.hidden_size * (queries + keys);
    let feed_forward = 3 * config.hidden_size * config.intermediate_size;
    (config.layer_count * (attention + feed_forward)) as u64
}

impl<O: Ops> Policy for DecoderPolicy<O> {
    fn info(&self) -> &PolicyInfo {
        &self.info
    }

    fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, PluginError> {
        Ok(self.text.render(messages, add_generation_prompt)?)
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, PluginError> {
        Ok(self.text.encode(text, add_special_tokens)?)
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, PluginError> {
        Ok(self.text.decode(tokens)?)
    }

    fn generate(
        &mut self,
        request: &GenerationRequest,
        host: &dyn Host,
    ) -> Result<Vec<GeneratedResponse>, PluginError> {
        Ok(self.model.generate(request, &self.info.end_tokens, host)?)
    }

    fn token_log_probs(&mut self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>, PluginError> {
        Ok(self.model.token_log_probs(batch)?)
    }

    fn forward(&mut self, batch: &SequenceBatch) -> Result<Vec<f64>, PluginError> {
        Ok(self.model.forward(batch)?)
    }

    fn backward(&mut self, coefficients: &[f64]) -> Result<(), PluginError> {
        Ok(self.model.backward(coefficients)?)
    }

    fn recompute_activations(&mut self, recompute: bool) -> Result<(), PluginError> {
        self.model.recompute_activations(recompute);
        Ok(())
    }

    fn begin_training(&mut self, optimizer: &Optimizer) -> Result<(), PluginError> {
        Ok(self.model.begin_training(optimizer)?)
    }

    fn step(&mut self, settings: &StepSettings) -> Result<StepReport, PluginError> {
        Ok(self.model.step(settings)?)
    }

    fn save(&self, directory: &Path) -> Result<(), PluginError> {
        let (config, original) = (self.model.config(), self.original_config.as_ref());
        let tensors = self.model.tensors().map(finite);
        if let Some(adapters) = self.model.lora() {
            write_adapters(directory, &self.origin, adapters, tensors)?;
            return Ok(self.text.save(directory)?);
        }
        let files = WeightFiles::default();
        Ok(write_checkpoint(directory, config, &self.text, original, tensors, files)?)
    }

    fn save_optimizer_state(&self, file: &Path) -> Result<(), PluginError> {
        Ok(self.model.save_optimizer_state(file)?)
    }

    fn load_optimizer_state(&mut self, file: &Path) -> Result<(), PluginError> {
        Ok(self.model.load_optimizer_state(file)?)
    }
}

/// Refuses a weight that diverged: a run that committed it could not go on.
fn finite(
    tensor: Result<(String, Vec<usize>, Vec<f32>), ModelError>,
) -> Result<(String, Vec<usize>, Vec<f32>), ModelError> {
    let (name, shape, values) = tensor?;
    match values.iter().all(|value| value.is_finite()) {
        true => Ok((name, shape, values)),
        false => Err(ModelError::Diverged(name)),
    }
}
