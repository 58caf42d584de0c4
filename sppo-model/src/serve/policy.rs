//! The adapter that turns any op set into a [`Policy`](sppo_plugin::Policy).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sppo_plugin::{
    Codec, FrozenWeights, GeneratedResponse, GenerationRequest, Learner, LoraSettings,
    MemoryEstimate, Message, Optimizer, PlannedWork, PluginError, PolicyInfo, PolicySpec, Progress,
    Sampler, SequenceBatch, StepReport, StepSettings,
};

use super::memory_estimate::{MemorySetting, MemoryTraits, estimate_memory};
use crate::checkpoint::{Checkpoint, ModelShape, TensorData, WeightFiles, write_checkpoint};
use crate::decoder::{
    AdapterSource, DecoderConfig, Experts, FrozenWeight, TensorSource, own_targets, stored_adapters,
};
use crate::error::ModelError;
use crate::formats::{AdapterValues, write_adapters};
use crate::generation::GenerationLimits;
use crate::ops::Ops;
use crate::text::TextCodec;
use crate::training::DecoderModel;

/// A decoder with its weights, tokenizer and chat template.
pub struct DecoderPolicy<O: Ops> {
    model: DecoderModel<O>,
    card: PolicyCard,
}

impl<O: Ops> DecoderPolicy<O> {
    /// Loads a policy onto an op set: a Hugging Face model directory, a `.gguf` file, or a PEFT directory,
    /// whose adapters are merged into the weights unless `spec` has adapters to train.
    ///
    /// # Errors
    /// When the model cannot be read or does not fit into memory, or its adapters were trained with other
    /// settings than those of `spec`.
    pub fn load(ops: O, spec: &PolicySpec, limits: GenerationLimits) -> Result<Self, ModelError> {
        let checkpoint = open_checkpoint(spec)?;
        let ops = ops.with_gradients_in(spec.gradient_dtype)?;
        let (device, dtype) = ops.describe();
        let adapter = &mut |module: &str, shape| adapter_values(&checkpoint, module, shape);
        let model = match (spec.frozen_weights, &spec.adapters) {
            (FrozenWeights::Dense, adapters) => load_model(
                ops,
                checkpoint.config(),
                adapters.as_ref(),
                &mut |name| weight(&checkpoint, adapters.is_some(), name),
                adapter,
            )?,
            (FrozenWeights::Quantized, Some(settings)) => {
                load_quantized(ops, &checkpoint, settings, adapter)?
            }
            (FrozenWeights::Quantized, None) => return Err(nothing_frozen()),
        };
        let mut model = model.with_generation_limits(limits);
        model.recompute_activations(spec.recompute_activations);
        let parameters = model.parameters().element_count();
        let card =
            PolicyCard::new(checkpoint, parameters, Placement { device, dtype, replicas: 1 });
        Ok(Self { model, card })
    }

    /// The model without its text side.
    pub fn model(&self) -> &DecoderModel<O> {
        &self.model
    }
}

/// Opens the model of a policy, and refuses adapters that were trained with other settings.
pub(super) fn open_checkpoint(spec: &PolicySpec) -> Result<Checkpoint, ModelError> {
    let checkpoint =
        Checkpoint::open(&spec.path)?.with_template_variables(&spec.template_variables)?;
    let (Some(adapters), Some(stored)) = (&spec.adapters, checkpoint.adapters()) else {
        return Ok(checkpoint);
    };
    let names = checkpoint.stored_names();
    let recorded = stored.settings(names.iter().map(String::as_str))?;
    let recorded = LoraSettings { seed: adapters.seed, ..recorded };
    if sorted(recorded.clone()) == sorted(own_targets(checkpoint.config(), adapters)?) {
        return Ok(checkpoint);
    }
    let [config, _] = stored.paths();
    let LoraSettings { rank, alpha, dropout, target_modules, rank_stabilized, .. } = recorded;
    Err(ModelError::file(
        config,
        "these adapters were trained with other settings than [training.lora]",
    )
    .with_hint(format!(
        "take theirs: rank {rank}, alpha {alpha}, dropout {dropout}, target modules {}, rank \
         stabilised: {rank_stabilized}; or merge the adapters first: sppo merge",
        target_modules.join(",")
    )))
}

