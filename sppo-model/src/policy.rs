//! The adapter that turns any op set into a core [`Policy`].

use std::path::Path;

use serde_json::Value;
use sppo_core::plugin::{
    GeneratedResponse, GenerationRequest, Host, Message, Optimizer, PluginError, Policy,
    PolicyInfo, SequenceBatch, StepReport, StepSettings,
};

use crate::checkpoint::{Checkpoint, DEFAULT_SHARD_BYTES, write_checkpoint};
use crate::decoder::DecoderConfig;
use crate::error::ModelError;
use crate::generation::GenerationLimits;
use crate::model::DecoderModel;
use crate::ops::Ops;
use crate::text::TextCodec;

/// A decoder with its weights, tokenizer and chat template.
pub struct DecoderPolicy<O: Ops> {
    model: DecoderModel<O>,
    text: TextCodec,
    original_config: Option<Value>,
    info: PolicyInfo,
}

impl<O: Ops> DecoderPolicy<O> {
    /// Loads a Hugging Face model directory or a `.gguf` file onto an op set.
    ///
    /// # Errors
    /// When the model cannot be read or does not fit into memory.
    pub fn load(ops: O, path: &Path, limits: GenerationLimits) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(path)?;
        let model = DecoderModel::load(ops, checkpoint.config(), &mut |name| {
            checkpoint.tensor(name).map(|tensor| (tensor.shape, tensor.values))
        })?;
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
        Ok(Self { model, text, original_config, info })
    }

    /// The model without its text side.
    pub fn model(&self) -> &DecoderModel<O> {
        &self.model
    }
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

    fn begin_training(&mut self, optimizer: &Optimizer) -> Result<(), PluginError> {
        Ok(self.model.begin_training(optimizer)?)
    }

    fn step(&mut self, settings: &StepSettings) -> Result<StepReport, PluginError> {
        Ok(self.model.step(settings)?)
    }

    fn save(&self, directory: &Path) -> Result<(), PluginError> {
        let (config, original) = (self.model.config(), self.original_config.as_ref());
        let tensors = self.model.tensors();
        write_checkpoint(directory, config, &self.text, original, tensors, DEFAULT_SHARD_BYTES)?;
        Ok(())
    }

    fn save_optimizer_state(&self, file: &Path) -> Result<(), PluginError> {
        Ok(self.model.save_optimizer_state(file)?)
    }

    fn load_optimizer_state(&mut self, file: &Path) -> Result<(), PluginError> {
        Ok(self.model.load_optimizer_state(file)?)
    }
}
