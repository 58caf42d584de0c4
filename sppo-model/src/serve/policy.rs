//! The adapter that turns any op set into a [`Policy`](sppo_plugin::Policy).

use std::path::{Path, PathBuf};

use serde_json::Value;
use sppo_plugin::{
    Codec, GeneratedResponse, GenerationRequest, Learner, LoraSettings, MemoryEstimate, Message,
    Optimizer, PlannedWork, PluginError, PolicyInfo, PolicySpec, Progress, Sampler, SequenceBatch,
    StepReport, StepSettings,
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
    /// Path of the weights, which adapters refer to.
    origin: PathBuf,
    info: PolicyInfo,
}

impl<O: Ops> DecoderPolicy<O> {
    /// Loads a policy onto an op set: a Hugging Face model directory, a `.gguf` file, or a PEFT directory,
    /// whose adapters are merged into the weights unless `spec` has adapters to train.
    ///
    /// # Errors
    /// When the model cannot be read or does not fit into memory, or its adapters were trained with other
    /// settings than those of `spec`.
    pub fn load(ops: O, spec: &PolicySpec, limits: GenerationLimits) -> Result<Self, ModelError> {
        let checkpoint =
            Checkpoint::open(&spec.path)?.with_template_variables(&spec.template_variables)?;
        let mut model = match &spec.adapters {
            Some(adapters) => adapted_model(ops, &checkpoint, adapters)?,
            None => DecoderModel::load(ops, checkpoint.config(), &mut |name| {
                checkpoint.tensor(name).map(|tensor| (tensor.shape, tensor.values))
            })?,
        };
        model.recompute_activations(spec.recompute_activations);
        Ok(Self::new(model, checkpoint, limits))
    }

    fn new(model: DecoderModel<O>, checkpoint: Checkpoint, limits: GenerationLimits) -> Self {
        let origin = fs_err::canonicalize(checkpoint.path())
            .unwrap_or_else(|_| checkpoint.path().to_path_buf());
        let (config, original_config, text) = checkpoint.into_parts();
        let (device, dtype) = model.ops().describe();
        let special_tokens = text.special_tokens();
        let info = PolicyInfo {
            architecture: config.family.model_type().into(),
            parameter_count: model.parameters().element_count(),
            layer_matrix_parameters: layer_matrix_parameters(&config),
            head_parameters: (config.vocabulary_size * config.hidden_size) as u64,
            vocabulary_size: config.vocabulary_size,
            context_length: config.context_length,
            bos_token: special_tokens.bos_token,
            eos_token: special_tokens.eos_token,
            stop_tokens: special_tokens.stop_tokens.clone(),
            device,
            dtype,
        };
        let model = model.with_generation_limits(limits);
        Self { model, text, original_config, origin, info }
    }

    /// The model without its text side.
    pub fn model(&self) -> &DecoderModel<O> {
        &self.model
    }
}

/// A model whose adapters are trained in place of its weights: those of a PEFT directory, or fresh ones.
fn adapted_model<O: Ops>(
    ops: O,
    checkpoint: &Checkpoint,
    adapters: &LoraSettings,
) -> Result<DecoderModel<O>, ModelError> {
    if let Some(stored) = checkpoint.adapters() {
        let recorded = LoraSettings { seed: adapters.seed, ..stored.settings().clone() };
        if sorted(recorded) != sorted(adapters.clone()) {
            return Err(ModelError::file(
                checkpoint.path(),
                "holds adapters that were trained with other settings than [training.lora]",
            )
            .with_hint("take the rank, alpha, dropout and target modules of its adapter_config.json, or merge the adapters first: sppo merge"));
        }
    }
    DecoderModel::load_adapted(
        ops,
        checkpoint.config(),
        &mut |name| checkpoint.base_tensor(name).map(|tensor| (tensor.shape, tensor.values)),
        adapters,
        &mut |module, shape| match checkpoint.adapters() {
            Some(stored) => stored.values(module, shape),
            None => Ok(None),
        },
    )
}

/// Memory that planned work on a model on disk takes. Nothing but the model's configuration is read.
///
/// # Errors
/// When the model cannot be opened.
pub(super) fn estimate_policy_memory(
    spec: &PolicySpec,
    traits: MemoryTraits,
    limits: GenerationLimits,
    work: &PlannedWork,
) -> Result<MemoryEstimate, ModelError> {
    let checkpoint = Checkpoint::open(&spec.path)?;
    let in_bf16 = checkpoint.is_stored_in_bf16();
    Ok(estimate_memory(checkpoint.config(), traits, limits, in_bf16, spec, work))
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

impl<O: Ops> Codec for DecoderPolicy<O> {
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
}

impl<O: Ops> Sampler for DecoderPolicy<O> {
    fn generate(
        &mut self,
        request: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<GeneratedResponse>, PluginError> {
        Ok(self.model.generate(request, &self.info.stop_tokens, progress)?)
    }
}

impl<O: Ops> Learner for DecoderPolicy<O> {
    fn token_log_probs(&mut self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>, PluginError> {
        Ok(self.model.token_log_probs(batch)?)
    }

    fn forward(&mut self, batch: &SequenceBatch) -> Result<Vec<f64>, PluginError> {
        Ok(self.model.forward(batch)?)
    }

    fn backward(&mut self, coefficients: &[f64]) -> Result<(), PluginError> {
        Ok(self.model.backward(coefficients)?)
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