/// A model of all its weights, or one whose adapters are trained in place of them.
pub(super) fn load_model<O: Ops>(
    ops: O,
    config: &DecoderConfig,
    adapters: Option<&LoraSettings>,
    tensor: &mut TensorSource<'_>,
    adapter: &mut AdapterSource<'_>,
) -> Result<DecoderModel<O>, ModelError> {
    match adapters {
        Some(settings) => DecoderModel::load_adapted(ops, config, tensor, settings, adapter),
        None => DecoderModel::load(ops, config, tensor),
    }
}

/// A model whose adapters are trained beside weights that stay in the blocks of their file.
fn load_quantized<O: Ops>(
    ops: O,
    checkpoint: &Checkpoint,
    settings: &LoraSettings,
    adapter: &mut AdapterSource<'_>,
) -> Result<DecoderModel<O>, ModelError> {
    checkpoint.quantized_bytes()?;
    let weight = &mut |name: &str| match checkpoint.quantized_base_matrix(name)? {
        Some(matrix) => Ok(FrozenWeight::Quantized(matrix)),
        None => {
            let TensorData { shape, values } = checkpoint.base_tensor(name)?;
            Ok(FrozenWeight::Dense(shape, values))
        }
    };
    DecoderModel::load_adapted_frozen(ops, checkpoint.config(), weight, settings, adapter)
}

fn nothing_frozen() -> ModelError {
    ModelError::Input("quantized weights are kept only where adapters are trained".into())
}

/// A weight of a checkpoint; that of its base where its adapters are trained.
pub(super) fn weight(
    checkpoint: &Checkpoint,
    of_base: bool,
    name: &str,
) -> Result<(Vec<usize>, Vec<f32>), ModelError> {
    let tensor = if of_base { checkpoint.base_tensor(name) } else { checkpoint.tensor(name) };
    tensor.map(|tensor| (tensor.shape, tensor.values))
}

/// The values of a module's adapter that a checkpoint holds, if it does.
pub(super) fn adapter_values(
    checkpoint: &Checkpoint,
    module: &str,
    shape: [usize; 2],
) -> Result<Option<AdapterValues>, ModelError> {
    checkpoint.adapters().map_or(Ok(None), |stored| stored.values(module, shape))
}

/// Place and form of a policy's weights.
pub(super) struct Placement {
    pub(super) device: String,
    pub(super) dtype: String,
    pub(super) replicas: usize,
}

/// Name, shape and row-major values of a weight.
pub(super) type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// A policy without its weights: its text side, and what its checkpoints need.
pub(super) struct PolicyCard {
    pub(super) info: PolicyInfo,
    config: DecoderConfig,
    text: TextCodec,
    original_config: Option<Value>,
    /// Path of the weights, which adapters refer to.
    origin: PathBuf,
}

impl PolicyCard {
    pub(super) fn new(checkpoint: Checkpoint, parameter_count: u64, placement: Placement) -> Self {
        let origin = fs_err::canonicalize(checkpoint.path())
            .unwrap_or_else(|_| checkpoint.path().to_path_buf());
        let (config, original_config, text) = checkpoint.into_parts();
        let special_tokens = text.special_tokens();
        let info = PolicyInfo {
            architecture: config.family.model_type().into(),
            parameter_count,
            layer_matrix_parameters: layer_matrix_parameters(&config),
            head_parameters: (config.vocabulary_size * config.hidden_size) as u64,
            vocabulary_size: config.vocabulary_size,
            context_length: config.context_length,
            bos_token: special_tokens.bos_token,
            eos_token: special_tokens.eos_token,
            stop_tokens: special_tokens.stop_tokens.clone(),
            device: placement.device,
            dtype: placement.dtype,
            replicas: placement.replicas,
        };
        Self { info, config, text, original_config, origin }
    }

    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, PluginError> {
        Ok(self.text.render(messages, add_generation_prompt)?)
    }

    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, PluginError> {
        Ok(self.text.encode(text, special)?)
    }

    pub(super) fn decode(&self, tokens: &[u32]) -> Result<String, PluginError> {
        Ok(self.text.decode(tokens)?)
    }

    /// Writes the trained weights as a checkpoint: a PEFT directory where they are of adapters.
    pub(super) fn save(
        &self,
        adapters: Option<&LoraSettings>,
        tensors: impl Iterator<Item = Result<NamedTensor, ModelError>>,
        directory: &Path,
    ) -> Result<(), PluginError> {
        let tensors = tensors.map(finite);
        if let Some(adapters) = adapters {
            let adapters = own_targets(&self.config, adapters)?;
            let container = self.config.container(self.original_config.as_ref());
            let named = |(name, shape, values): (String, Vec<usize>, Vec<f32>)| {
                let name = match container {
                    Some(outer) => name.replacen("model.", outer.prefix, 1),
                    None => name,
                };
                Ok((name, shape, values))
            };
            let tensors = stored_adapters(&self.config, tensors)?.into_iter().map(named);
            write_adapters(directory, &self.origin, &adapters, tensors)?;
            return Ok(self.text.save(directory)?);
        }
        let (original, files) = (self.original_config.as_ref(), WeightFiles::default());
        Ok(write_checkpoint(directory, &self.config, &self.text, original, tensors, files)?)
    }
}

