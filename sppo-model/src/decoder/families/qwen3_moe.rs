//! Qwen 3 with experts: as Qwen 3, but in most layers a router sends each token through some of many small
//! feed-forward blocks.

use serde_json::{Value, json};

use super::gguf;
use super::hugging_face::{self, Defaults, layer_types};
use super::qwen2::DEFAULTS;
use crate::decoder::{DecoderConfig, Experts, Family, QueryKeyNorm};
use crate::error::{ModelError, Result};
use crate::formats::{
    ArchitectureEntries, GgufFile, GgufKeys, JsonObject, WeightFile, WeightSource,
};
use crate::ops::Routing;

#[derive(Debug)]
pub(super) struct Qwen3Moe;

impl Family for Qwen3Moe {
    fn model_type(&self) -> &'static str {
        "qwen3_moe"
    }

    fn architecture(&self) -> &'static str {
        "Qwen3MoeForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "Qwen3MoeForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        settings.refuse_unless("hidden_act", &json!("silu"))?;
        settings.refuse_unless("attention_bias", &json!(false))?;
        let defaults = Defaults {
            hidden_size: 2048,
            intermediate_size: 6144,
            layer_count: 24,
            key_value_heads: Some(4),
            ..DEFAULTS
        };
        let mut config = hugging_face::plain(&Self, settings, &defaults)?;
        if settings.flag("use_sliding_window")?.unwrap_or(false) {
            config.attention_windows.fill(settings.count_or("sliding_window", Some(4096))?);
        }
        let experts = experts(settings, config.rotary.len())?;
        Ok(DecoderConfig {
            query_key_norm: QueryKeyNorm::PerHead,
            experts: Some(experts),
            ..config
        })
    }

    fn write_hugging_face(&self, config: &DecoderConfig) -> Value {
        let window = config.attention_windows.iter().copied().flatten().next();
        let Some(Experts { routing, intermediate_size, layers }) = &config.experts else {
            return Value::Null;
        };
        let dense: Vec<usize> = (0..layers.len()).filter(|&layer| !layers[layer]).collect();
        json!({
            "attention_bias": false,
            "decoder_sparse_step": 1,
            "layer_types": layer_types(config),
            "mlp_only_layers": dense,
            "moe_intermediate_size": intermediate_size,
            "norm_topk_prob": routing.is_normalised,
            "num_experts": routing.expert_count,
            "num_experts_per_tok": routing.chosen,
            "sliding_window": window,
            "use_sliding_window": window.is_some(),
        })
    }

    fn gguf_architecture(&self) -> Option<&'static str> {
        Some("qwen3moe")
    }

    /// llama.cpp has experts in all layers, and divides their probabilities by their sum.
    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        keys.refuse_unless("attention.sliding_window", 0)?;
        let routing = Routing {
            expert_count: keys.required_count("expert_count")?,
            chosen: keys.required_count("expert_used_count")?,
            is_normalised: true,
        };
        let config = gguf::with_experts(&Self, file, keys)?;
        let intermediate_size = match keys.count("expert_feed_forward_length")? {
            Some(size) => size,
            None => expert_features(file, keys)?,
        };
        let layers = vec![true; config.rotary.len()];
        Ok(DecoderConfig {
            query_key_norm: QueryKeyNorm::PerHead,
            experts: Some(Experts { routing, intermediate_size, layers }),
            ..config
        })
    }

    fn write_gguf(&self, config: &DecoderConfig, entries: &mut ArchitectureEntries<'_>) {
        if let Some(Experts { routing, intermediate_size, .. }) = &config.experts {
            entries.set_count("expert_count", routing.expert_count);
            entries.set_count("expert_used_count", routing.chosen);
            entries.set_count("expert_feed_forward_length", *intermediate_size);
        }
    }

    /// The experts of a layer are one tensor, one after the other.
    fn gguf_source(&self, config: &DecoderConfig, weight: &str) -> Option<WeightSource> {
        let (layer, rest) = weight.strip_prefix("model.layers.")?.split_once('.')?;
        let (expert, part) = rest.strip_prefix("mlp.experts.")?.split_once('.')?;
        let number: usize = expert.parse().ok()?;
        let inner = config.experts.as_ref()?.intermediate_size;
        let (name, rows) = match part {
            "gate_proj.weight" => ("ffn_gate_exps", inner),
            "up_proj.weight" => ("ffn_up_exps", inner),
            "down_proj.weight" => ("ffn_down_exps", config.hidden_size),
            _ => return None,
        };
        let tensor = format!("blk.{layer}.{name}.weight");
        Some(WeightSource::rows(tensor, number * rows..(number + 1) * rows))
    }

    fn gguf_parts(&self) -> &'static [(&'static str, &'static str)] {
        &[("ffn_norm", "post_attention_layernorm"), ("ffn_gate_inp", "mlp.gate")]
    }
}

/// Features inside an expert, from the shape of the first layer's.
fn expert_features(file: &GgufFile, keys: &GgufKeys<'_>) -> Result<usize> {
    match file.shape("blk.0.ffn_gate_exps.weight") {
        Some(&[_, features, _]) => Ok(features),
        _ => Err(ModelError::file(keys.path(), "the experts of the first layer are missing")),
    }
}

fn experts(settings: &JsonObject<'_>, layer_count: usize) -> Result<Experts> {
    let count = |key: &str, default| Ok(settings.count(key)?.unwrap_or(default));
    let step = count("decoder_sparse_step", 1)?;
    let dense = settings.typed("mlp_only_layers", "a list of layers", |value| {
        value.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>()
    })?;
    let dense = dense.unwrap_or_default();
    let has_experts =
        |layer: usize| !dense.contains(&(layer as u64)) && (layer + 1).is_multiple_of(step);
    // transformers 5 writes `num_local_experts`
    let expert_count = match settings.count("num_local_experts")? {
        Some(count) => count,
        None => count("num_experts", 128)?,
    };
    Ok(Experts {
        routing: Routing {
            expert_count,
            chosen: count("num_experts_per_tok", 8)?,
            is_normalised: settings.flag("norm_topk_prob")?.unwrap_or(false),
        },
        intermediate_size: count("moe_intermediate_size", 768)?,
        layers: (0..layer_count).map(has_experts).collect(),
    })
}
