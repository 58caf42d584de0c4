//! Qwen 2 and 2.5: biases on queries, keys and values, and windows that must be switched on.

use serde_json::{Value, json};

use super::gguf;
use super::hugging_face::{self, Defaults, layer_types, windows};
use super::rotary_settings::USUAL;
use crate::decoder::{DecoderConfig, Family};
use crate::error::Result;
use crate::formats::{GgufFile, GgufKeys, JsonObject};

#[derive(Debug)]
pub(super) struct Qwen2;

impl Family for Qwen2 {
    fn model_type(&self) -> &'static str {
        "qwen2"
    }

    fn architecture(&self) -> &'static str {
        "Qwen2ForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "Qwen2ForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        let config = hugging_face::plain(&Self, settings, &DEFAULTS)?;
        Ok(DecoderConfig { attention_bias: true, ..with_windows(config, settings)? })
    }

    fn write_hugging_face(&self, config: &DecoderConfig) -> Value {
        peculiarities(config)
    }

    fn gguf_architecture(&self) -> Option<&'static str> {
        Some("qwen2")
    }

    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        keys.refuse_unless("attention.sliding_window", 0)?;
        let config = gguf::plain(&Self, file, keys)?;
        Ok(DecoderConfig { attention_bias: true, ..config })
    }
}

/// Settings that the Qwen families' configuration classes share.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocabulary_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    layer_count: 32,
    attention_heads: 32,
    key_value_heads: Some(32),
    head_size: None,
    context_length: 32_768,
    norm_epsilon: 1e-6,
    tied_head: false,
    rotary: USUAL,
};

/// Windows of the Qwen families: they must be switched on, and then hold for late layers.
pub(super) fn with_windows(
    config: DecoderConfig,
    settings: &JsonObject<'_>,
) -> Result<DecoderConfig> {
    settings.refuse_unless("hidden_act", &json!("silu"))?;
    let window = match settings.flag("use_sliding_window")?.unwrap_or(false) {
        true => settings.count_or("sliding_window", Some(4096))?,
        false => None,
    };
    let full_layers =
        settings.typed("max_window_layers", "a number of layers", Value::as_u64)?.unwrap_or(28);
    let attention_windows =
        windows(settings, &config, window, |layer| layer as u64 >= full_layers)?;
    Ok(DecoderConfig { attention_windows, ..config })
}

/// Settings that only the Qwen families have.
pub(super) fn peculiarities(config: &DecoderConfig) -> Value {
    let window = config.attention_windows.iter().copied().flatten().next();
    json!({
        "attention_bias": config.attention_bias,
        "layer_types": layer_types(config),
        "sliding_window": window,
        "use_sliding_window": window.is_some(),
    })
}
