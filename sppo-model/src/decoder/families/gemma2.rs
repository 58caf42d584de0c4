//! Gemma 2: soft-caps, windows in every other layer, four norms per layer.

use serde_json::{Value, json};

use super::gguf;
use super::gguf_writing::write_window;
use super::hugging_face::{self, Defaults, activation_name, layer_types, near_integer, windows};
use super::rotary_settings::USUAL;
use crate::decoder::{DecoderConfig, Family, GgufWindows, NormPlacement};
use crate::error::Result;
use crate::formats::{ArchitectureEntries, GgufFile, GgufKeys, JsonObject};
use crate::ops::Activation;

/// Settings that llama.cpp assumes where the file does not say.
const WINDOW: usize = 4096;
const ATTENTION_SOFT_CAP: f64 = 50.0;
const LOGIT_SOFT_CAP: f64 = 30.0;
/// Layers of the 27B model, whose query scale differs from that of the smaller ones and is not in the
/// file.
const LAYERS_OF_27B: usize = 46;

#[derive(Debug)]
pub(super) struct Gemma2;

impl Family for Gemma2 {
    fn model_type(&self) -> &'static str {
        "gemma2"
    }

    fn architecture(&self) -> &'static str {
        "Gemma2ForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "Gemma2ForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        settings.refuse_unless("hidden_activation", &json!("gelu_pytorch_tanh"))?;
        settings.refuse_unless("attention_bias", &json!(false))?;
        settings.refuse_unless("use_bidirectional_attention", &json!(false))?;
        let defaults = Defaults {
            vocabulary_size: 256_000,
            hidden_size: 2304,
            intermediate_size: 9216,
            layer_count: 26,
            attention_heads: 8,
            key_value_heads: Some(4),
            head_size: Some(256),
            context_length: 8192,
            norm_epsilon: 1e-6,
            tied_head: true,
            rotary: USUAL,
        };
        let plain = hugging_face::plain(&Self, settings, &defaults)?;
        let window = settings.count_or("sliding_window", Some(4096))?;
        Ok(DecoderConfig {
            attention_scale: settings.number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5),
            attention_soft_cap: settings.number_or("attn_logit_softcapping", 50.0)?,
            logit_soft_cap: settings.number_or("final_logit_softcapping", 30.0)?,
            attention_windows: windows(settings, &plain, window, slides)?,
            ..peculiar(plain)
        })
    }

    fn write_hugging_face(&self, config: &DecoderConfig) -> Value {
        json!({
            "attention_bias": false,
            "attn_logit_softcapping": config.attention_soft_cap,
            "final_logit_softcapping": config.logit_soft_cap,
            "hidden_activation": activation_name(config.activation),
            "layer_types": layer_types(config),
            "query_pre_attn_scalar": near_integer(config.attention_scale.powi(-2)),
            "sliding_window": config.attention_windows.iter().copied().flatten().next(),
        })
    }

    fn gguf_architecture(&self) -> Option<&'static str> {
        Some("gemma2")
    }

    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        let plain = gguf::plain(&Self, file, keys)?;
        let window = keys.count("attention.sliding_window")?.unwrap_or(WINDOW);
        let scaled_by = match plain.layer_count {
            LAYERS_OF_27B => plain.hidden_size as f64 / plain.attention_heads as f64,
            _ => plain.head_size as f64,
        };
        let cap = |key, default| Ok(keys.number(key)?.unwrap_or(default));
        let layers = 0..plain.attention_windows.len();
        Ok(DecoderConfig {
            attention_scale: scaled_by.powf(-0.5),
            attention_soft_cap: Some(cap("attn_logit_softcapping", ATTENTION_SOFT_CAP)?),
            logit_soft_cap: Some(cap("final_logit_softcapping", LOGIT_SOFT_CAP)?),
            attention_windows: layers.map(|layer| slides(layer).then_some(window)).collect(),
            ..peculiar(plain)
        })
    }

    fn gguf_parts(&self) -> &'static [(&'static str, &'static str)] {
        GGUF_PARTS
    }

    fn restore_gguf(&self, _: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        restore_norm(weight, values);
    }

    fn convert_gguf(&self, _: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        convert_norm(weight, values);
    }

    fn write_gguf(&self, config: &DecoderConfig, entries: &mut ArchitectureEntries<'_>) {
        write_window(config, entries);
        let caps = [
            ("attn_logit_softcapping", config.attention_soft_cap),
            ("final_logit_softcapping", config.logit_soft_cap),
        ];
        for (key, cap) in caps {
            if let Some(cap) = cap {
                entries.set_number(key, cap);
            }
        }
    }

    fn gguf_windows(&self) -> GgufWindows {
        GgufWindows::Used
    }
}

pub(super) const GGUF_PARTS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The converter to GGUF adds the 1 that the norms' weights are stored without.
pub(super) fn restore_norm(weight: &str, values: &mut [f32]) {
    if weight.ends_with("norm.weight") {
        values.iter_mut().for_each(|value| *value -= 1.0);
    }
}

pub(super) fn convert_norm(weight: &str, values: &mut [f32]) {
    if weight.ends_with("norm.weight") {
        values.iter_mut().for_each(|value| *value += 1.0);
    }
}

/// The settings that no file says, because they are the same for all of Gemma 2 and 3.
pub(super) fn peculiar(plain: DecoderConfig) -> DecoderConfig {
    DecoderConfig {
        norm_weight_offset: true,
        norm_placement: NormPlacement::BeforeAndAfter,
        activation: Activation::GeluTanh,
        embedding_scale: Some((plain.hidden_size as f64).sqrt()),
        ..plain
    }
}

fn slides(layer: usize) -> bool {
    layer.is_multiple_of(2)
}
