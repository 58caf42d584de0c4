//! SmolLM 3: Llama in which every fourth layer has no rotary embedding.

use serde_json::{Value, json};

use super::gguf;
use super::hugging_face::{self, Defaults, layer_types, windows};
use super::llama::{convert_queries_and_keys, restore_queries_and_keys, row_of_queries_or_keys};
use super::rotary_settings::{RotaryDefaults, USUAL};
use crate::decoder::{DecoderConfig, Family};
use crate::error::Result;
use crate::formats::{GgufFile, GgufKeys, JsonObject};

/// Every so many layers there is one without a rotary embedding, where the model does not list them;
/// GGUF files never do.
const INTERVAL: usize = 4;

#[derive(Debug)]
pub(super) struct SmolLm3;

impl Family for SmolLm3 {
    fn model_type(&self) -> &'static str {
        "smollm3"
    }

    fn architecture(&self) -> &'static str {
        "SmolLM3ForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "SmolLM3ForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        settings.refuse_unless("hidden_act", &json!("silu"))?;
        settings.refuse_unless("attention_bias", &json!(false))?;
        settings.refuse_unless("mlp_bias", &json!(false))?;
        let defaults = Defaults {
            vocabulary_size: 128_256,
            hidden_size: 2048,
            intermediate_size: 11_008,
            layer_count: 36,
            attention_heads: 16,
            key_value_heads: Some(4),
            head_size: None,
            context_length: 32_768,
            norm_epsilon: 1e-6,
            tied_head: true,
            rotary: RotaryDefaults { base: 2_000_000.0, ..USUAL },
        };
        let config = hugging_face::plain(&Self, settings, &defaults)?;
        let rotated = rotated_layers(settings, config.rotary.len())?;
        let window = match settings.flag("use_sliding_window")?.unwrap_or(false) {
            true => settings.count("sliding_window")?,
            false => None,
        };
        let attention_windows = windows(settings, &config, window, |layer| !rotated[layer])?;
        Ok(DecoderConfig { attention_windows, ..with_rotated(config, &rotated) })
    }

    fn write_hugging_face(&self, config: &DecoderConfig) -> Value {
        let rotated: Vec<u8> =
            config.rotary.iter().map(|rotary| u8::from(rotary.is_some())).collect();
        let window = config.attention_windows.iter().copied().flatten().next();
        json!({
            "attention_bias": false,
            "layer_types": layer_types(config),
            "mlp_bias": false,
            "no_rope_layers": rotated,
            "sliding_window": window,
            "use_sliding_window": window.is_some(),
        })
    }

    fn gguf_architecture(&self) -> Option<&'static str> {
        Some("smollm3")
    }

    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        keys.refuse_unless("attention.sliding_window", 0)?;
        let config = gguf::plain(&Self, file, keys)?;
        let rotated: Vec<bool> =
            (0..config.rotary.len()).map(|layer| is_rotated(layer, INTERVAL)).collect();
        Ok(with_rotated(config, &rotated))
    }

    /// As in Llama's files.
    fn restore_gguf(&self, config: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        restore_queries_and_keys(config, weight, values);
    }

    fn gguf_row(&self, config: &DecoderConfig, weight: &str, row: usize) -> usize {
        row_of_queries_or_keys(config, weight, row)
    }

    fn convert_gguf(&self, config: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        convert_queries_and_keys(config, weight, values);
    }
}

fn is_rotated(layer: usize, interval: usize) -> bool {
    !(layer + 1).is_multiple_of(interval)
}

/// Whether each layer has a rotary embedding: `no_rope_layers` holds 1 where there is one.
fn rotated_layers(settings: &JsonObject<'_>, layers: usize) -> Result<Vec<bool>> {
    const KEY: &str = "no_rope_layers";
    let interval = settings.count("no_rope_layer_interval")?.unwrap_or(INTERVAL);
    let listed = settings.typed(KEY, "a list of 0 and 1", |value| {
        let flags = value.as_array()?.iter().map(Value::as_u64);
        flags.map(|flag| flag.filter(|&flag| flag < 2).map(|flag| flag == 1)).collect()
    })?;
    let Some(mut listed): Option<Vec<bool>> = listed else {
        return Ok((0..layers).map(|layer| is_rotated(layer, interval)).collect());
    };
    if listed.len() < layers {
        return Err(settings.wrong(KEY, &format!("a list of {layers} numbers, one per layer")));
    }
    listed.truncate(layers);
    Ok(listed)
}

fn with_rotated(config: DecoderConfig, rotated: &[bool]) -> DecoderConfig {
    let layers = config.rotary.into_iter().zip(rotated);
    let rotary = layers.map(|(rotary, &is_rotated)| rotary.filter(|_| is_rotated)).collect();
    DecoderConfig { rotary, ..config }
}
