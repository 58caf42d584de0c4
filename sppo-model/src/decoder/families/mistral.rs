//! Mistral 7B v0.1 to v0.3 and Nemo: Llama with an optional sliding window.

use serde_json::{Value, json};

use super::hugging_face::{self, Defaults};
use super::llama::convert_queries_and_keys;
use super::rotary_settings::USUAL;
use crate::decoder::{DecoderConfig, Family};
use crate::error::Result;
use crate::formats::{GgufKeys, JsonObject};

#[derive(Debug)]
pub(super) struct Mistral;

impl Family for Mistral {
    fn model_type(&self) -> &'static str {
        "mistral"
    }

    fn architecture(&self) -> &'static str {
        "MistralForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "MistralForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        settings.refuse_unless("hidden_act", &json!("silu"))?;
        settings.refuse_unless("attention_bias", &json!(false))?;
        let defaults = Defaults {
            vocabulary_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 14_336,
            layer_count: 32,
            attention_heads: 32,
            key_value_heads: Some(8),
            head_size: None,
            context_length: 131_072,
            norm_epsilon: 1e-6,
            tied_head: false,
            rotary: USUAL,
        };
        let mut config = hugging_face::plain(&Self, settings, &defaults)?;
        config.attention_windows.fill(settings.count_or("sliding_window", Some(4096))?);
        Ok(config)
    }

    fn write_hugging_face(&self, config: &DecoderConfig) -> Value {
        json!({"sliding_window": config.attention_windows.iter().copied().flatten().next()})
    }

    /// That of Llama, as which such files are read.
    fn gguf_architecture(&self) -> Option<&'static str> {
        Some("llama")
    }

    fn reads_gguf(&self, _: &GgufKeys<'_>) -> Result<bool> {
        Ok(false)
    }

    fn convert_gguf(&self, config: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        convert_queries_and_keys(config, weight, values);
    }
}
