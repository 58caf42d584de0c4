//! Gemma 3, its text part: windows in five of six layers, which have a rotary base of their own, and norms
//! of queries and keys.

use serde_json::{Value, json};

use super::gemma2::{GGUF_PARTS, convert_norm, peculiar, restore_norm};
use super::gguf;
use super::gguf_writing::write_windowed_layers;
use super::hugging_face::{
    self, Defaults, activation_name, layer_types, near_integer, windows, with_windowed_rotary,
};
use super::rotary_settings::{RotaryDefaults, USUAL};
use crate::decoder::{Container, DecoderConfig, Family, GgufWindows, QueryKeyNorm, Rotary};
use crate::error::Result;
use crate::formats::{ArchitectureEntries, GgufFile, GgufKeys, JsonObject};

const BASE: f64 = 1_000_000.0;
const WINDOWED_BASE: f64 = 10_000.0;
/// Every so many layers there is one without a window.
const INTERVAL: usize = 6;
/// Layers of the 27B model, whose query scale differs from that of the smaller ones and is not in GGUF
/// files.
const LAYERS_OF_27B: usize = 62;

#[derive(Debug)]
pub(super) struct Gemma3;

impl Family for Gemma3 {
    fn model_type(&self) -> &'static str {
        "gemma3_text"
    }

    fn architecture(&self) -> &'static str {
        "Gemma3ForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "Gemma3TextForSequenceClassification"
    }

    fn container(&self) -> Option<Container> {
        Some(Container {
            model_type: "gemma3",
            architecture: "Gemma3ForConditionalGeneration",
            settings: "text_config",
            prefix: "model.language_model.",
        })
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        settings.refuse_unless("hidden_activation", &json!("gelu_pytorch_tanh"))?;
        settings.refuse_unless("attention_bias", &json!(false))?;
        settings.refuse_unless("use_bidirectional_attention", &json!(false))?;
        settings.refuse_unless("attn_logit_softcapping", &Value::Null)?;
        let windowed = Some(("rope_local_base_freq", WINDOWED_BASE));
        let defaults = Defaults {
            vocabulary_size: 262_208,
            hidden_size: 2304,
            intermediate_size: 9216,
            layer_count: 26,
            attention_heads: 8,
            key_value_heads: Some(4),
            head_size: Some(256),
            context_length: 131_072,
            norm_epsilon: 1e-6,
            tied_head: true,
            rotary: RotaryDefaults { base: BASE, windowed, ..USUAL },
        };
        let plain = hugging_face::plain(&Self, settings, &defaults)?;
        let window = settings.count_or("sliding_window", Some(4096))?;
        let interval = settings.count("sliding_window_pattern")?.unwrap_or(INTERVAL);
        let slides = |layer| slides(layer, interval);
        let config = DecoderConfig {
            attention_scale: settings.number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5),
            attention_windows: windows(settings, &plain, window, slides)?,
            logit_soft_cap: settings.number("final_logit_softcapping")?,
            query_key_norm: QueryKeyNorm::PerHead,
            ..peculiar(plain)
        };
        with_windowed_rotary(config, settings, &defaults)
    }

    fn write_hugging_face(&self, config: &DecoderConfig) -> Value {
        let layers = config.rotary.iter().zip(&config.attention_windows);
        let mut windowed =
            layers.filter_map(|(rotary, window)| rotary.as_ref().filter(|_| window.is_some()));
        json!({
            "attention_bias": false,
            "final_logit_softcapping": config.logit_soft_cap,
            "hidden_activation": activation_name(config.activation),
            "layer_types": layer_types(config),
            "query_pre_attn_scalar": near_integer(config.attention_scale.powi(-2)),
            "rope_local_base_freq": windowed.next().map_or(WINDOWED_BASE, |rotary| rotary.base),
            "sliding_window": config.attention_windows.iter().copied().flatten().next(),
        })
    }

    fn gguf_architecture(&self) -> Option<&'static str> {
        Some("gemma3")
    }

    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        let plain = gguf::plain(&Self, file, keys)?;
        let window = keys.required_count("attention.sliding_window")?;
        let windowed_base = keys.number("rope.freq_base_swa")?.unwrap_or(WINDOWED_BASE);
        let scaled_by = match plain.layer_count {
            LAYERS_OF_27B => plain.hidden_size as f64 / plain.attention_heads as f64,
            _ => plain.head_size as f64,
        };
        let base = keys.number("rope.freq_base")?.unwrap_or(BASE);
        let windowed = Rotary::plain(windowed_base, plain.head_size);
        let slides = gguf::windowed_layers(keys, plain.rotary.len(), INTERVAL)?;
        let of_layer = |(rotary, &slides): (&Option<Rotary>, &bool)| match slides {
            true => Some(windowed.clone()),
            false => rotary.clone().map(|rotary| Rotary { base, ..rotary }),
        };
        Ok(DecoderConfig {
            attention_scale: scaled_by.powf(-0.5),
            attention_windows: slides.iter().map(|slides| slides.then_some(window)).collect(),
            logit_soft_cap: keys.number("final_logit_softcapping")?.filter(|&cap| cap != 0.0),
            query_key_norm: QueryKeyNorm::PerHead,
            rotary: plain.rotary.iter().zip(&slides).map(of_layer).collect(),
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
        write_windowed_layers(config, entries);
        let layers = config.rotary.iter().zip(&config.attention_windows);
        let mut windowed = layers.filter_map(|(rotary, window)| window.and(rotary.as_ref()));
        if let Some(rotary) = windowed.next() {
            entries.set_number("rope.freq_base_swa", rotary.base);
        }
        if let Some(cap) = config.logit_soft_cap {
            entries.set_number("final_logit_softcapping", cap);
        }
    }

    fn gguf_windows(&self) -> GgufWindows {
        GgufWindows::Used
    }
}

fn slides(layer: usize, interval: usize) -> bool {
    !(layer + 1).is_multiple_of(interval)
}