/// Memory that planned work on a model on disk takes. Nothing but the model's configuration is read.
///
/// # Errors
/// When the model cannot be opened.
pub(super) fn estimate_policy_memory(
    spec: &PolicySpec,
    traits: MemoryTraits,
    limits: GenerationLimits,
    ranks: usize,
    work: &PlannedWork,
) -> Result<MemoryEstimate, ModelError> {
    let shape = ModelShape::read(&spec.path)?;
    let quantized = match spec.frozen_weights {
        FrozenWeights::Dense => HashMap::new(),
        FrozenWeights::Quantized => shape.quantized_bytes()?,
    };
    let stored_in_bf16 = shape.is_stored_in_bf16();
    let setting = MemorySetting { traits, limits, stored_in_bf16, quantized, ranks };
    Ok(estimate_memory(&shape.config, setting, spec, work))
}

/// The order of target modules means nothing.
fn sorted(mut settings: LoraSettings) -> LoraSettings {
    settings.target_modules.sort_unstable();
    settings
}

/// Numbers in the matrices of the layers that a token is multiplied with.
fn layer_matrix_parameters(config: &DecoderConfig) -> u64 {
    let queries = config.attention_heads * config.head_size;
    let keys = config.key_value_heads * config.head_size;
    let attention = 2 * config.hidden_size * (queries + keys);
    let feed_forward = |layer: usize| match config.experts_of(layer) {
        None => 3 * config.hidden_size * config.intermediate_size,
        Some(Experts { routing, intermediate_size, .. }) => {
            config.hidden_size * (3 * routing.chosen * intermediate_size + routing.expert_count)
        }
    };
    (0..config.layer_count).map(|layer| attention + feed_forward(layer)).sum::<usize>() as u64
}

impl<O: Ops> Codec for DecoderPolicy<O> {
    fn info(&self) -> &PolicyInfo {
        &self.card.info
    }

    fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, PluginError> {
        self.card.render(messages, add_generation_prompt)
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, PluginError> {
        self.card.encode(text, add_special_tokens)
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, PluginError> {
        self.card.decode(tokens)
    }
}

impl<O: Ops> Sampler for DecoderPolicy<O> {
    fn generate(
        &mut self,
        request: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<GeneratedResponse>, PluginError> {
        Ok(self.model.generate(request, &self.card.info.stop_tokens, progress)?)
    }
}

impl<O: Ops> Learner for DecoderPolicy<O> {
    fn token_log_probs(&mut self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>, PluginError> {
        Ok(self.model.token_log_probs(batch)?)
    }

    fn next_token_log_probs(
        &mut self,
        sequences: &[Vec<u32>],
        next_tokens: &[u32],
    ) -> Result<Vec<f32>, PluginError> {
        Ok(self.model.next_token_log_probs(sequences, next_tokens)?)
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

    fn end_training(&mut self) -> Result<(), PluginError> {
        Ok(self.model.end_training()?)
    }

    fn step(&mut self, settings: &StepSettings) -> Result<StepReport, PluginError> {
        Ok(self.model.step(settings)?)
    }

    fn save(&self, directory: &Path) -> Result<(), PluginError> {
        self.card.save(self.model.lora(), self.model.tensors(), directory)
    }

    fn save_optimizer_state(&self, file: &Path) -> Result<(), PluginError> {
        Ok(self.model.save_optimizer_state(file)?)
    }

    fn load_optimizer_state(&mut self, file: &Path) -> Result<(), PluginError> {
        Ok(self.model.load_optimizer_state(file)?)
    }
}

/// Refuses a weight that diverged: a run that committed it could not go on.
fn finite(tensor: Result<NamedTensor, ModelError>) -> Result<NamedTensor, ModelError> {
    let (name, shape, values) = tensor?;
    match values.iter().all(|value| value.is_finite()) {
        true => Ok((name, shape, values)),
        false => Err(ModelError::Diverged(name)),
    }
}
