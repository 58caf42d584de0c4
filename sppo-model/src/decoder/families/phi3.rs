//! Phi 3, 3.5 and 4-mini: queries, keys and values in one matrix, gate and up in another, a rotary embedding
//! of a part of each head, and LongRoPE.

use serde_json::{Value, json};

use super::gguf;
use super::gguf_writing::{LONG_ROPE_DIVISORS, write_window};
use super::hugging_face::{self, Defaults};
use super::rotary_settings::{RotaryDefaults, USUAL};
use crate::decoder::{DecoderConfig, Family, GgufWindows, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::formats::{
    ArchitectureEntries, GgufFile, GgufKeys, JsonObject, WeightFile, WeightSource,
};

const CONTEXT: usize = 4096;

#[derive(Debug)]
pub(super) struct Phi3;

impl Family for Phi3 {
    fn model_type(&self) -> &'static str {
        "phi3"
    }

    fn architecture(&self) -> &'static str {
        "Phi3ForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "Phi3ForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        settings.refuse_unless("hidden_act", &json!("silu"))?;
        for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
            settings.refuse_unless(key, &json!(false))?;
        }
        let defaults = Defaults {
            vocabulary_size: 32_064,
            hidden_size: 3072,
            intermediate_size: 8192,
            layer_count: 32,
            attention_heads: 32,
            key_value_heads: None,
            head_size: None,
            context_length: CONTEXT,
            norm_epsilon: 1e-5,
            tied_head: false,
            // The first files call LongRoPE `su`; what they called `yarn` is not YaRN.
            rotary: RotaryDefaults {
                kinds: &["default", "longrope", "su"],
                partial: true,
                original_context: Some(CONTEXT as f64),
                ..USUAL
            },
        };
        let mut config = hugging_face::plain(&Self, settings, &defaults)?;
        config.attention_windows.fill(settings.count("sliding_window")?);
        Ok(config)
    }

    fn write_hugging_face(&self, config: &DecoderConfig) -> Value {
        let rotary = config.main_rotary();
        let part = rotary.map_or(1.0, |rotary| rotary.features as f64 / config.head_size as f64);
        let short = config.longest_short_sequence().unwrap_or(config.context_length);
        json!({
            "original_max_position_embeddings": short,
            "partial_rotary_factor": part,
            "sliding_window": config.attention_windows.iter().copied().flatten().next(),
        })
    }

    fn source(&self, config: &DecoderConfig, weight: &str) -> WeightSource {
        let (queries, keys) = (config.query_features(), config.key_features());
        let (values, inner) = (queries + keys, config.intermediate_size);
        let parts = [
            ("self_attn.q_proj", "self_attn.qkv_proj", 0..queries),
            ("self_attn.k_proj", "self_attn.qkv_proj", queries..values),
            ("self_attn.v_proj", "self_attn.qkv_proj", values..values + keys),
            ("mlp.gate_proj", "mlp.gate_up_proj", 0..inner),
            ("mlp.up_proj", "mlp.gate_up_proj", inner..2 * inner),
        ];
        for (part, fused, rows) in parts {
            if let Some(layer) =
                weight.strip_suffix(".weight").and_then(|name| name.strip_suffix(part))
            {
                return WeightSource::rows(format!("{layer}{fused}.weight"), rows);
            }
        }
        WeightSource::whole(weight)
    }

    fn gguf_architecture(&self) -> Option<&'static str> {
        Some("phi3")
    }

    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        keys.refuse_unless("expert_count", 0)?;
        let mut config = gguf::unscaled(&Self, file, keys)?;
        let scaling = match LONG_ROPE_DIVISORS.iter().any(|name| file.shape(name).is_some()) {
            true => long_rope(file, keys, config.context_length)?,
            false => gguf::rotary_scaling(keys)?,
        };
        gguf::set_scaling(&mut config, &scaling);
        // The model has this window, though llama.cpp computes without it and says so.
        let window = keys.count("attention.sliding_window")?.filter(|&window| window > 0);
        config.attention_windows.fill(window);
        Ok(config)
    }

    fn write_gguf(&self, config: &DecoderConfig, entries: &mut ArchitectureEntries<'_>) {
        write_window(config, entries);
    }

    fn gguf_windows(&self) -> GgufWindows {
        GgufWindows::Unused
    }

    fn gguf_parts(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("attn_qkv", "self_attn.qkv_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
        ]
    }
}

/// LongRoPE's divisors, which are tensors, and its other settings.
fn long_rope(file: &GgufFile, keys: &GgufKeys<'_>, context_length: usize) -> Result<RotaryScaling> {
    const CONTEXT_KEY: &str = "rope.scaling.original_context_length";
    let divisors = |name: &str| -> Result<Vec<f64>> {
        if file.shape(name).is_none() {
            return Err(ModelError::file(keys.path(), format!("the tensor `{name}` is missing")));
        }
        Ok(file.values(name)?.into_iter().map(f64::from).collect())
    };
    let original = keys.count(CONTEXT_KEY)?.ok_or_else(|| keys.missing(CONTEXT_KEY))? as f64;
    let factor = context_length as f64 / original;
    let usual = (1.0 + factor.max(1.0).ln() / original.ln()).sqrt();
    Ok(RotaryScaling::LongRope {
        short: divisors(LONG_ROPE_DIVISORS[0])?,
        long: divisors(LONG_ROPE_DIVISORS[1])?,
        original_context: original,
        attention_factor: keys.number("rope.scaling.attn_factor")?.unwrap_or(usual),
    })
}
